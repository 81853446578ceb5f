// Package ledgertest makes logs in memory for the tests of what reads logs.
package ledgertest

import (
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/store/storetest"
)

// Key is a log's. Two logs with one key are one log that forks.
type Key struct {
	Origin   string
	VKey     string // of Verifier, as text
	Signer   note.Signer
	Verifier note.Verifier
}

// NewKey makes the key of a log of that name.
func NewKey(t testing.TB, origin string) Key {
	t.Helper()
	skey, vkey, err := ledger.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	k := Key{Origin: origin, VKey: vkey}
	if k.Signer, k.Verifier, err = ledger.ParseKey(skey); err != nil {
		t.Fatal(err)
	}
	return k
}

// NewLog opens a log that has size entries: "PREFIX 0", "PREFIX 1" …
func (k Key) NewLog(t testing.TB, prefix string, size int) *ledger.Log {
	t.Helper()
	s, err := storetest.NewDisk().Open()
	if err != nil {
		t.Fatal(err)
	}
	log, err := ledger.Open(t.Context(), s, ledger.Config{Origin: k.Origin, Signer: k.Signer, Verifier: k.Verifier})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	Grow(t, log, prefix, size)
	return log
}

// Grow appends so many entries more, with one checkpoint.
func Grow(t testing.TB, log *ledger.Log, prefix string, by int) {
	t.Helper()
	if by == 0 {
		return
	}
	_, err := log.Append(t.Context(), func(next int64) ([][]byte, error) {
		var out [][]byte
		for i := range int64(by) {
			out = append(out, fmt.Appendf(nil, "%s %d", prefix, next+i))
		}
		return out, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
