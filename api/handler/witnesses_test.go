package handler_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/handler"
	"github.com/invarhq/invar/ledger"
)

const cosignature = "— witness.example/w jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"

// read reads a path over the socket.
func (w *world) read(path string) (int, string) {
	w.t.Helper()
	resp, err := (&http.Client{Transport: w.local.Transport()}).Get(w.local.Base().String() + path)
	w.must(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	w.must(err)
	return resp.StatusCode, string(b)
}

func TestNewestCheckpointIsServedWithItsCosignatures(t *testing.T) {
	w := newWorld(t, func(c *handler.Config) {
		c.Cosigned = func(checkpoint []byte) []byte { return append(checkpoint, cosignature...) }
	})
	want := string(w.control.Ledger().Checkpoint()) + cosignature
	if status, got := w.read("/ledger/checkpoint"); status != 200 || got != want {
		t.Errorf("%d %q, want %q", status, got, want)
	}
	if c, err := w.local.Checkpoint(t.Context()); err != nil || c.Note != want {
		t.Errorf("%+v, %v", c, err)
	}
	if status, got := w.read("/ledger/checkpoint.cosigned"); status != 404 {
		t.Errorf("a quorum from nowhere: %d %s", status, got)
	}
}

func TestProofIsInTheNewestCheckpointWithAQuorum(t *testing.T) {
	var witnesses api.Witnesses
	w := newWorld(t, func(c *handler.Config) { c.Witnesses = func() api.Witnesses { return witnesses } })
	_, err := w.local.CreateToken(t.Context(), api.TokenRequest{Name: "one"})
	w.must(err)
	log := w.control.Ledger()
	size := log.Size()
	witnesses = api.Witnesses{QuorumSize: uint64(size), Cosigned: string(log.Checkpoint()) + cosignature}
	_, err = w.local.CreateToken(t.Context(), api.TokenRequest{Name: "two"})
	w.must(err)
	for index, want := range map[int64]uint64{0: uint64(size), size - 1: uint64(size), size: uint64(log.Size())} {
		p, err := w.local.Entry(t.Context(), uint64(index))
		if err != nil || p.TreeSize != want {
			t.Errorf("entry %d is proven in the tree of %d, %v; want %d", index, p.TreeSize, err, want)
		}
		c, err := w.local.Checkpoint(t.Context())
		w.must(err)
		v, err := ledger.ParseVerifierKey(c.VKey)
		w.must(err)
		if _, _, err := ledger.CheckProof([]byte(p.TLogProof), p.Entry.Leaf, v); err != nil {
			t.Error(err)
		}
		if (want == uint64(size)) != (p.Checkpoint == witnesses.Cosigned) {
			t.Errorf("entry %d is proven with %q", index, p.Checkpoint)
		}
	}
	if status, got := w.read("/ledger/checkpoint.cosigned"); status != 200 || got != witnesses.Cosigned {
		t.Errorf("%d %q", status, got)
	}
}

func TestServerWithoutWitnessesSaysSo(t *testing.T) {
	w := newWorld(t)
	got, err := w.local.Witnesses(t.Context())
	if err != nil || got.Policy != "quorum none\n" || got.Size == 0 || len(got.Witnesses) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}
