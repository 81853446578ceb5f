package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
)

// Program is what an instance of the suite does.
type Program string

// The programs.
const (
	Serve      Program = "serve"       // passes its checks, writes "serving" to its log, and exits with 0 when it is stopped
	ExitThree  Program = "exit three"  // exits with code 3 soon after the start
	NeverReady Program = "never ready" // runs, and fails its checks
	Stubborn   Program = "stubborn"    // passes its checks, and ignores the stop signal
)

// Command is what is run in an instance.
type Command string

// The commands.
const (
	ExitFive Command = "exit five" // ends at once with code 5
	Cat      Command = "cat"       // writes what it reads, until that ends
)

// Harness is a host under test.
type Harness struct {
	Host   runtime.Host
	Spec   func(id string, p Program) runtime.Spec // one that the host can run; its stop timeout is short
	Reopen func() runtime.Host                     // as after a restart of the server: another Host over the same instances
	Args   func(c Command) []string                // of a command that an instance of Serve can run beside its own
	Kill   func(instance.Observation)              // kills the instance's process behind the host's back
}

// Suite runs every behaviour that runtime.Host promises against a fresh host each.
func Suite(t *testing.T, fresh func(*testing.T) Harness) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"AnInstanceLivesAsTheContractSays", testLife},
		{"EveryMethodCanBeRepeated", testRepeat},
		{"WrongCallsAreRefused", testRefusals},
		{"AnInstanceThatExitsIsReported", testExit},
		{"ChecksThatFailAreReported", testFailing},
		{"AStubbornInstanceIsKilled", testStubborn},
		{"AKilledInstanceIsReported", testKilled},
		{"InstancesSurviveAReopenedHost", testReopen},
		{"ListIsSortedUnderConcurrency", testConcurrency},
		{"ACommandRunsBesideTheInstance", testExec},
		{"ACommandEndsWithItsCallerAndItsInstance", testExecEnds},
		{"AnInstanceIsMeasuredAsItRuns", testMeasure},
		{"AFrozenInstanceStandsStillAndEnds", testFrozen},
		{"LogsAreReadToTheirTailAndAfterRemoval", testLogs},
		{"VolumesAreDestroyedOnlyWhenUnused", testVolumes},
		{"AVolumeIsCopiedWholeOrNotAtAll", testCopyVolume},
		{"VersionsOfAVolumeAreDeletedOnlyWhenUnused", testDeleteVolume},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, &suite{t, fresh(t)}) })
	}
}

type suite struct {
	*testing.T
	Harness
}

func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) start(spec runtime.Spec) {
	s.Helper()
	s.must(s.Host.Create(s.Context(), spec))
	s.must(s.Host.Start(s.Context(), spec.Identity.ID))
}

func (s *suite) see(id instance.ID) instance.Observation {
	s.Helper()
	list, err := s.Host.List(s.Context())
	s.must(err)
	for _, o := range list {
		if o.Identity.ID == id {
			return o
		}
	}
	return instance.Observation{}
}

// until waits, by Changed alone, for what is seen of an instance to be ok.
func (s *suite) until(id instance.ID, what string, ok func(instance.Observation) bool) instance.Observation {
	s.Helper()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	for {
		changed := s.Host.Changed()
		o := s.see(id)
		if ok(o) {
			return o
		}
		select {
		case <-changed:
		case <-limit.C:
			s.Fatalf("instance %s never was %s: %+v", id, what, o)
		}
	}
}

func isPassing(o instance.Observation) bool { return o.Health == instance.Passing }
func isExited(o instance.Observation) bool  { return o.State == instance.Exited }

