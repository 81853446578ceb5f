package state_test

import (
	"errors"
	"testing"
	"time"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
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

func TestWhenWhatRunsIsMeasuredNext(t *testing.T) {
	const day, week = 24 * time.Hour, 7 * 24 * time.Hour
	began := start.Add(time.Hour)
	runs := func(name spec.EnvName, m *state.Measured) state.Environment {
		return state.Environment{Environment: deploy.Environment{Name: name, Head: deploy.Generation{Number: 1, Release: digest.Of(nil)}}, Since: began, Measured: m}
	}
	measured := func(after time.Duration, result string) *state.Measured {
		return &state.Measured{At: began.Add(after), Result: result, WholeAt: began.Add(after)}
	}
	never := runs("prod", nil).MeasureAt(day)
	if never.Before(began) || !never.Before(began.Add(day-day/10)) || !never.Equal(runs("prod", nil).MeasureAt(day)) || never.Equal(runs("staging", nil).MeasureAt(day)) {
		t.Errorf("first at %s", never)
	}
	for name, c := range map[string]struct {
		m     *state.Measured
		every time.Duration
		want  time.Duration // after it began
	}{
		"a day after, waiting included":      {measured(time.Hour, attest.AsReleased), day, time.Hour + day - day/10},
		"a week":                             {measured(time.Hour, attest.AsReleased), week, time.Hour + week - week/10},
		"what differs is no reason to hurry": {measured(time.Hour, attest.Differs), day, time.Hour + day - day/10},
		"what failed is tried again":         {measured(time.Hour, attest.NotMeasured), day, 2 * time.Hour},
		"and no later than otherwise":        {measured(time.Hour, attest.NotMeasured), time.Minute, time.Hour + 54*time.Second},
	} {
		if got := runs("prod", c.m).MeasureAt(c.every); !got.Equal(began.Add(c.want)) {
			t.Errorf("%s: %s after it began, want %s", name, got.Sub(began), c.want)
		}
	}
	for name, env := range map[string]state.Environment{
		"destroyed":    {Environment: deploy.Environment{Name: "prod", Head: deploy.Generation{Number: 2}}},
		"never a head": {Environment: deploy.Environment{Name: "prod"}},
		"the platform": runs(platform.Env, nil),
	} {
		if !env.MeasureAt(day).IsZero() || env.MeasureLate(day, start.AddDate(1, 0, 0)) {
			t.Errorf("%s: it is to be measured", name)
		}
	}
}

func TestWhatWasNotMeasuredForLongIsLate(t *testing.T) {
	const day = 24 * time.Hour
	env := state.Environment{Environment: deploy.Environment{Name: "prod", Head: deploy.Generation{Number: 1, Release: digest.Of(nil)}}, Since: start}
	for _, c := range []struct {
		every, after time.Duration
		whole        time.Duration // measured that long after; 0: never
		late         bool
	}{
		{day, 2 * day, 0, false}, {day, 2*day + 1, 0, true},
		{7 * day, 7 * day, 0, false}, {7 * day, 7*day + 1, 0, true}, // a week at the most, whatever the rule says
		{day, 4 * day, 3 * day, false}, {day, 6 * day, 3 * day, true},
	} {
		e := env
		if c.whole > 0 {
			e.Measured = &state.Measured{WholeAt: start.Add(c.whole), At: start.Add(c.after)} // and again since, in vain
		}
		if got := e.MeasureLate(c.every, start.Add(c.after)); got != c.late {
			t.Errorf("every %s, after %s, measured after %s: late %v", c.every, c.after, c.whole, got)
		}
	}
}
