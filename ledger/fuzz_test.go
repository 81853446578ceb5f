package ledger_test

import (
	"bytes"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/ledger"
)

// fixedKey is a key for corpora that last.
const fixedKey = "PRIVATE+KEY+invar.example/ledger+3396c23e+AQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"

func fixed(t testing.TB) (note.Signer, note.Verifier) {
	t.Helper()
	signer, verifier, err := ledger.ParseKey(fixedKey)
	if err != nil {
		t.Fatal(err)
	}
	return signer, verifier
}

func FuzzTilePath(f *testing.F) {
	for _, s := range []string{"tile/0/000", "tile/5/x001/x234/067.p/255", "tile/entries/012", "tile/entries/x001/000.p/1",
		"tile/data/000", "tile/6/000", "tile/0/1", "tile/00/000", "tile/0/000.p/256", "tile/0/x999/x999/x999/x999/x999/x999/999", "", "checkpoint"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		tile, err := ledger.ParseTilePath(path)
		if err != nil {
			return
		}
		if got := ledger.TilePath(tile); got != path {
			t.Errorf("%q was read as %+v, which is written %q", path, tile, got)
		}
		if tile.N < 0 || tile.W < 1 || tile.W > 256 || tile.L < -1 || tile.L > 5 {
			t.Errorf("%q was read as %+v", path, tile)
		}
	})
}

func FuzzBundle(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0})
	f.Add([]byte{0, 1, 'a', 0, 2, 'b', 'c'})
	f.Add([]byte{0, 3, 'a'})
	f.Add([]byte{255})
	f.Fuzz(func(t *testing.T, bundle []byte) {
		entries, err := ledger.ParseBundle(bundle)
		if err != nil {
			return
		}
		var again []byte
		for _, e := range entries {
			again = ledger.AppendBundle(again, e)
		}
		if !bytes.Equal(again, bundle) {
			t.Errorf("%x was read as %x, which is written %x", bundle, entries, again)
		}
	})
}

// FuzzCheckpoint signs any text: what is accepted must be the one spelling.
func FuzzCheckpoint(f *testing.F) {
	signer, verifier := fixed(f)
	f.Add("invar.example/ledger\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n")
	f.Add("invar.example/ledger\n00\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n")
	f.Add("invar.example/ledger\n1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=\nextension\n")
	f.Add("\n-1\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		signed, err := note.Sign(&note.Note{Text: text}, signer)
		if err != nil {
			return
		}
		c, err := ledger.ParseCheckpoint(signed, verifier)
		if err != nil {
			return
		}
		if again, err := c.Sign(signer); err != nil || !bytes.Equal(again, signed) {
			t.Errorf("%q was read as %+v, which is signed as %q, %v", signed, c, again, err)
		}
	})
}

// FuzzSignedCheckpoint reads any bytes: only what the key signed is accepted.
func FuzzSignedCheckpoint(f *testing.F) {
	signer, verifier := fixed(f)
	signed, err := ledger.Checkpoint{Origin: origin, Size: 7}.Sign(signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add(append(bytes.Clone(signed), "— witness.example AAAAAAAA\n"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ledger.ParseCheckpoint(b, verifier)
		if err == nil && !bytes.HasPrefix(b, signed[:bytes.IndexByte(signed, '=')]) {
			t.Errorf("%q was accepted as %+v", b, c)
		}
	})
}

func FuzzProof(f *testing.F) {
	_, verifier := fixed(f)
	f.Add([]byte("c2sp.org/tlog-proof@v1\nindex 0\n\n"), []byte("entry"))
	f.Fuzz(func(t *testing.T, proof, entry []byte) {
		if i, c, err := ledger.CheckProof(proof, entry, verifier); err == nil {
			t.Errorf("%q proves entry %d of %+v, which nobody signed", proof, i, c)
		}
	})
}