func testLife(t *testing.T, s *suite) {
	spec := s.Spec("web-life", Serve)
	s.must(s.Host.Create(t.Context(), spec))
	o := s.see("web-life")
	if o.State != instance.Created || o.PID != 0 || !o.StartedAt.IsZero() || o.Health != instance.Unknown {
		t.Errorf("created: %+v", o)
	}
	if d := cmp.Diff(spec.Identity, o.Identity); d != "" {
		t.Errorf("identity: %s", d)
	}
	if n, err := s.Host.Network(t.Context(), "web-life"); err != nil || n.Path == "" {
		t.Errorf("network of a created instance: %+v, %v", n, err)
	}
	s.must(s.Host.Start(t.Context(), "web-life"))
	o = s.until("web-life", "passing", isPassing)
	if o.State != instance.Running || o.PID == 0 || o.StartedAt.IsZero() || o.Since.Before(o.StartedAt) {
		t.Errorf("passing: %+v", o)
	}
	s.must(s.Host.Stop(t.Context(), "web-life"))
	o = s.see("web-life")
	if o.State != instance.Exited || o.PID != 0 || o.ExitCode != 0 || o.ExitedAt.IsZero() || o.Health != instance.Unknown || o.OOM {
		t.Errorf("stopped: %+v", o)
	}
	changed := s.Host.Changed()
	s.must(s.Host.Remove(t.Context(), "web-life"))
	select {
	case <-changed:
	case <-time.After(5 * time.Second):
		t.Error("a removal is no change")
	}
	if o := s.see("web-life"); o.State != instance.Absent {
		t.Errorf("removed: %+v", o)
	}
}

func testRepeat(t *testing.T, s *suite) {
	spec := s.Spec("web-again", Serve)
	for range 2 {
		s.must(s.Host.Create(t.Context(), spec))
	}
	for range 2 {
		s.must(s.Host.Start(t.Context(), "web-again"))
	}
	before := s.until("web-again", "passing", isPassing)
	s.must(s.Host.Create(t.Context(), spec))
	s.must(s.Host.Start(t.Context(), "web-again"))
	if d := cmp.Diff(before.StartedAt, s.see("web-again").StartedAt); d != "" {
		t.Errorf("repeated calls started it again: %s", d)
	}
	for range 2 {
		s.must(s.Host.Stop(t.Context(), "web-again"))
	}
	for range 2 {
		s.must(s.Host.Remove(t.Context(), "web-again"))
	}
	s.must(s.Host.Stop(t.Context(), "web-again"))
}

func testRefusals(t *testing.T, s *suite) {
	good := s.Spec("web-good", ExitThree)
	change := func(f func(*runtime.Spec)) runtime.Spec {
		spec := good
		f(&spec)
		return spec
	}
	s.start(good)
	s.until("web-good", "exited", isExited)
	for name, c := range map[string]struct {
		err  error
		kind fault.Kind
	}{
		"another spec of one ID": {s.Host.Create(t.Context(), change(func(r *runtime.Spec) { r.Env = []string{"OTHER=1"} })), fault.Conflict},
		"an absent root": {s.Host.Create(t.Context(), change(func(r *runtime.Spec) {
			r.Identity.ID, r.Root = "web-rootless", digest.Of([]byte("no such root"))
		})), fault.NotFound},
		"no command": {s.Host.Create(t.Context(), change(func(r *runtime.Spec) { r.Identity.ID, r.Args = "web-bad", nil })), fault.Invalid},
		"a bad path": {s.Host.Create(t.Context(), change(func(r *runtime.Spec) {
			r.Identity.ID, r.Files = "web-bad", []runtime.File{{Path: "etc/../x"}}
		})), fault.Invalid},
		"a bad ID":         {s.Host.Create(t.Context(), change(func(r *runtime.Spec) { r.Identity.ID = "../x" })), fault.Invalid},
		"start of unknown": {s.Host.Start(t.Context(), "web-unknown"), fault.NotFound},
		"start of exited":  {s.Host.Start(t.Context(), "web-good"), fault.Conflict},
		"unknown log":      {s.Host.Logs(t.Context(), "web-unknown", &bytes.Buffer{}, -1, false), fault.NotFound},
	} {
		if !errors.Is(c.err, c.kind) {
			t.Errorf("%s: error %v, want one that is %s", name, c.err, c.kind)
		}
	}
	if _, err := s.Host.Network(t.Context(), "web-unknown"); !errors.Is(err, fault.NotFound) {
		t.Errorf("network of unknown: %v", err)
	}
	list, err := s.Host.List(t.Context())
	if err != nil || len(list) != 1 {
		t.Errorf("refused creations left something: %+v, %v", list, err)
	}
}

