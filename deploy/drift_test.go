package deploy

import (
	"fmt"
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
	s.want(t, "web: a×2 a:100", "healthy web-3", "retire web-1", "gone web-1")
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
