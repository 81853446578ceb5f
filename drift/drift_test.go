package drift_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/instance"
)

func facts(rt *rapid.T, label string) drift.Facts {
	return drift.Of(rapid.SliceOf(rapid.Custom(func(rt *rapid.T) drift.Fact {
		return drift.Fact{
			Kind:  rapid.SampledFrom([]drift.Kind{drift.Root, drift.Mount, drift.Port, drift.Limit}).Draw(rt, "kind"),
			Field: rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(rt, "field"),
			Value: rapid.SampledFrom([]string{"", "x", "y"}).Draw(rt, "value"),
		}
	})).Draw(rt, label)...)
}

// fix is what a finding asks for, done.
func fix(got drift.Facts, f instance.Finding) drift.Facts {
	var list []drift.Fact
	for _, x := range got.List() {
		if string(x.Kind) != f.Kind || x.Field != f.Field {
			list = append(list, x)
		}
	}
	return drift.Of(append(list, drift.Fact{Kind: drift.Kind(f.Kind), Field: f.Field, Value: f.Expected})...)
}

func TestApplyingTheFixLeavesNoFinding(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		want, got := facts(rt, "want"), facts(rt, "got")
		findings := drift.Compare(want, got)
		for n, f := range findings {
			if len(f.Controls) == 0 {
				rt.Errorf("%v concerns no control", f)
			}
			got = fix(got, f)
			if left := len(drift.Compare(want, got)); left != len(findings)-n-1 {
				rt.Fatalf("after fixing %d of %d: %d left", n+1, len(findings), left)
			}
		}
		if diff := cmp.Diff(want.List(), got.List()); diff != "" {
			rt.Errorf("fixed (-want +got):\n%s", diff)
		}
	})
}

func TestEqualFactsHaveNoFinding(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := facts(rt, "facts")
		if found := drift.Compare(f, drift.Of(f.List()...)); len(found) > 0 {
			rt.Errorf("found %v", found)
		}
	})
}

func TestFindingsSayWhatDiffers(t *testing.T) {
	want := drift.Of(drift.Fact{drift.Limit, "pids", "64"}, drift.Fact{drift.Mount, "/", "erofs ro"})
	got := drift.Of(drift.Fact{drift.Limit, "pids", "max"}, drift.Fact{drift.Mount, "/", "erofs ro"},
		drift.Fact{drift.Port, "tcp 0.0.0.0:9999", "open"})
	var texts []string
	for _, f := range drift.Compare(want, got) {
		texts = append(texts, f.String())
	}
	if diff := cmp.Diff([]string{"limit pids: max instead of 64", "port tcp 0.0.0.0:9999: open, which was not released"}, texts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOnlyWhatBothLooksSawIsConfirmed(t *testing.T) {
	a, b := instance.Finding{Kind: "user", Found: "0"}, instance.Finding{Kind: "limit", Field: "pids", Found: "1"}
	later := b
	later.Found = "2"
	if diff := cmp.Diff([]instance.Finding{later}, drift.Confirmed([]instance.Finding{a, b}, []instance.Finding{later})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzFacts(f *testing.F) {
	f.Add([]byte(`[{"kind":"limit","field":"pids","value":"64"},{"kind":"mount","field":"/","value":"erofs ro"}]`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var facts drift.Facts
		if json.Unmarshal(b, &facts) != nil {
			return
		}
		first, err := json.Marshal(facts)
		if err != nil {
			t.Fatal(err)
		}
		var again drift.Facts
		if err := json.Unmarshal(first, &again); err != nil {
			t.Fatalf("%s: %v", first, err)
		}
		second, _ := json.Marshal(again)
		if !bytes.Equal(first, second) || len(drift.Compare(facts, again)) > 0 {
			t.Fatalf("%s became %s", first, second)
		}
	})
}
