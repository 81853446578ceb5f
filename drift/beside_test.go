package drift_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/instance"
)

// oddities reads "table in force!restore": kind, field, and what follows.
func oddities(texts ...string) []drift.Oddity {
	var out []drift.Oddity
	for _, text := range texts {
		what, response, _ := strings.Cut(text, "!")
		kind, field, _ := strings.Cut(what, " ")
		out = append(out, drift.Oddity{Finding: instance.Finding{Kind: kind, Field: field, Found: "x"}, Response: drift.Response(response)})
	}
	return out
}

func open(texts ...string) []drift.Open {
	var out []drift.Open
	for _, o := range oddities(texts...) {
		out = append(out, drift.Open{Finding: o.Finding, Response: o.Response})
	}
	return out
}

func keys(list []drift.Oddity) (out []string) {
	for _, o := range list {
		out = append(out, o.Key())
	}
	return out
}

func TestWhatIsNewIsEnteredOnceAndWhatIsGoneIsOver(t *testing.T) {
	for _, c := range []struct {
		name                 string
		open                 []drift.Open
		kinds                []drift.Kind
		found                []drift.Oddity
		fresh, entered, over []string
	}{
		{name: "nothing"},
		{name: "new", kinds: []drift.Kind{drift.Table}, found: oddities("table a!restore"), fresh: []string{"table a"}, entered: []string{"table a"}},
		{name: "known", open: open("table a!restore"), kinds: []drift.Kind{drift.Table}, found: oddities("table a!restore"), entered: []string{"table a"}},
		{name: "twice in one look", kinds: []drift.Kind{drift.Stray}, found: oddities("stray a!end", "stray a!end"), fresh: []string{"stray a"}, entered: []string{"stray a"}},
		{name: "over", open: open("table a!restore", "stray b!end"), kinds: []drift.Kind{drift.Table}, over: []string{"table a"}},
		{name: "one after the other", open: open("stray a!end"), kinds: []drift.Kind{drift.Stray}, found: oddities("stray b!alert"),
			fresh: []string{"stray b"}, entered: []string{"stray b"}, over: []string{"stray a"}},
		{name: "not looked at", open: open("stray a!end"), kinds: []drift.Kind{drift.Table, drift.Gateway}},
	} {
		fresh, entered, over := drift.Beside(c.open, c.kinds, c.found)
		var gone []string
		for _, o := range over {
			gone = append(gone, o.Finding.Key())
		}
		if d := cmp.Diff([][]string{c.fresh, c.entered, c.over}, [][]string{keys(fresh), keys(entered), gone}); d != "" {
			t.Errorf("%s: fresh, entered, over (-want +got):\n%s", c.name, d)
		}
	}
}

// What there is no room for is not entered, and so is not touched.
func TestOpenOdditiesAreBounded(t *testing.T) {
	var found []drift.Oddity
	for n := range 2 * drift.MaxOpen {
		found = append(found, oddities(fmt.Sprintf("stray %d!end", n))...)
	}
	fresh, entered, _ := drift.Beside(open("stray x!end"), []drift.Kind{drift.Table}, found)
	if len(fresh) != drift.MaxOpen-1 || len(entered) != len(fresh) {
		t.Errorf("%d are new and %d entered, want %d", len(fresh), len(entered), drift.MaxOpen-1)
	}
}

func TestWhatComesBackTakesLongerToBeOver(t *testing.T) {
	var away, patience []time.Duration
	for n := range 20 {
		away, patience = append(away, drift.Away(n)), append(patience, drift.Patience(n))
	}
	if !slices.IsSorted(away) || away[0] != 0 || away[2] != 0 || away[3] != time.Minute || away[19] != 10*time.Minute {
		t.Errorf("away: %v", away)
	}
	if !slices.IsSorted(patience) || patience[0] != 0 || patience[1] != time.Second || patience[19] != time.Minute {
		t.Errorf("patience: %v", patience)
	}
}

func TestEveryKindHasControlsAndACauseIsBounded(t *testing.T) {
	for _, k := range []drift.Kind{drift.Table, drift.Gateway, drift.Listener, drift.Stray, drift.Orphan} {
		if len(k.Controls()) == 0 {
			t.Errorf("%s concerns no control", k)
		}
	}
	long := drift.Odd(drift.Alert, []instance.Finding{{Kind: "stray", Field: "x", Found: strings.Repeat("é", 1000)}, {Kind: "stray", Field: "y", Found: "z"}})
	if c := drift.Cause(long); len(c) > 330 || !strings.HasSuffix(c, "… and 1 more") {
		t.Errorf("cause is %q", c)
	}
}
