package deploy

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/instance"
)

func (s *scene) want(t *testing.T, picture string, steps ...string) {
	t.Helper()
	if got := s.picture(); got != picture {
		t.Errorf("picture %q, want %q", got, picture)
	}
	if d := cmp.Diff(strings.Join(steps, "\n"), s.steps()); d != "" {
		t.Errorf("steps (-want +got):\n%s", d)
	}
}

func (s *scene) after(d time.Duration) *scene {
	s.now = s.now.Add(d)
	return s
}

func TestBlueGreenSwitchesWhenAllAreHealthyLongEnough(t *testing.T) {
	s := running(settings, "web×3=a")
	s.head(settings, "web×3=b")
	s.rest()
	s.want(t, "web: a×3 b×2! a:100", "create web-4=b", "create web-5=b")
	s.see(instance.Passing, "web-4")
	s.rest()
	s.want(t, "web: a×3 b×1 b×2! a:100", "healthy web-4", "create web-6=b")
	s.see(instance.Passing)
	s.rest()
	s.want(t, "web: a×3 b×3 a:100", "healthy web-5", "healthy web-6")
	s.after(9 * time.Second).rest()
	s.want(t, "web: a×3 b×3 a:100")
	s.after(time.Second).rest()
	s.want(t, "web: a×3 b×3 b:100", "shift web b:100", "complete g2")
	s.after(15*time.Minute - 1).rest()
	s.want(t, "web: a×3 b×3 b:100")
	s.after(1).rest()
	s.want(t, "web: (a×3) b×3 b:100", "retire web-1", "retire web-2", "retire web-3")
	s.active = map[instance.ID]int64{"web-2": 1}
	s.rest()
	s.want(t, "web: (a×1) b×3 b:100", "gone web-1", "gone web-3")
	s.after(30 * time.Second).rest()
	s.want(t, "web: b×3 b:100", "gone web-2")
}

func TestCanaryHoldsEachStepAndNeedsItsShareOfInstances(t *testing.T) {
	canary := settings
	canary.Canary = []int{10, 50}
	canary.MaxParallel = 9
	s := running(settings, "web×4=a")
	s.head(canary, "web×4=b")
	s.rest()
	s.see(instance.Passing)
	s.rest()
	s.want(t, "web: a×4 b×1 a:100", "create web-5=b", "healthy web-5")
	s.after(10 * time.Second).rest()
	s.want(t, "web: a×4 b×1 b×1! b:10 a:90", "shift web b:10 a:90", "create web-6=b")
	s.see(instance.Passing)
	s.rest()
	s.want(t, "web: a×4 b×2 b:10 a:90", "healthy web-6")
	s.after(10 * time.Second).rest()
	s.want(t, "web: a×4 b×2 b×2! b:50 a:50", "shift web b:50 a:50", "create web-7=b", "create web-8=b")
	s.see(instance.Passing)
	s.see(instance.Failing, "web-5")
	s.after(20 * time.Second).rest()
	s.see(instance.Passing)
	s.rest()
	s.want(t, "web: (b×1) a×4 b×4 b:50 a:50",
		"failing web-5", "healthy web-7", "healthy web-8", "create web-9=b", "retire web-5", "healthy web-9")
	s.after(10 * time.Second).rest()
	s.want(t, "web: (b×1) a×4 b×4 b:100", "shift web b:100", "complete g2")
}

func TestRollbackOntoWarmInstancesSwitchesInOneTurn(t *testing.T) {
	canary := settings
	canary.Canary = []int{10, 50}
	s := running(canary, "web×3=a")
	s.head(canary, "web×3=b")
	s.thrive(5 * time.Minute)
	s.steps()
	s.head(canary, "web×3=a")
	s.decide()
	s.want(t, "web: a×3 b×3 a:100", "shift web a:100", "complete g3")
}

func TestComponentWithVolumeEndsBeforeItsSuccessorBegins(t *testing.T) {
	s := running(settings, "db×1=a*")
	s.head(settings, "db×1=b*")
	s.active = map[instance.ID]int64{"db-1": 1} // connections of a pool, which would never end by themselves
	s.rest()
	s.want(t, "db: b×1!", "shift db", "retire db-1", "gone db-1", "create db-2=b")
	s.see(instance.Passing)
	s.rest()
	s.after(10 * time.Second).rest()
	s.want(t, "db: b×1 b:100", "healthy db-2", "shift db b:100", "complete g2")
}

