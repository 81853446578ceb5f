package sqlite_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/store"
	"github.com/invarhq/invar/store/sqlite"
)

const origin = "invar.example/ledger"

// key is a ledger key for tests.
type key struct {
	signer   note.Signer
	verifier note.Verifier
	vkey     string
}

func newKey(t testing.TB) key {
	t.Helper()
	skey, vkey, err := ledger.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, verifier, err := ledger.ParseKey(skey)
	if err != nil {
		t.Fatal(err)
	}
	return key{signer, verifier, vkey}
}

func (k key) config() ledger.Config {
	return ledger.Config{Origin: origin, Signer: k.signer, Verifier: k.verifier}
}

func openLog(t testing.TB, s store.Store, k key) *ledger.Log {
	t.Helper()
	log, err := ledger.Open(t.Context(), s, k.config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log
}

func create(t testing.TB, dir string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Create(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func verify(t testing.TB, dir, vkey string) (ledger.Report, error) {
	t.Helper()
	r, err := sqlite.OpenReadOnly(t.Context(), dir)
	if err != nil {
		return ledger.Report{}, err
	}
	defer r.Close()
	return ledger.Verify(t.Context(), r, vkey)
}

func one(entry string) func(int64) ([][]byte, error) {
	return func(int64) ([][]byte, error) { return [][]byte{[]byte(entry)}, nil }
}

func TestLedgerIsThereAfterReopen(t *testing.T) {
	dir, k := t.TempDir(), newKey(t)
	s := create(t, dir)
	log := openLog(t, s, k)
	var all sync.WaitGroup
	for w := range 20 {
		all.Go(func() {
			for i := range 50 {
				if _, err := log.Append(t.Context(), one(fmt.Sprintf("%d/%d", w, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	checkpoint := log.Checkpoint()
	if err := errors.Join(log.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}

	report, err := verify(t, dir, k.vkey)
	if err != nil {
		t.Fatal(err)
	}
	if report.Size != 1000 || report.Hashes != 1994 || report.Checkpoints < 2 {
		t.Errorf("verified %+v, want 1000 entries, 1994 hashes and some checkpoints", report)
	}

	s, err = sqlite.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	log = openLog(t, s, k)
	if !slices.Equal(log.Checkpoint(), checkpoint) {
		t.Errorf("checkpoint after reopening is\n%s, want\n%s", log.Checkpoint(), checkpoint)
	}
	if i, err := log.Append(t.Context(), one("more")); i != 1000 || err != nil {
		t.Errorf("appending after reopening: %d, %v; want 1000", i, err)
	}
	log.Close()
}
