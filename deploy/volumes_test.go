package deploy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
)

// disk is what a host has of the volume db/data: in every place, which versions of the component wrote there, in order. It says what
// is wrong as soon as something is.
type disk struct {
	places map[Place]string
	begun  string           // what a snapshot under way is to have
	left   map[Place]string // versions that were left, with what they had then
	wrong  []string
}

func newDisk() *disk { return &disk{places: map[Place]string{}, left: map[Place]string{}} }

const data = VolumeID("db/data")

// follow does on the disk what a step asks for, and checks that it may.
func (d *disk) follow(before, after Environment, st Step) {
	v := before.Data[data]
	switch st.Kind {
	case Create:
		d.create(before, after, after.Instances[st.Instance.ID])
	case Copying:
		if st.Copy.To.Snapshot > 0 {
			d.begun = d.places[*st.Copy.From]
		}
	case Copied:
		from := d.places[*st.Copy.From]
		if st.Copy.To.Snapshot > 0 && from != d.begun {
			d.fail("the volume had %q when the copy began, and has %q", d.begun, from)
		}
		d.places[st.Copy.To] = from
	case Switch:
		if v.Current > 0 {
			d.left[Place{Version: v.Current}] = d.places[Place{Version: v.Current}]
		}
		delete(d.left, st.Copy.To)
	case Deleted:
		delete(d.places, st.Copy.To)
		delete(d.left, st.Copy.To)
	}
	for at, had := range d.left {
		if d.places[at] != had {
			d.fail("%s was left with %q, and has %q", at, had, d.places[at])
		}
	}
}

func (d *disk) create(before, after Environment, i Instance) {
	v := before.Data[data]
	if i.Component != "db" || len(after.Components[i.Digest].Volumes) == 0 {
		return
	}
	at := Place{Version: max(1, i.Volumes["data"])}
	if v.Copy != nil && v.Copy.To.Snapshot > 0 {
		d.fail("%s is created while its volume is copied", i.ID)
	}
	if k, ok := v.Newest(); before.guarded("db", "data") && (!ok || d.places[Place{Snapshot: k.Number}] != d.places[at]) {
		d.fail("%s gets a volume with %q, of which there is no snapshot", i.ID, d.places[at])
	}
	d.places[at] += "," + i.Digest.Short()
}

func (d *disk) fail(format string, args ...any) {
	d.wrong = append(d.wrong, fmt.Sprintf(format, args...))
}

// copy ends all copies and deletions that are under way, well or not.
func (s *scene) copy(err error) int {
	var steps []Step
	for _, c := range Copies(s.env) {
		steps = append(steps, CopyEnded(c, Content{Bytes: 1, Files: 1, Digest: digest.Of([]byte(s.disk.places[*c.From]))}, err))
	}
	for _, c := range Doomed(s.env) {
		if s.env.Data[c.id()].Copy == nil {
			steps = append(steps, Step{Kind: Deleted, Copy: &c})
		}
	}
	s.apply(steps)
	return len(steps)
}

// restore has the next head restore the volume as the generation left it.
func (s *scene) restore(generation int) {
	at, _, ok := s.env.Data[data].AsLeft(generation)
	if !ok {
		panic(fmt.Sprintf("nothing is kept of generation %d: %+v", generation, s.env.Data[data]))
	}
	s.restores = []Restoring{{Restore: Restore{Component: "db", Volume: "data", From: at}}}
}

// settle takes turns, with what the host does, until nothing is left to do at this time; copies are left alone.
func (s *scene) settle() {
	for range 100 {
		if len(s.decide()) == 0 && s.actOnInstances() == 0 {
			return
		}
	}
	panic("it does not settle: " + strings.Join(s.log, "\n"))
}

func (s *scene) sound(t *testing.T) {
	t.Helper()
	for _, w := range s.disk.wrong {
		t.Error(w)
	}
}

// change is a scene in which version b is to replace version a, whose volume is to be copied before.
func change() *scene {
	s := running(settings, "db×1=a*!")
	s.head(settings, "db×1=b*!")
	return s
}

// changed is one in which it has.
func changed() *scene {
	s := change()
	s.thrive(time.Minute)
	s.steps()
	return s
}

func TestVolumeIsCopiedAfterTheOldInstanceHasGoneAndBeforeTheNewOneBegins(t *testing.T) {
	s := change()
	s.settle()
	s.want(t, "", "shift db", "retire db-1", "gone db-1", "copy db snapshot 1 from version 1")
	s.after(20 * time.Minute).settle() // longer than progress_deadline
	s.want(t, "")
	s.copy(nil)
	s.settle()
	s.want(t, "db: b×1!", "copied db snapshot 1 from version 1", "create db-2=b")
	s.see(instance.Passing)
	s.rest()
	s.after(10 * time.Second).rest()
	s.want(t, "db: b×1 b:100", "healthy db-2", "shift db b:100", "complete g2")
	s.sound(t)
	if k, _ := s.env.Data[data].Newest(); k.Generation != 1 || k.Of != 1 || k.Content == nil {
		t.Errorf("the snapshot is %+v, want what generation 1 left", k)
	}
}