func TestUsedComponentsComeFirstAndUnchangedOnesStay(t *testing.T) {
	s := running(settings, "db×1=a", "api×1=a >db", "web×1=a >api", "job×1=a")
	s.head(settings, "db×1=b", "api×1=a >db", "web×1=b >api", "job×1=b")
	s.rest()
	s.see(instance.Passing)
	s.rest()
	s.want(t, "api: a×1 a:100; db: a×1 b×1 a:100; job: a×1 b×1 a:100; web: a×1 b×1 a:100",
		"create db-5=b", "create job-6=b", "create web-7=b", "healthy db-5", "healthy job-6", "healthy web-7")
	s = running(settings, "db×1=a", "web×1=a >db")
	s.head(settings, "db×1=b", "web×1=b >db")
	s.rest()
	s.want(t, "db: a×1 b×1! a:100; web: a×1 a:100", "create db-3=b")
	s.see(instance.Passing)
	s.rest()
	s.after(10 * time.Second).rest()
	s.want(t, "db: a×1 b×1 b:100; web: a×1 b×1! a:100", "healthy db-3", "shift db b:100", "create web-4=b")
}

func TestRemovedComponentGoesLast(t *testing.T) {
	s := running(settings, "db×1=a", "web×1=a >db")
	s.head(settings, "web×1=b")
	s.rest()
	s.want(t, "db: a×1 a:100; web: a×1 b×1! a:100", "create web-3=b")
	s.see(instance.Passing)
	s.rest()
	s.after(10 * time.Second).rest()
	s.want(t, "db: a×1; web: a×1 b×1 b:100", "healthy web-3", "shift web b:100", "shift db", "complete g2")
	s.after(15 * time.Minute).rest()
	s.active = map[instance.ID]int64{}
	s.rest()
	s.want(t, "web: b×1 b:100", "retire db-1", "retire web-2", "gone db-1", "gone web-2")
}

func TestThirdFailureRevertsToTheLastCompletedRelease(t *testing.T) {
	s := running(settings, "web×1=a")
	s.head(settings, "web×1=bad")
	for range 3 {
		s.rest()
		s.exit(instance.ID("web-"+string(rune('0'+s.ids))), 1)
		s.rest()
		s.after(2 * time.Second)
	}
	s.want(t, "web: a×1 a:100",
		"create web-2=bad", "exit web-2", "create web-3=bad", "gone web-2", "exit web-3", "gone web-3", "create web-4=bad",
		"exit web-4", "fail g2", "revert g3", "complete g3", "gone web-4")
	if got := s.env.History[1].Cause; got != "web: failed 3 times running: exited with code 1" {
		t.Errorf("cause %q", got)
	}
}

func TestInstanceThatIsNotHealthyByItsDeadlineFailsTheRollout(t *testing.T) {
	s := running(settings, "web×1=a")
	s.head(settings, "web×1=stuck")
	s.rest()
	s.see(instance.Failing, "web-2")
	s.after(5*time.Minute - 1).rest()
	s.want(t, "web: a×1 stuck×1! a:100", "create web-2=stuck")
	s.after(1).rest()
	s.want(t, "web: a×1 a:100", "failing web-2", "fail g2", "revert g3", "complete g3", "retire web-2", "gone web-2")
}

func TestRolloutWithoutProgressFails(t *testing.T) {
	patient := settings
	patient.HealthyDeadlineMillis = 0
	s := running(settings, "web×1=a")
	s.head(patient, "web×1=slow")
	s.rest()
	s.after(10*time.Minute + 10*time.Second).rest()
	if h := s.env.Head; h.Number != 3 || h.Outcome != Completed {
		t.Errorf("head is generation %d, %s; want 3, completed\n%s", h.Number, h.Outcome, s.steps())
	}
}

func TestWithoutAutoRevertTheOldKeepsServingAndIsHealed(t *testing.T) {
	manual := settings
	manual.AutoRevert = false
	manual.Canary = []int{50}
	s := running(settings, "web×2=a")
	s.head(manual, "web×2=b")
	s.rest()
	s.see(instance.Passing)
	s.rest()
	s.after(10 * time.Second).rest()
	s.want(t, "web: a×2 b×1 b×1! b:50 a:50", "create web-3=b", "healthy web-3", "shift web b:50 a:50", "create web-4=b")
	s.after(5 * time.Minute).rest()
	s.active = map[instance.ID]int64{}
	s.rest()
	s.want(t, "web: a×2 a:100", "failing web-4", "fail g2", "shift web a:100", "retire web-3", "retire web-4", "gone web-4", "gone web-3")
	s.exit("web-1", 1)
	s.rest()
	s.want(t, "web: a×1 a×1! a:100", "exit web-1", "create web-5=a", "gone web-1")
}

func TestFirstReleaseThatFailsStaysFailed(t *testing.T) {
	s := newScene()
	s.head(settings, "web×1=bad")
	for range 5 {
		s.rest()
		for id := range s.host {
			s.exit(id, 1)
		}
		s.rest()
		s.after(time.Minute)
	}
	if h := s.env.Head; h.Number != 1 || h.Outcome != Broken || s.picture() != "" || s.ids != 3 {
		t.Errorf("head is generation %d, %s, after %d instances; picture %q", h.Number, h.Outcome, s.ids, s.picture())
	}
}

