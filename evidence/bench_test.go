package evidence_test

import (
	"fmt"
	"testing"
	"testing/fstest"
	"time"

	"github.com/invarhq/invar/evidence"
	"github.com/invarhq/invar/state"
)

// long is a ledger of n entries, of which every hundredth carries out a change with its request, two approvals and two decisions.
func long(b *testing.B, n int) (*world, [][]byte) {
	w := governed(b)
	for i := 0; len(w.entries) < n; i++ {
		w.later(time.Minute)
		if i%500 == 0 {
			r := w.shop("prod", fmt.Sprint(i), 2)
			w.request(person("alice"), r)
			w.approve("bob")
			w.approve("carol")
			w.carryOut("dave", r)
		}
		w.add(person("mallory"), "", state.AccessDenied{Operation: "apply", Cause: "who are you"})
	}
	leaves := make([][]byte, len(w.entries))
	for i, e := range w.entries {
		var err error
		if leaves[i], err = state.Encode(e); err != nil {
			b.Fatal(err)
		}
	}
	return w, leaves
}

// BenchmarkEvidence exports and verifies a ledger of 100,000 entries, of which 200 changes with all that governs them.
func BenchmarkEvidence(b *testing.B) {
	const n = 100_000
	w, leaves := long(b, n)
	src := w.source(leaves)
	var fsys fstest.MapFS
	b.Run("export", func(b *testing.B) {
		for b.Loop() {
			var err error
			if fsys, err = exportOf(b.Context(), src, w.vkey, w.skey, w.at); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	})
	if fsys == nil {
		b.Skip("nothing was exported: run export as well")
	}
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			r, err := evidence.Verify(b.Context(), fsys, evidence.Options{VKey: w.vkey, Tool: "test"})
			if err != nil || !r.OK() {
				b.Fatal(err, lines(r.Of(evidence.Failure)))
			}
		}
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	})
}