func testExit(t *testing.T, s *suite) {
	s.start(s.Spec("web-exit", ExitThree))
	o := s.until("web-exit", "exited", isExited)
	if o.ExitCode != 3 || o.PID != 0 || o.ExitedAt.Before(o.StartedAt) || o.Detail == "" {
		t.Errorf("exited: %+v", o)
	}
}

func testFailing(t *testing.T, s *suite) {
	s.start(s.Spec("web-sick", NeverReady))
	o := s.until("web-sick", "failing", func(o instance.Observation) bool { return o.Health == instance.Failing })
	if o.State != instance.Running || o.Detail == "" {
		t.Errorf("failing: %+v", o)
	}
}

func testStubborn(t *testing.T, s *suite) {
	s.start(s.Spec("web-stubborn", Stubborn))
	s.until("web-stubborn", "passing", isPassing)
	s.must(s.Host.Stop(t.Context(), "web-stubborn"))
	if o := s.see("web-stubborn"); o.State != instance.Exited || o.ExitCode != 137 {
		t.Errorf("killed: %+v", o)
	}
	s.must(s.Host.Create(t.Context(), s.Spec("web-waiting", Serve)))
	s.must(s.Host.Stop(t.Context(), "web-waiting"))
	if o := s.see("web-waiting"); o.State != instance.Exited {
		t.Errorf("stopped before its start: %+v", o)
	}
}

func testKilled(t *testing.T, s *suite) {
	s.start(s.Spec("web-killed", Serve))
	s.Kill(s.until("web-killed", "passing", isPassing))
	if o := s.until("web-killed", "exited", isExited); o.ExitCode != 137 || o.OOM {
		t.Errorf("killed: %+v", o)
	}
}

func testReopen(t *testing.T, s *suite) {
	s.start(s.Spec("web-runs", Serve))
	s.start(s.Spec("web-done", ExitThree))
	s.must(s.Host.Create(t.Context(), s.Spec("web-waits", Serve)))
	before := s.until("web-runs", "passing", isPassing)
	s.until("web-done", "exited", isExited)
	s.Host = s.Reopen()
	after := s.until("web-runs", "passing", isPassing)
	if after.PID != before.PID || !after.StartedAt.Equal(before.StartedAt) || after.Identity != before.Identity {
		t.Errorf("reopened: %+v, was %+v", after, before)
	}
	if o := s.see("web-done"); o.State != instance.Exited || o.ExitCode != 3 {
		t.Errorf("reopened: %+v, want exit code 3", o)
	}
	if o := s.see("web-waits"); o.State != instance.Created {
		t.Errorf("reopened: %+v, want a waiting instance", o)
	}
	s.must(s.Host.Create(t.Context(), s.Spec("web-runs", Serve))) // its spec is remembered
	s.must(s.Host.Start(t.Context(), "web-waits"))
	s.until("web-waits", "passing", isPassing)
}