func TestHealingCopiesNothing(t *testing.T) {
	s := running(settings, "db×1=a*!")
	s.exit("db-1", 1)
	s.settle()
	s.want(t, "db: a×1! a:100", "exit db-1", "gone db-1", "create db-2=a")
}

func TestVolumeThatIsNotToBeCopiedIsNot(t *testing.T) {
	s := running(settings, "db×1=a*")
	s.head(settings, "db×1=b*")
	s.settle()
	s.want(t, "db: b×1!", "shift db", "retire db-1", "gone db-1", "create db-2=b")
}

func TestAskingForCopiesTakesEffectWithTheNextChange(t *testing.T) {
	s := running(settings, "db×1=a*")
	s.head(settings, "db×1=a*!")
	s.rest()
	s.want(t, "db: a×1 a:100", "complete g2")
	s.head(settings, "db×1=b*!")
	s.settle()
	s.want(t, "", "shift db", "retire db-1", "gone db-1", "copy db snapshot 1 from version 1")
}

// TestFailedCopyFailsTheRolloutAndTheOldVersionStartsAgain: on what it left, for nobody else has written.
func TestFailedCopyFailsTheRolloutAndTheOldVersionStartsAgain(t *testing.T) {
	s := change()
	s.settle()
	s.steps()
	s.copy(errors.New("no space left on device"))
	s.settle()
	s.want(t, "db: a×1!", "fail db snapshot 1 from version 1", "fail g2", "revert g3", "create db-2=a")
	if want := "db: copying volume data: no space left on device"; s.env.History[1].Cause != want {
		t.Errorf("generation 2 failed for %q, want %q", s.env.History[1].Cause, want)
	}
	s.thrive(time.Minute)
	if got := s.picture(); got != "db: a×1 a:100" || len(s.env.Data[data].Snapshots)+len(s.env.Data[data].Doomed) > 0 {
		t.Errorf("it runs %q, and has %+v", got, s.env.Data[data])
	}
	s.sound(t)
}

func TestFailedCopyWithoutRevertStartsNothing(t *testing.T) {
	alone := settings
	alone.AutoRevert = false
	s := running(alone, "db×1=a*!")
	s.head(alone, "db×1=b*!")
	s.settle()
	s.copy(errors.New("no space left on device"))
	s.thrive(time.Hour)
	if got := s.picture(); got != "" || s.env.Head.Outcome != Broken {
		t.Errorf("it runs %q, and the head is %s", got, s.env.Head.Outcome)
	}
	s.head(alone, "db×1=b*!") // another try, with another copy
	s.thrive(time.Hour)
	if got, want := s.picture(), "db: b×1 b:100"; got != want {
		t.Errorf("it runs %q, want %q", got, want)
	}
	s.sound(t)
}

// fail has every instance exit until the head is another one.
func (s *scene) fail() {
	for head := s.env.Head.Number; s.env.Head.Number == head; {
		s.rest()
		for id := range s.host {
			s.exit(id, 1)
		}
		s.decide()
		s.after(5 * time.Second)
	}
	s.thrive(time.Minute)
}

// TestRevertCopiesNothing: going back must not wait, and what was before the change is kept already.
func TestRevertCopiesNothing(t *testing.T) {
	s := change()
	s.fail()
	if got := s.picture(); got != "db: a×1 a:100" || len(s.env.Data[data].Snapshots) != 1 {
		t.Errorf("it runs %q, with snapshots %+v", got, s.env.Data[data].Snapshots)
	}
	s.sound(t)
}

func TestCopyThatTheNextHeadHasNoUseForIsGivenUp(t *testing.T) {
	s := change()
	s.settle()
	s.steps()
	s.head(settings, "db×1=a*!")
	s.settle()
	s.want(t, "db: a×1!", "fail db snapshot 1 from version 1", "create db-2=a")
	s.thrive(time.Minute)
	if got := s.env.Data[data]; len(got.Snapshots)+len(got.Doomed) > 0 || got.Copy != nil {
		t.Errorf("left: %+v", got)
	}
	s.sound(t)
}

