package deploy

import (
	"strings"
	"testing"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

func frozenScene(settings release.Rollout, components ...string) *scene {
	s := newScene()
	s.onDrift = spec.Freeze
	s.active = map[instance.ID]int64{}
	s.head(settings, components...)
	s.thrive(time.Minute)
	s.steps()
	return s
}

func TestInstanceThatDiffersIsFrozenAndReplaced(t *testing.T) {
	s := frozenScene(settings, "web×2=a")
	s.active["web-1"] = 1
	s.differ("web-1", "limit")
	s.rest()
	s.want(t, "web: a×2 a×1! a:100", "detected web-1", "freeze web-1", "create web-3=a")
	if i := s.env.Instances["web-1"]; s.env.Serving(i) {
		t.Error("it has traffic")
	}
	s.see(instance.Failing, "web-1") // its checks say nothing any more
	s.rest()
	s.want(t, "web: a×2 a×1! a:100")
	if at := Wake(s.env, s.have(), s.now); !at.Equal(s.now.Add(maxFreezeDrain)) {
		t.Errorf("wakes at %v, want when it had its time", at)
	}
	delete(s.active, "web-1") // what was under way is over
	s.rest()
	s.want(t, "web: a×1 a×1! a:100", "frozen web-1", "retire web-1", "resolved web-1", "gone web-1")
	if got := s.last(Frozen); got.Evidence != digest.Of(nil) || got.Bytes != 1 {
		t.Errorf("evidence %+v", got)
	}
	s.see(instance.Passing)
	s.rest()
	s.want(t, "web: a×2 a:100", "healthy web-3")
}

func TestTheLastThatServesIsFrozenWhenAnotherDoes(t *testing.T) {
	s := frozenScene(settings, "web×2=a")
	s.differ("web-1", "root")
	s.differ("web-2", "root")
	s.rest()
	s.want(t, "web: a×1 a×2! a:100", "detected web-1", "detected web-2", "freeze web-1", "create web-3=a", "create web-4=a",
		"frozen web-1", "retire web-1", "resolved web-1", "gone web-1")
	if !s.env.Serving(s.env.Instances["web-2"]) {
		t.Error("none serves")
	}
	s.see(instance.Passing, "web-3")
	s.rest()
	s.want(t, "web: a×1 a×1! a:100", "healthy web-3", "freeze web-2", "frozen web-2", "retire web-2", "resolved web-2", "gone web-2")
}

func TestTheOnlyOneIsFrozenAtOnce(t *testing.T) {
	s := frozenScene(settings, "web×1=a")
	s.differ("web-1", "root")
	s.decide()
	if s.env.Serving(s.env.Instances["web-1"]) {
		t.Error("it has traffic")
	}
}

// Also where all of them go because its volume gets other data.
func TestAnOwnerOfAVolumeIsFrozenBeforeItsVolumeGetsOtherData(t *testing.T) {
	s := frozenScene(settings, "db×1=a*!")
	s.head(settings, "db×1=b*!")
	s.thrive(time.Minute)
	s.kept = instance.Kept{} // its evidence takes longer than the copy
	s.differ("db-2", "root")
	s.restore(1)
	s.head(settings, "db×1=a*!")
	s.steps()
	s.thrive(time.Hour)
	steps := s.steps()
	if frozen, retired := strings.Index(steps, "frozen db-2"), strings.Index(steps, "retire db-2"); frozen < 0 || retired < frozen {
		t.Errorf("steps\n%s", steps)
	}
	if got, want := s.picture(), "db: a×1 a:100"; got != want {
		t.Errorf("it runs %q, want %q; steps\n%s", got, want, steps)
	}
}

func TestAnOwnerOfAVolumeIsFrozenBeforeItsSuccessorIsMade(t *testing.T) {
	s := frozenScene(settings, "db×1=a*")
	s.active["db-1"] = 1
	s.differ("db-1", "root")
	s.rest()
	s.want(t, "db: a×1! a:100", "detected db-1", "freeze db-1", "frozen db-1", "retire db-1", "resolved db-1", "gone db-1", "create db-2=a")
}

func TestWithoutEvidenceItIsReplacedNevertheless(t *testing.T) {
	s := frozenScene(settings, "web×2=a")
	s.kept = instance.Kept{}
	s.differ("web-1", "root")
	s.rest()
	s.see(instance.Passing, "web-3")
	s.rest()
	s.want(t, "web: a×3 a:100", "detected web-1", "freeze web-1", "create web-3=a", "healthy web-3")
	s.after(maxFreezeDrain + freezeLimit)
	s.rest()
	s.want(t, "web: a×2 a:100", "frozen web-1", "retire web-1", "resolved web-1", "gone web-1")
	if got := s.last(Frozen); got.Evidence != "" || got.Cause != "no evidence within 30s" {
		t.Errorf("%+v", got)
	}
}

// A rollout that retires an instance that waits to be frozen has it frozen before.
func TestARolloutTakesTheEvidenceWithIt(t *testing.T) {
	s := frozenScene(settings, "web×2=a")
	s.differ("web-1", "root")
	s.decide()
	s.head(settings, "web×2=b")
	s.thrive(time.Hour)
	if got := s.last(Frozen); got.ID != "web-1" || got.Evidence == "" {
		t.Errorf("%+v", got)
	}
}

func TestAForeignProcessIsEvidence(t *testing.T) {
	s := frozenScene(settings, "web×2=a")
	s.intrude("web-1")
	s.rest()
	s.want(t, "web: a×1 a×1! a:100", "taint web-1", "detected web-1", "freeze web-1", "create web-3=a", "frozen web-1", "retire web-1", "resolved web-1", "gone web-1")
}