func TestHealingBacksOffAndForgetsAfterSteadyTimes(t *testing.T) {
	s := running(settings, "web×1=a")
	var waits []time.Duration
	last := instance.ID("web-1")
	for range 9 {
		s.exit(last, 1)
		began := s.now
		s.rest()
		for len(s.env.Instances) == 0 {
			s.now = Wake(s.env, s.have(), s.now)
			s.rest()
		}
		waits = append(waits, s.now.Sub(began))
		last = instance.ID(strings.Fields(s.log[len(s.log)-1])[1])
		for id := range s.env.Instances {
			last = id
		}
		s.see(instance.Passing)
		s.rest()
	}
	sec := time.Second
	if d := cmp.Diff([]time.Duration{0, sec, 2 * sec, 4 * sec, 8 * sec, 16 * sec, 32 * sec, 60 * sec, 60 * sec}, waits); d != "" {
		t.Errorf("waits (-want +got):\n%s", d)
	}
	s.after(10*time.Minute).exit(last, 1)
	s.rest()
	if len(s.env.Instances) != 1 {
		t.Errorf("not replaced at once after a steady time: %s", s.picture())
	}
}

func TestInstancesThatFailTogetherCountOnce(t *testing.T) {
	s := running(settings, "web×4=a")
	for id := range s.host {
		s.exit(id, 137)
	}
	s.rest()
	if got := s.picture(); got != "web: a×4! a:100" {
		t.Errorf("picture %q, want four replacements at once", got)
	}
}

func TestFailingInstanceStaysUntilItsReplacementIsHealthy(t *testing.T) {
	s := running(settings, "web×1=a")
	s.see(instance.Failing)
	s.rest()
	s.want(t, "web: a×2! a:100", "failing web-1", "create web-2=a")
	s.see(instance.Passing, "web-2")
	s.active = map[instance.ID]int64{}
	s.rest()
	s.want(t, "web: a×1 a:100", "healthy web-2", "retire web-1", "gone web-1")
}

func TestRecoveredInstanceMakesItsReplacementSuperfluous(t *testing.T) {
	s := running(settings, "web×1=a")
	s.see(instance.Failing)
	s.rest()
	s.see(instance.Passing, "web-1")
	s.rest()
	s.want(t, "web: a×1 a:100", "failing web-1", "create web-2=a", "healthy web-1", "retire web-2", "gone web-2")
}

func TestSupersededRolloutsInstancesAreUsedOrRetired(t *testing.T) {
	s := running(settings, "web×2=a", "api×1=a")
	s.head(settings, "web×2=b", "api×1=b")
	s.rest()
	s.steps()
	s.head(settings, "web×2=b", "api×1=c")
	s.rest()
	s.want(t, "api: a×1 c×1! a:100; web: a×2 b×2! a:100", "create api-7=c", "retire api-4", "gone api-4")
}

func TestScaleLeavesTheOthersAlone(t *testing.T) {
	s := running(settings, "web×2=a")
	s.head(settings, "web×3=a")
	s.rest()
	s.want(t, "web: a×2 a×1! a:100", "create web-3=a")
	s.head(settings, "web×1=a")
	s.active = map[instance.ID]int64{}
	s.rest()
	s.want(t, "web: a×1 a:100", "retire web-3", "retire web-1", "complete g3", "gone web-1", "gone web-3")
}

func TestRoutesFollowTheTraffic(t *testing.T) {
	s := running(settings, "web×1=a")
	s.head(settings, "api×1=a")
	hosts := func() (list []string) {
		for _, d := range Traffic(s.env, nil).Routes {
			list = append(list, d.Host)
		}
		return list
	}
	if d := cmp.Diff([]string{"web", "api"}, hosts()); d != "" {
		t.Errorf("while rolling out (-want +got):\n%s", d)
	}
	s.thrive(time.Minute)
	if d := cmp.Diff([]string{"api"}, hosts()); d != "" {
		t.Errorf("afterwards (-want +got):\n%s", d)
	}
}

func TestFailingInstanceWithVolumeIsGivenTimeThenReplacedInItsPlace(t *testing.T) {
	s := running(settings, "db×1=a*")
	s.active = map[instance.ID]int64{}
	s.see(instance.Failing)
	s.rest()
	s.after(5*time.Minute - 1).rest()
	s.want(t, "db: a×1! a:100", "failing db-1")
	s.after(1).rest()
	s.want(t, "db: a×1! a:100", "retire db-1", "gone db-1", "create db-2=a")
}

