package state_test

import (
	"errors"
	"testing"
	"time"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/state"
)

// verify records a measurement as a server does, or as an old one did.
func (w *world) verify(d state.Verify) error {
	e := w.entry("prod", d)
	if d.Result != "" {
		e.Body = &state.Body{Digest: digest.Of([]byte("statement")), Size: 9, Type: attest.TypeEnvelope}
	}
	return w.try(e)
}

func TestAnEnvironmentKnowsWhenItWasMeasuredLastAndWhenAllOfItWas(t *testing.T) {
	w := begun(t)
	if err := w.apply(t, "shop", "prod", component("web", "1")); err != nil {
		t.Fatal(err)
	}
	since := w.at
	check := func(what string, d state.Verify, result string, whole bool) {
		t.Helper()
		w.at = w.at.Add(time.Hour)
		before := w.env(t, "prod")
		if err := w.verify(d); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		env := w.env(t, "prod")
		m := env.Measured
		if m == nil || m.Result != result || !m.At.Equal(w.at) || m.Entry != w.now.Size()-1 || m.WholeAt.Equal(w.at) != whole || m.WholeAt.IsZero() || m.Bad != len(d.Differ)+d.More {
			t.Errorf("%s: got %+v", what, m)
		}
		if env.Seq != before.Seq || !env.Since.Equal(since) {
			t.Errorf("%s: a measurement moved the environment to %d, since %s", what, env.Seq, env.Since)
		}
	}
	differ := []instance.ID{"web-aaaaaaaaaa"}
	check("old, good", state.Verify{Instances: 1}, attest.AsReleased, true)
	check("old, bad", state.Verify{Instances: 1, Differ: differ}, attest.Differs, true)
	check("good", state.Verify{Instances: 1, Generation: 1, Result: attest.AsReleased}, attest.AsReleased, true)
	check("nothing", state.Verify{Generation: 1, Result: attest.NotMeasured}, attest.NotMeasured, false)
	check("bad", state.Verify{Instances: 2, Differ: differ, More: 1, Generation: 1, Result: attest.Differs}, attest.Differs, true)

	w.must(t, "prod", state.Destroy{App: "shop", Generation: 2, Base: 1})
	w.at = w.at.Add(time.Hour)
	if err := w.apply(t, "shop", "prod", component("web", "2")); err != nil {
		t.Fatal(err)
	}
	if env := w.env(t, "prod"); env.Measured != nil || !env.Since.Equal(w.at) {
		t.Errorf("what runs anew was not measured yet: %+v, since %s", env.Measured, env.Since)
	}
}

func TestAVerificationThatDoesNotGoTogetherIsNoEntry(t *testing.T) {
	body := &state.Body{Digest: digest.Of(nil), Size: 1, Type: attest.TypeEnvelope}
	differ := []instance.ID{"web-aaaaaaaaaa"}
	for name, c := range map[string]struct {
		d    state.Verify
		body *state.Body
	}{
		"more differ than were measured": {state.Verify{Instances: 1, Differ: differ, More: 1, Generation: 1, Result: attest.Differs}, body},
		"good, and one differs":          {state.Verify{Instances: 1, Differ: differ, Generation: 1, Result: attest.AsReleased}, body},
		"bad, and none differs":          {state.Verify{Instances: 1, Generation: 1, Result: attest.Differs}, body},
		"a result that there is not":     {state.Verify{Instances: 1, Generation: 1, Result: "fine"}, body},
		"no generation":                  {state.Verify{Instances: 1, Result: attest.AsReleased}, body},
		"a generation, and no result":    {state.Verify{Instances: 1, Generation: 1}, nil},
		"no statement":                   {state.Verify{Instances: 1, Generation: 1, Result: attest.AsReleased}, nil},
		"a statement of some other kind": {state.Verify{Instances: 1, Generation: 1, Result: attest.AsReleased}, &state.Body{Digest: body.Digest, Size: 1, Type: "text/plain"}},
		"a negative number of them":      {state.Verify{Instances: -1, Generation: 1, Result: attest.AsReleased}, body},
	} {
		e := newWorld().entry("prod", c.d)
		e.Body = c.body
		if _, err := state.Encode(e); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
