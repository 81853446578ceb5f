package deploy

import (
	"testing"
	"time"

	"github.com/invarhq/invar/instance"
)

func TestTaintedInstanceIsReplacedWhenItsSessionEnds(t *testing.T) {
	s := running(settings, "web×2=a")
	s.active = map[instance.ID]int64{}
	s.enter("web-1", "x", 30*time.Minute)
	s.rest()
	s.want(t, "web: a×2 a:100")
	s.after(5*time.Minute).leave("web-1", "x")
	s.rest()
	s.want(t, "web: a×2 a×1! a:100", "create web-3=a")
	if i := s.env.Instances["web-1"]; !s.env.Serving(i) {
		t.Error("it has no traffic, although its replacement is not healthy")
	}
	s.see(instance.Passing)
	s.rest()
	s.want(t, "web: a×2 a:100", "healthy web-3", "retire web-1", "gone web-1")
}

func TestTaintedInstanceIsReplacedAtItsDeadline(t *testing.T) {
	s := running(settings, "web×1=a")
	s.enter("web-1", "x", 30*time.Minute)
	if at := Wake(s.env, s.have(), s.now); !at.Equal(s.now.Add(30 * time.Minute)) {
		t.Errorf("wakes at %v", at)
	}
	s.after(30*time.Minute - time.Millisecond).rest()
	s.want(t, "web: a×1 a:100")
	s.after(time.Millisecond).rest()
	s.want(t, "web: a×1 a×1! a:100", "create web-2=a")
}

func TestForeignProcessTaintsOnceAndAtOnce(t *testing.T) {
	s := running(settings, "web×1=a")
	s.active = map[instance.ID]int64{}
	s.intrude("web-1")
	s.rest()
	s.want(t, "web: a×1 a×1! a:100", "taint web-1", "create web-2=a")
	taint, _ := s.env.Instances["web-1"].Tainted()
	if taint.By != ByForeign || taint.Cause != "process 4711 (sh, user 0) in its namespaces net" || !taint.Since.Equal(s.now) {
		t.Errorf("taint %+v", taint)
	}
	s.see(instance.Passing)
	s.rest()
	s.want(t, "web: a×1 a:100", "healthy web-2", "retire web-1", "gone web-1")
}

func TestAllSessionsAreWaitedFor(t *testing.T) {
	s := running(settings, "web×1=a")
	s.enter("web-1", "x", 30*time.Minute)
	s.enter("web-1", "y", 10*time.Minute)
	s.leave("web-1", "x")
	s.after(9 * time.Minute).rest()
	s.want(t, "web: a×1 a:100")
	s.intrude("web-1")
	s.rest()
	s.want(t, "web: a×1 a×1! a:100", "taint web-1", "create web-2=a")
}

func TestTaintedVolumeEndsBeforeItsSuccessorBegins(t *testing.T) {
	s := running(settings, "db×1=a*")
	s.enter("db-1", "x", time.Minute)
	s.after(time.Minute).rest()
	s.want(t, "db: a×1! a:100", "retire db-1", "gone db-1", "create db-2=a")
}

func TestTaintedWarmInstanceGetsNoTrafficAgain(t *testing.T) {
	s := running(settings, "web×2=a")
	s.head(settings, "web×2=b")
	s.thrive(time.Minute)
	s.steps()
	s.active = map[instance.ID]int64{}
	s.enter("web-1", "x", 30*time.Minute)
	s.head(settings, "web×2=a")
	s.rest()
	s.want(t, "web: a×2 a×1! b×2 b:100", "create web-5=a")
	s.see(instance.Passing)
	s.rest()
	s.after(10 * time.Second).rest()
	s.want(t, "web: a×3 b×2 a:100", "healthy web-5", "shift web a:100", "complete g3")
	if i := s.env.Instances["web-1"]; s.env.Serving(i) || !i.Live() {
		t.Errorf("the tainted one: serves %v, live %v; its session is still open", s.env.Serving(i), i.Live())
	}
	s.leave("web-1", "x")
	s.rest()
	s.want(t, "web: a×2 b×2 a:100", "retire web-1", "gone web-1")
}

func TestTaintedCanaryIsReplacedBeforeItGoes(t *testing.T) {
	canary := settings
	canary.Canary = []int{50}
	s := running(canary, "web×2=a")
	s.head(canary, "web×2=b")
	s.rest()
	s.see(instance.Passing)
	s.rest()
	s.after(10 * time.Second).rest()
	s.see(instance.Passing)
	s.rest()
	s.steps()
	s.intrude("web-3")
	s.rest()
	s.want(t, "web: a×2 b×2 b×1! b:50 a:50", "taint web-3", "create web-5=b")
	s.see(instance.Passing)
	s.rest()
	s.want(t, "web: (b×1) a×2 b×2 b:50 a:50", "healthy web-5", "retire web-3")
}