func TestSecondRevertDoesNotComeAfterTheFirst(t *testing.T) {
	s := running(settings, "db×1=a*")
	s.head(settings, "db×1=bad*")
	for range 20 { // neither lives any more
		s.rest()
		for id := range s.host {
			s.exit(id, 1)
		}
		s.rest()
		s.after(time.Minute)
	}
	if h := s.env.Head; h.Number != 3 || h.Outcome != Broken {
		t.Errorf("head is generation %d, %s; want 3, failed\n%s", h.Number, h.Outcome, s.steps())
	}
}

func TestNewHeadOverCanarySharesWithTheOneThatServes(t *testing.T) {
	canary := settings
	canary.Canary, canary.MinHealthyMillis = []int{20}, 1000
	s := running(canary, "web×5=a")
	s.head(canary, "web×5=b")
	s.rest()
	s.see(instance.Passing)
	s.rest()
	s.after(time.Second).rest()
	s.head(canary, "web×5=c")
	s.steps()
	s.rest()
	s.want(t, "web: a×5 b×1 c×1! b:20 a:80", "create web-9=c", "retire web-7", "retire web-8", "gone web-7", "gone web-8")
	s.see(instance.Passing)
	s.rest()
	s.after(time.Second).rest()
	s.want(t, "web: (b×1) a×5 c×1 c×2! c:20 a:80", "healthy web-9", "shift web c:20 a:80", "retire web-6", "create web-10=c", "create web-11=c")
}

func TestStepsOfAnotherStateAreRefused(t *testing.T) {
	s := running(settings, "web×1=a")
	digest := s.env.Head.Digests["web"]
	for _, st := range []Step{
		{Kind: Create},
		{Kind: Create, Instance: &instance.Identity{ID: "web-1", Env: "prod", Component: "web", Digest: digest, Generation: 1}},
		{Kind: Create, Instance: &instance.Identity{ID: "web-2", Env: "test", Component: "web", Digest: digest, Generation: 1}},
		{Kind: Create, Instance: &instance.Identity{ID: "web-2", Env: "prod", Component: "web", Digest: "sha256:0", Generation: 1}},
		{Kind: Create, Instance: &instance.Identity{ID: "web-2", Env: "prod", Component: "web", Digest: digest, Generation: 2}},
		{Kind: Healthy, ID: "web-1"}, {Kind: Healthy, ID: "web-9"}, {Kind: Gone, ID: "web-9"}, {Kind: Retire},
		{Kind: Shift, Component: "web", Shares: []Share{{digest, 90}}},
		{Kind: Shift, Component: "web", Shares: []Share{{digest, 50}, {digest, 50}}},
		{Kind: Shift, Component: "db", Shares: []Share{{digest, 100}}},
		{Kind: Shift}, {Kind: Done, Generation: 1}, {Kind: Failed, Generation: 2}, {Kind: Revert, Generation: 2, Release: s.env.Head.Release}, {Kind: "instance.paint"},
	} {
		if _, err := s.env.Apply(st, s.now); err == nil {
			t.Errorf("%s %+v is accepted", st.Kind, st)
		}
	}
}

func TestCanaryOverACanaryReplacesTheCapacityThatItTakes(t *testing.T) {
	canary := settings
	canary.Canary, canary.MinHealthyMillis, canary.MaxParallel = []int{40}, 0, 9
	s := running(canary, "web×5=a")
	s.head(canary, "web×5=b")
	s.rest()
	s.see(instance.Passing)
	s.decide() // b has 40 percent and two instances
	for _, id := range []instance.ID{"web-1", "web-2"} {
		s.exit(id, 1)
	}
	canary.Canary = []int{20} // one instance, were it not for b's two that go
	s.head(canary, "web×5=c")
	s.decide()
	s.steps()
	if got, want := s.picture(), "web: (a×2) a×3 a×2! b×2 c×2! b:40 a:60"; got != want {
		t.Fatalf("picture %q, want %q", got, want)
	}
	s.act()
	for id, i := range s.env.Instances {
		if i.Digest == s.env.Head.Digests["web"] {
			s.see(instance.Passing, id)
		}
	}
	s.decide()
	serving := 0
	for _, i := range s.env.Instances {
		if s.env.Serving(i) {
			serving++
		}
	}
	if serving < 5 {
		t.Errorf("%d serve, want at least 5: %s", serving, s.picture())
	}
}

// The platform's definition runs nothing: its rollout is over in the turn in which it begins.
func TestHeadWithoutComponentsCompletesAtOnce(t *testing.T) {
	s := newScene()
	s.head(settings)
	s.rest()
	s.want(t, "", "complete g1")
	s.head(settings)
	s.rest()
	s.want(t, "", "complete g2")
}
