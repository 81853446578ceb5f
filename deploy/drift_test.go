package deploy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

func TestInstanceThatDiffersIsReplacedBesideAndRecordedOnce(t *testing.T) {
	s := running(settings, "web×2=a")
	s.active = map[instance.ID]int64{}
	s.differ("web-1", "limit", "user")
	s.rest()
	s.want(t, "web: a×2 a×1! a:100", "detected web-1", "create web-3=a")
	if i := s.env.Instances["web-1"]; !s.env.Serving(i) {
		t.Error("it has no traffic, although its replacement is not healthy")
	}
	taint, _ := s.env.Instances["web-1"].Tainted()
	if taint.By != ByDrift || taint.Cause != "limit: b instead of a and 1 more" || !taint.Until.IsZero() {
		t.Errorf("taint %+v", taint)
	}
	s.rest()
	s.want(t, "web: a×2 a×1! a:100")
	s.differ("web-1", "limit", "port")
	s.rest()
	s.want(t, "web: a×2 a×1! a:100", "detected web-1")
	s.see(instance.Passing)
	s.rest()
	s.want(t, "web: a×2 a:100", "healthy web-3", "retire web-1", "resolved web-1", "gone web-1")
	over := s.last(Settled)
	if over.Resolution != Replaced || !slices.Equal(over.Successors, []instance.ID{"web-3"}) || !slices.Equal(over.Keys, []string{"limit ", "user ", "port "}) {
		t.Errorf("resolved %+v", over)
	}
}

// What a new instance does not heal is not tried without end: the third replacement after each other is the last at once.
func TestReplacingWhatDiffersAgainAndAgainSlowsDown(t *testing.T) {
	s := running(settings, "web×1=a")
	s.active = map[instance.ID]int64{}
	for n, wait := range []time.Duration{0, 0, 0, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 10 * time.Minute, 10 * time.Minute} {
		id := instance.ID(fmt.Sprintf("web-%d", n+1))
		s.after(time.Second)
		s.differ(id, "port")
		s.rest()
		taint, ok := s.env.Instances[id].Tainted()
		if !ok || wait == 0 && !taint.Until.IsZero() || wait > 0 && !taint.Until.Equal(s.now.Add(wait)) {
			t.Fatalf("%s: taint %+v, want it to wait %v", id, taint, wait)
		}
		s.after(wait).rest()
		s.see(instance.Passing)
		s.rest()
	}
}

func TestInstancesThatDifferForOneReasonCountOnce(t *testing.T) {
	s := running(settings, "web×8=a")
	s.active = map[instance.ID]int64{}
	for n := range 8 {
		s.differ(instance.ID(fmt.Sprintf("web-%d", n+1)), "root")
	}
	s.rest()
	for id, i := range s.env.Instances {
		if taint, ok := i.Tainted(); ok && !taint.Until.IsZero() {
			t.Errorf("%s waits until %v", id, taint.Until)
		}
	}
}

func TestAnAlertLeavesTheInstanceAsItIs(t *testing.T) {
	s := running(settings, "web×2=a")
	s.onDrift = spec.Alert
	s.head(settings, "web×2=a")
	s.rest()
	s.want(t, "web: a×2 a:100", "complete g2") // that the rule is another replaces no instance
	s.differ("web-1", "limit")
	s.rest()
	s.want(t, "web: a×2 a:100", "detected web-1")
	if i := s.env.Instances["web-1"]; !s.env.Serving(i) || len(i.Taints) > 0 {
		t.Errorf("instance %+v", i)
	}
	s.after(time.Minute)
	s.mend("web-1")
	s.rest()
	s.want(t, "web: a×2 a:100", "resolved web-1")
	if over := s.last(Settled); over.Resolution != Ceased || over.OpenMillis != 60_000 || len(over.Successors) > 0 {
		t.Errorf("resolved %+v", over)
	}
	s.rest()
	s.want(t, "web: a×2 a:100")
}

func TestAStricterRuleIsForWhatDiffersAlready(t *testing.T) {
	s := newScene()
	s.active = map[instance.ID]int64{}
	s.onDrift = spec.Alert
	s.head(settings, "web×1=a")
	s.thrive(time.Minute)
	s.differ("web-1", "limit")
	s.rest()
	s.steps()
	s.onDrift = ""
	s.head(settings, "web×1=a")
	s.rest()
	s.want(t, "web: a×1 a×1! a:100", "detected web-1", "create web-2=a", "complete g2")
}

// What comes and goes makes ever fewer entries.
func TestWhatComesAndGoesIsResolvedLessOften(t *testing.T) {
	s := newScene()
	s.onDrift = spec.Alert
	s.head(settings, "web×1=a")
	s.thrive(time.Minute)
	s.steps()
	for range 30 * 60 { // for an hour
		s.after(time.Second)
		s.differ("web-1", "port")
		s.rest()
		s.after(time.Second)
		s.mend("web-1")
		s.rest()
	}
	if n := len(strings.Split(s.steps(), "\n")); n > 30 {
		t.Errorf("%d entries", n)
	}
}

// Whatever a finding says, it fits into an entry of the ledger.
func TestFindingsFitIntoAnEntry(t *testing.T) {
	s := running(settings, "web×1=a")
	o := s.host["web-1"]
	for n := range 40 {
		o.Drift = append(o.Drift, instance.Finding{Kind: "mount", Field: fmt.Sprint(n, strings.Repeat("\x01", 5000)), Found: strings.Repeat("é\x02", 100_000)})
	}
	s.host["web-1"] = o
	s.rest()
	for _, st := range s.decided {
		if b, err := json.Marshal(st); err != nil || len(b) > 48<<10 {
			t.Errorf("%s has %d bytes", st.Kind, len(b))
		}
	}
	if n := len(s.env.Instances["web-1"].Drift); n != 40 {
		t.Errorf("%d of 40 recorded", n)
	}
}

func TestADestroyedEnvironmentGoesByTheRuleThatItHad(t *testing.T) {
	s := newScene()
	s.onDrift = spec.Alert
	s.head(settings, "web×1=a")
	s.thrive(time.Minute)
	s.head(settings)
	if got := s.env.response(); got != spec.Alert {
		t.Errorf("response %q", got)
	}
}