// TestCopyServesTheNextHeadAsWell: nobody wrote between them.
func TestCopyServesTheNextHeadAsWell(t *testing.T) {
	s := change()
	s.settle()
	s.head(settings, "db×1=c*!")
	s.thrive(time.Minute)
	v := s.env.Data[data]
	if len(v.Snapshots) != 1 || v.Snapshots[0].Generation != 2 {
		t.Errorf("snapshots: %+v, want one of what generations 1 and 2 left", v.Snapshots)
	}
	for generation := 1; generation <= 2; generation++ {
		if at, _, ok := v.AsLeft(generation); !ok || at != (Place{Snapshot: 1}) {
			t.Errorf("as left by generation %d: %s, %v", generation, at, ok)
		}
	}
	if at, _, ok := v.AsLeft(3); ok {
		t.Errorf("as left by generation 3, which has not been left: %s", at)
	}
	s.sound(t)
}

// TestRollbackWithDataKeepsWhatItReplaces copies beside what runs, and only then ends it.
func TestRollbackWithDataKeepsWhatItReplaces(t *testing.T) {
	s := changed()
	s.restore(1)
	s.head(settings, "db×1=a*!")
	s.settle()
	s.want(t, "db: b×1 b:100", "copy db version 2 from snapshot 1")
	s.copy(nil)
	s.settle()
	s.want(t, "db: a×1!", "copied db version 2 from snapshot 1", "shift db", "retire db-2", "gone db-2", "switch db version 2", "create db-3=a")
	s.see(instance.Passing)
	s.thrive(time.Minute)
	s.want(t, "db: a×1 a:100", "healthy db-3", "shift db a:100", "complete g3")
	s.sound(t)
	if got := s.env.Instances["db-3"].Volumes["data"]; got != 2 {
		t.Errorf("the instance has version %d", got)
	}
	if at, k, ok := s.env.Data[data].AsLeft(2); !ok || at != (Place{Version: 1}) || k.Generation != 2 {
		t.Errorf("as generation 2 left it: %s %+v %v, want version 1", at, k, ok)
	}
}

func TestRollbackWithDataOfTheVersionThatRuns(t *testing.T) {
	s := changed()
	s.restore(1)
	s.head(settings, "db×1=b*!")
	s.thrive(time.Minute)
	s.want(t, "db: b×1 b:100", "copy db version 2 from snapshot 1", "copied db version 2 from snapshot 1", "shift db", "retire db-2", "gone db-2",
		"switch db version 2", "create db-3=b", "healthy db-3", "shift db b:100", "complete g3")
	s.sound(t)
}

// TestFailedRollbackWithDataGivesTheDataBack, also where it runs the same release again.
func TestFailedRollbackWithDataGivesTheDataBack(t *testing.T) {
	for _, version := range []string{"a", "b"} {
		s := changed()
		s.restore(1)
		s.head(settings, "db×1="+version+"*!")
		s.fail()
		v := s.env.Data[data]
		if got := s.picture(); got != "db: b×1 b:100" || v.Current != 1 || s.env.Head.Outcome != Completed || s.env.Head.Number != 4 {
			t.Errorf("back to %s: it runs %q on version %d, and head %d is %s", version, got, v.Current, s.env.Head.Number, s.env.Head.Outcome)
		}
		if at, _, ok := v.AsLeft(3); !ok || at != (Place{Version: 2}) {
			t.Errorf("as the failed generation left it: %s, %v; want version 2", at, ok)
		}
		if at, _, ok := v.AsLeft(2); ok {
			t.Errorf("as generation 2 left it: %s; but that goes on", at)
		}
		s.sound(t)
	}
}

// TestWhatARevertOwesTheNextHeadPays: it came before the revert had given the data back.
func TestWhatARevertOwesTheNextHeadPays(t *testing.T) {
	s := changed()
	s.restore(1)
	s.head(settings, "db×1=a*!")
	s.settle()
	s.copy(nil)
	for s.env.Head.Number == 3 {
		s.settle()
		s.exit(instance.ID(fmt.Sprintf("db-%d", s.ids)), 1)
		s.decide()
		s.after(5 * time.Second)
	}
	s.head(settings, "db×1=c*!")
	s.thrive(time.Minute)
	if v := s.env.Data[data]; v.Current != 1 || s.picture() != "db: c×1 c:100" {
		t.Errorf("it runs %q on version %d", s.picture(), v.Current)
	}
	s.sound(t)
}

func TestFailedCopyOfARollbackWithDataStopsNothing(t *testing.T) {
	s := changed()
	s.restore(1)
	s.head(settings, "db×1=a*!")
	s.settle()
	s.steps()
	s.copy(errors.New("no space left on device"))
	s.settle()
	s.want(t, "db: b×1 b:100", "fail db version 2 from snapshot 1", "fail g3", "revert g4", "complete g4")
	s.sound(t)
}