func testConcurrency(t *testing.T, s *suite) {
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			spec := s.Spec(fmt.Sprintf("web-%d", 7-n), Serve)
			if err := errors.Join(s.Host.Create(t.Context(), spec), s.Host.Start(t.Context(), spec.Identity.ID)); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := s.Host.List(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, err := s.Host.List(t.Context())
	s.must(err)
	byID := func(a, b instance.Observation) int {
		return strings.Compare(string(a.Identity.ID), string(b.Identity.ID))
	}
	if len(list) != 8 || !slices.IsSortedFunc(list, byID) {
		t.Errorf("not the 8 instances in order: %+v", list)
	}
	for _, o := range list {
		wg.Go(func() {
			if err := s.Host.Remove(t.Context(), o.Identity.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if list, _ := s.Host.List(t.Context()); len(list) != 0 {
		t.Errorf("left: %+v", list)
	}
}

func testExec(t *testing.T, s *suite) {
	s.start(s.Spec("web-exec", Serve))
	before := s.until("web-exec", "passing", isPassing)
	var out bytes.Buffer
	code, err := s.Host.Exec(t.Context(), "web-exec", runtime.Session{Args: s.Args(Cat), Stdin: strings.NewReader("one\ntwo\n"), Stdout: &out})
	if code != 0 || err != nil || out.String() != "one\ntwo\n" {
		t.Errorf("cat: code %d, %v, output %q", code, err, out.String())
	}
	if code, err := s.Host.Exec(t.Context(), "web-exec", runtime.Session{Args: s.Args(ExitFive), Stdout: &out}); code != 5 || err != nil {
		t.Errorf("code %d, %v; want 5", code, err)
	}
	if o := s.see("web-exec"); o.PID != before.PID || o.Health != instance.Passing || len(o.Foreign) > 0 {
		t.Errorf("the instance is %+v now, was %+v", o, before)
	}
	s.must(s.Host.Create(t.Context(), s.Spec("web-waits", Serve)))
	for name, c := range map[string]struct {
		id   instance.ID
		args []string
		kind fault.Kind
	}{
		"unknown instance": {"web-unknown", s.Args(ExitFive), fault.NotFound},
		"not started":      {"web-waits", s.Args(ExitFive), fault.Conflict},
		"no command":       {"web-exec", nil, fault.Invalid},
		"absent program":   {"web-exec", []string{"no-such-program"}, fault.Invalid},
		"absent path":      {"web-exec", []string{"/no/such/program"}, fault.Invalid},
	} {
		if _, err := s.Host.Exec(t.Context(), c.id, runtime.Session{Args: c.args}); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v, want one that is %s", name, err, c.kind)
		}
	}
}

// running is a Cat that has begun: it has repeated what it was told.
func (s *suite) running(ctx context.Context, id instance.ID) (ended chan error) {
	s.Helper()
	in, typed := io.Pipe()
	shown, out := io.Pipe()
	s.Cleanup(func() { typed.Close(); out.Close() })
	ended = make(chan error, 1)
	go func() {
		_, err := s.Host.Exec(ctx, id, runtime.Session{Args: s.Args(Cat), Stdin: in, Stdout: out})
		ended <- err
		out.Close()
	}()
	fmt.Fprintln(typed, "hello")
	b := make([]byte, 6)
	if _, err := io.ReadFull(shown, b); err != nil || string(b) != "hello\n" {
		s.Fatalf("read %q, %v", b, err)
	}
	return ended
}

func testExecEnds(t *testing.T, s *suite) {
	s.start(s.Spec("web-ends", Serve))
	s.until("web-ends", "passing", isPassing)
	ctx, cancel := context.WithCancel(t.Context())
	ended := s.running(ctx, "web-ends")
	cancel()
	within(t, ended, "its caller")
	ended = s.running(t.Context(), "web-ends")
	s.must(s.Host.Stop(t.Context(), "web-ends"))
	within(t, ended, "its instance")
}

func within(t *testing.T, ended chan error, what string) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Errorf("a command outlives %s", what)
	}
}

func testMeasure(t *testing.T, s *suite) {
	spec := s.Spec("web-measured", Serve)
	if _, err := s.Host.Measure(t.Context(), spec.Identity.ID); !errors.Is(err, fault.NotFound) {
		t.Errorf("measuring an absent instance: %v, want not found", err)
	}
	s.start(spec)
	m, err := s.Host.Measure(t.Context(), spec.Identity.ID)
	s.must(err)
	if m.Root != spec.Root {
		t.Errorf("found root %s, want %s", m.Root, spec.Root)
	}
	s.must(s.Host.Remove(t.Context(), spec.Identity.ID))
}

func testFrozen(t *testing.T, s *suite) {
	for id, want := range map[instance.ID]fault.Kind{"web-unknown": fault.NotFound, "web-waits": fault.Conflict} {
		if want == fault.Conflict {
			s.must(s.Host.Create(t.Context(), s.Spec(string(id), Serve)))
		}
		_, err := s.Host.Evidence(t.Context(), runtime.Question{Spec: s.Spec(string(id), Serve)})
		if frozen := s.Host.Freeze(t.Context(), id); !errors.Is(frozen, want) || !errors.Is(err, want) {
			t.Errorf("%s: %v and %v, want %s", id, frozen, err, want)
		}
	}
	for _, id := range []string{"web-stopped", "web-removed"} {
		spec := s.Spec(id, Stubborn)
		s.start(spec)
		before := s.until(spec.Identity.ID, "passing", isPassing)
		s.must(s.Host.Freeze(t.Context(), spec.Identity.ID))
		s.must(s.Host.Freeze(t.Context(), spec.Identity.ID))
		if after := s.see(spec.Identity.ID); after.State != instance.Running || after.Health != before.Health || after.PID != before.PID {
			t.Errorf("frozen: %+v, was %+v", after, before)
		}
		e, err := s.Host.Evidence(t.Context(), runtime.Question{Spec: spec.WithoutSecrets()})
		s.must(err)
		if !e.Frozen || e.V != 1 || e.Instance != spec.Identity || e.Got.Len() == 0 || len(e.Findings) > 0 ||
			!slices.ContainsFunc(e.Processes, func(p runtime.Process) bool { return p.PID == before.PID && p.InCgroup }) {
			t.Errorf("evidence: %+v", e)
		}
	}
	s.Host = s.Reopen()
	if e, err := s.Host.Evidence(t.Context(), runtime.Question{Spec: s.Spec("web-stopped", Stubborn).WithoutSecrets()}); err != nil || !e.Frozen {
		t.Errorf("reopened: %+v, %v", e, err)
	}
	s.must(s.Host.Stop(t.Context(), "web-stopped"))
	if o := s.see("web-stopped"); o.State != instance.Exited || o.ExitCode != 137 {
		t.Errorf("stopped: %+v", o)
	}
	s.must(s.Host.Remove(t.Context(), "web-removed"))
	if o := s.see("web-removed"); o.State != instance.Absent {
		t.Errorf("removed: %+v", o)
	}
}

func testLogs(t *testing.T, s *suite) {
	read := func(tail int) string {
		var b bytes.Buffer
		s.must(s.Host.Logs(t.Context(), "web-talks", &b, tail, false))
		return b.String()
	}
	s.start(s.Spec("web-talks", Serve))
	s.until("web-talks", "passing", isPassing)
	followed := make(chan string, 1)
	go func() {
		var b bytes.Buffer
		s.Host.Logs(t.Context(), "web-talks", &b, -1, true)
		followed <- b.String()
	}()
	s.must(s.Host.Stop(t.Context(), "web-talks"))
	all := read(-1)
	lines := strings.SplitAfter(strings.TrimSuffix(all, "\n"), "\n")
	if got, want := read(1), lines[len(lines)-1]+"\n"; got != want {
		t.Errorf("tail of 1: %q, want %q", got, want)
	}
	if got := read(0); got != "" {
		t.Errorf("tail of 0: %q", got)
	}
	s.must(s.Host.Remove(t.Context(), "web-talks"))
	if got := read(-1); !strings.HasPrefix(got, all) {
		t.Errorf("after the removal: %q, want at least %q", got, all)
	}
	select {
	case got := <-followed:
		if !strings.HasPrefix(got, all) {
			t.Errorf("followed: %q, want at least %q", got, all)
		}
	case <-time.After(10 * time.Second):
		t.Error("following goes on after the removal")
	}
}

func testVolumes(t *testing.T, s *suite) {
	spec := s.Spec("db-a", Serve)
	spec.Volumes = []runtime.Volume{{Env: "test", Component: "db", Name: "data", Path: "/data"}}
	s.must(s.Host.Create(t.Context(), spec))
	if err := s.Host.DestroyVolumes(t.Context(), "test"); !errors.Is(err, fault.Conflict) {
		t.Errorf("destroying a volume in use: %v, want a conflict", err)
	}
	s.must(s.Host.Remove(t.Context(), "db-a"))
	for range 2 {
		s.must(s.Host.DestroyVolumes(t.Context(), "test"))
	}
}

// data is a place in the volume that the suite's instances have.
func data(version, snapshot int) runtime.Place {
	return runtime.Place{Env: "test", Component: "db", Name: "data", Version: version, Snapshot: snapshot}
}

// withVolume is an instance that has a version of the volume.
func (s *suite) withVolume(id string, version int) runtime.Spec {
	spec := s.Spec(id, Serve)
	spec.Volumes = []runtime.Volume{{Env: "test", Component: "db", Name: "data", Path: "/data", Version: version}}
	return spec
}

func testCopyVolume(t *testing.T, s *suite) {
	s.must(s.Host.Create(t.Context(), s.withVolume("db-a", 0)))
	snapshot := runtime.VolumeCopy{From: data(1, 0), To: data(0, 1)}
	if _, err := s.Host.CopyVolume(t.Context(), snapshot, nil); !errors.Is(err, fault.Conflict) {
		t.Errorf("copying a volume in use: %v, want a conflict", err)
	}
	live := runtime.VolumeCopy{From: data(1, 0), To: runtime.Place{Env: "fork", Component: "db", Name: "data", Version: 1}, Live: true}
	if _, err := s.Host.CopyVolume(t.Context(), live, nil); err != nil {
		t.Errorf("copying a volume in use, live: %v", err)
	}
	s.must(s.Host.Remove(t.Context(), "db-a"))
	told := false
	first, err := s.Host.CopyVolume(t.Context(), snapshot, func(done, total int64) { told = told || done <= total })
	if err != nil || first.Digest == "" || !told {
		t.Fatalf("copying: %+v, %v, told how far it is: %v", first, err, told)
	}
	if again, err := s.Host.CopyVolume(t.Context(), snapshot, nil); err != nil || again != first {
		t.Errorf("copied again: %+v, %v, want %+v", again, err, first)
	}
	restored, err := s.Host.CopyVolume(t.Context(), runtime.VolumeCopy{From: data(0, 1), To: data(2, 0)}, nil)
	if err != nil || restored.Digest != first.Digest {
		t.Errorf("a version made from a snapshot has %+v, %v, want %+v", restored, err, first)
	}
	s.must(s.Host.Create(t.Context(), s.withVolume("db-b", 2)))
	s.must(s.Host.Remove(t.Context(), "db-b"))
	for name, c := range map[string]struct {
		copy runtime.VolumeCopy
		kind fault.Kind
	}{
		"nothing to copy": {runtime.VolumeCopy{From: data(0, 7), To: data(3, 0)}, fault.NotFound},
		"no version":      {runtime.VolumeCopy{From: data(7, 0), To: data(3, 0)}, fault.NotFound},
		"no place":        {runtime.VolumeCopy{From: data(1, 0), To: data(0, 0)}, fault.Invalid},
		"a bad name":      {runtime.VolumeCopy{From: data(1, 0), To: runtime.Place{Env: "..", Component: "db", Name: "data", Version: 1}}, fault.Invalid},
		"itself":          {runtime.VolumeCopy{From: data(1, 0), To: data(1, 0)}, fault.Invalid},
	} {
		if _, err := s.Host.CopyVolume(t.Context(), c.copy, nil); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v, want one that is %s", name, err, c.kind)
		}
	}
}

func testDeleteVolume(t *testing.T, s *suite) {
	s.must(s.Host.Create(t.Context(), s.withVolume("db-a", 0)))
	if err := s.Host.DeleteVolume(t.Context(), data(1, 0)); !errors.Is(err, fault.Conflict) {
		t.Errorf("deleting a version in use: %v, want a conflict", err)
	}
	s.must(s.Host.Remove(t.Context(), "db-a"))
	_, err := s.Host.CopyVolume(t.Context(), runtime.VolumeCopy{From: data(1, 0), To: data(0, 1)}, nil)
	s.must(err)
	for range 2 {
		s.must(s.Host.DeleteVolume(t.Context(), data(0, 1)))
	}
	if _, err := s.Host.CopyVolume(t.Context(), runtime.VolumeCopy{From: data(0, 1), To: data(2, 0)}, nil); !errors.Is(err, fault.NotFound) {
		t.Errorf("copying what was deleted: %v, want not found", err)
	}
	if err := s.Host.DeleteVolume(t.Context(), data(0, 0)); !errors.Is(err, fault.Invalid) {
		t.Errorf("deleting no place: %v, want invalid", err)
	}
	s.must(s.Host.DestroyVolumes(t.Context(), "test"))
}
