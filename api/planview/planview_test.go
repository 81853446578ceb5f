package planview

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
)

func TestHunksOfDiff(t *testing.T) {
	diff := "diff old new\n--- old\n+++ new\n@@ -1,3 +1,3 @@\n a\n-b\n+c\n@@ -9,1 +9,1 @@\n--- x\n++++ y\n"
	if d := cmp.Diff([]string{" a", "-b", "+c", "--- x", "++++ y"}, hunks(diff)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// What is read from a plan's bytes is what its digest names.
func TestReadShowsWhatTheDigestNames(t *testing.T) {
	before, after := "info", "warn"
	p := change.Plan{V: 1, App: "shop", Env: "prod", Base: change.Base{Generation: 2}, Steps: []int{100}, Items: []change.Item{{
		Action: change.Replace, Component: "web", Starts: 2, Stops: 2, How: change.Beside,
		Causes: []release.Cause{{Field: "env LOG_LEVEL", Old: &before, New: &after}},
	}}}
	raw, err := digest.Canonical(p)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Of(p, digest.Of(raw)), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if d := got.Changes[0].Causes[0]; d.Before != "info" || d.After != "warn" || got.Replaces != 1 || got.BaseGeneration != 2 {
		t.Errorf("got %+v", got)
	}
	for _, bad := range [][]byte{nil, []byte("{}"), append(raw, ' '), []byte(`{"v":2}`)} {
		if _, err := Read(bad); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: %v, want it refused", bad, err)
		}
	}
}
