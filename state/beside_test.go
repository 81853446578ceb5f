package state_test

import (
	"errors"
	"testing"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/state"
)

func TestWhatIsOddOnTheMachineIsOpenUntilItIsOver(t *testing.T) {
	w := begun(t)
	odd := func(fields ...string) state.HostDrift {
		d := state.HostDrift{Response: drift.End, Cause: "because"}
		for _, f := range fields {
			d.Findings = append(d.Findings, instance.Finding{Kind: "stray", Field: f, Found: "a process"})
		}
		return d
	}
	over := func(keys ...string) state.HostResolved {
		return state.HostResolved{Keys: keys, How: "ended", Since: start}
	}
	w.must(t, "", odd("a", "b"))
	w.must(t, "", odd("c"))
	w.must(t, "", over("stray b"))
	for what, data := range map[string]state.Data{"found again": odd("a"), "over twice": over("stray b"), "over in part": over("stray a", "stray z")} {
		if err := w.try(w.entry("", data)); !errors.Is(err, fault.Conflict) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	list := w.now.Host().Open
	if len(list) != 2 || list[0].Finding.Field != "a" || list[1].Finding.Field != "c" || list[1].Entry != 2 || list[1].Response != drift.End || list[1].Since.IsZero() {
		t.Errorf("open: %+v", list)
	}
	again, err := state.DecodeState(encode(t, w.now), w.lookup)
	if err != nil || len(again.Host().Open) != 2 {
		t.Errorf("read back: %+v, %v", again.Host(), err)
	}
	for what, data := range map[string]state.Data{
		"nothing": odd(), "twice": odd("x", "x"), "many": odd("a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q"),
		"response": state.HostDrift{Findings: odd("x").Findings, Response: "replace", Cause: "because"}, "how": state.HostResolved{Keys: []string{"stray a"}, Since: start},
	} {
		if _, err := state.Encode(w.entry("", data)); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v", what, err)
		}
	}
}