func TestDoomedIsNeverWhatIsUsed(t *testing.T) {
	s := changed()
	s.restore(1)
	s.head(settings, "db×1=a*!")
	s.thrive(time.Minute)
	for place, kind := range map[Place]fault.Kind{{Version: 2}: fault.Conflict, {Version: 9}: fault.NotFound, {Snapshot: 9}: fault.NotFound} {
		if _, err := s.env.Doom(data, place); !errors.Is(err, kind) {
			t.Errorf("deleting %s: %v, want %s", place, err, kind)
		}
	}
	next, err := s.env.Doom(data, Place{Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	s.env = next
	s.rest()
	if v := s.env.Data[data]; len(v.Versions) != 1 || len(v.Doomed) > 0 {
		t.Errorf("left: %+v", v)
	}
}

// anyVolumeHead makes a head with one component that has a volume, at times with other data.
func (m *machine) anyVolumeHead(t *rapid.T) {
	r := settings
	r.AutoRevert = rapid.Bool().Draw(t, "revert")
	if k, ok := m.env.Data[data].Newest(); ok && rapid.Bool().Draw(t, "with data") {
		m.restores = []Restoring{{Restore: Restore{Component: "db", Volume: "data", From: Place{Snapshot: k.Number}}}}
	}
	m.most["db"] = 1
	version := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "version")
	m.scene.head(r, fmt.Sprintf("db×1=%s*%s", version, rapid.SampledFrom([]string{"!", "!", ""}).Draw(t, "guard")))
}

// TestPropertyVolumes: whatever happens, no instance of another version begins before its volume is copied, nobody writes while it is, what was left
// is never written to, and in the end the head runs on the data that it is to have.
func TestPropertyVolumes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine()
		actions := m.actions()
		actions["head"] = m.anyVolumeHead
		actions["copied"] = func(*rapid.T) { m.copy(nil) }
		actions["copy fails"] = func(*rapid.T) { m.copy(errors.New("no space left on device")) }
		actions["act"] = func(*rapid.T) { m.actOnInstances() }
		actions["settle"] = func(*rapid.T) { m.settle() }
		delete(actions, "turns")
		m.anyVolumeHead(t)
		for range rapid.IntRange(0, 60).Draw(t, "actions") {
			name := rapid.SampledFrom(slices.Sorted(maps.Keys(actions))).Draw(t, "action")
			if len(m.host) == 0 && slices.Contains([]string{"pass", "fail", "exit", "lose", "intrude", "enter", "leave"}, name) {
				continue
			}
			actions[name](t)
			m.checkTurn(t)
			m.checkSizes(t)
			m.checkDisk(t)
		}
		m.see(instance.Passing)
		m.thrive(3 * time.Hour) // so that nothing is late already when the last head comes
		m.anyVolumeHead(t)
		wanted := slices.Clone(m.env.Head.Restores)
		m.thrive(3 * time.Hour)
		m.checkDisk(t)
		if m.env.Head.Outcome != Completed || len(Copies(m.env))+len(Doomed(m.env)) > 0 {
			t.Fatalf("the head is %s\n%s", m.env.Head.Outcome, strings.Join(m.log, "\n"))
		}
		v := m.env.Data[data]
		for _, r := range wanted {
			if k, _ := v.Has(Place{Version: v.Current}); !r.Back && (k.From == nil || *k.From != r.From) || r.Back && v.Current != r.Version {
				t.Fatalf("instances get %+v; want %+v\n%s", k, r, strings.Join(m.log, "\n"))
			}
		}
	})
}

func (m *machine) checkDisk(t *rapid.T) {
	if len(m.disk.wrong) > 0 {
		t.Fatalf("%s\n%s", strings.Join(m.disk.wrong, "\n"), strings.Join(m.log, "\n"))
	}
}

func TestCopyStepsOutOfTurnAreRefused(t *testing.T) {
	s := changed()
	for name, st := range map[string]Step{
		"a snapshot while an instance has the volume": {Kind: Copying, Copy: &Copy{Component: "db", Volume: "data", From: &Place{Version: 1}, To: Place{Snapshot: 2}}},
		"a version that nobody asked for":             {Kind: Copying, Copy: &Copy{Component: "db", Volume: "data", From: &Place{Snapshot: 1}, To: Place{Version: 2}}},
		"the end of nothing":                          {Kind: Copied, Copy: &Copy{Component: "db", Volume: "data", To: Place{Snapshot: 1}, Content: &Content{}}},
		"a switch to what is not there":               {Kind: Switch, Copy: &Copy{Component: "db", Volume: "data", To: Place{Version: 2}}},
		"the deletion of what is wanted":              {Kind: Deleted, Copy: &Copy{Component: "db", Volume: "data", To: Place{Snapshot: 1}}},
		"no place":                                    {Kind: Switch, Copy: &Copy{Component: "db", Volume: "data"}},
		"nothing":                                     {Kind: Copying},
	} {
		next, err := s.env.Apply(st, s.now)
		if err == nil {
			t.Errorf("%s is taken", name)
		}
		if d := cmp.Diff(s.env.Data, next.Data); d != "" {
			t.Errorf("%s changes something: %s", name, d)
		}
	}
}
