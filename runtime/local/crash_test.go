package local_test

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/local"
)

// runDir is where the machine keeps what lives in memory.
func runDir(t testing.TB) string {
	return filepath.Join("/run/invar", fmt.Sprintf("test-%d-%s", os.Getpid(), strings.ToLower(t.Name()[:min(len(t.Name()), 30)])))
}

func inOwnRun(t testing.TB) func(*local.Config) {
	return func(c *local.Config) { c.RunDir = runDir(t) }
}

// launcherPID finds the machine's launcher among the processes.
func (m *machine) launcherPID() int {
	m.t.Helper()
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err == nil && strings.HasPrefix(string(b), "invar-launcher\x00-dir\x00"+m.config.RunDir+"\x00") {
			var pid int
			fmt.Sscanf(p, "/proc/%d/", &pid)
			return pid
		}
	}
	return 0
}

// killLauncher kills the launcher and waits for the next one.
func (m *machine) killLauncher() (back time.Duration) {
	m.t.Helper()
	old := m.launcherPID()
	if old == 0 {
		m.t.Fatal("the launcher of a run directory of its own was not found")
	}
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
	began := time.Now()
	for {
		if _, _, err := m.host.Check(m.t.Context(), "web-unknown", []string{"x"}, time.Second); errors.Is(err, fault.NotFound) && m.launcherPID() != old {
			return time.Since(began)
		}
		if time.Since(began) > 10*time.Second {
			m.t.Fatal("no launcher after 10s")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestInstancesOutliveTheirLauncher(t *testing.T) {
	m := newMachine(t, inOwnRun(t))
	for _, id := range []string{"web-a", "web-b", "web-c"} {
		m.start(m.serving(id))
	}
	if err := m.host.Create(t.Context(), m.serving("web-waits")); err != nil {
		t.Fatal(err)
	}
	a := m.until("web-a", "passing", passing)
	b := m.until("web-b", "passing", passing)
	m.until("web-c", "passing", passing)
	t.Logf("launcher back after %v", m.killLauncher())

	if o := m.see("web-a"); o.PID != a.PID || o.State != instance.Running || o.Health != instance.Passing {
		t.Errorf("after the launcher's death: %+v, was %+v", o, a)
	}
	if got := m.get("web-a", "/whoami", nil); got != "1000:1000" {
		t.Errorf("the instance answers %q", got)
	}
	// One that was made by the dead launcher can be started, stopped, killed, and removed by the next.
	if err := m.host.Start(t.Context(), "web-waits"); err != nil {
		t.Fatal(err)
	}
	m.until("web-waits", "passing", passing)
	if err := m.host.Stop(t.Context(), "web-waits"); err != nil {
		t.Fatal(err)
	}
	known := m.host.Features().ExitCodes.OK
	code := func(known bool, want int) int {
		if !known {
			return -1
		}
		return want
	}
	if o := m.see("web-waits"); o.State != instance.Exited || o.ExitCode != code(known, 0) {
		t.Errorf("stopped under the next launcher: %+v", o)
	}
	if err := unix.Kill(b.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if o := m.until("web-b", "exited", exited); o.ExitCode != code(known, 137) {
		t.Errorf("killed under the next launcher: %+v", o)
	}
	if log := m.logs("web-waits"); !strings.Contains(log, "terminated") {
		t.Errorf("log under the next launcher: %q", log)
	}
	for _, id := range []instance.ID{"web-a", "web-b", "web-waits"} {
		if err := m.host.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	m.start(m.serving("web-new"))
	m.until("web-new", "passing", passing)
}

func TestExitIsReportedThoughLauncherAndServerWereAway(t *testing.T) {
	m := newMachine(t, inOwnRun(t))
	m.start(m.serving("web-a"))
	o := m.until("web-a", "passing", passing)
	launcher := m.launcherPID()
	if err := m.host.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(launcher, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(o.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.open()
	// Whether its code is known depends on whether the machine's first process has reaped it by then.
	o = m.until("web-a", "exited", exited)
	if want := map[int]string{-1: "not known", 137: "killed by signal 9"}[o.ExitCode]; want == "" || !strings.Contains(o.Detail, want) {
		t.Errorf("%+v, want code 137, or none", o)
	}
}

func TestServerComesBackToRunningInstances(t *testing.T) {
	m := newMachine(t, inOwnRun(t))
	m.start(m.full("web-a"))
	before := m.until("web-a", "passing", passing)
	launcher := m.launcherPID()
	if err := m.host.Close(); err != nil {
		t.Fatal(err)
	}
	m.open()
	if pid := m.launcherPID(); pid != launcher {
		t.Errorf("the launcher is %d, was %d", pid, launcher)
	}
	after := m.until("web-a", "passing", passing)
	if after.PID != before.PID {
		t.Errorf("started again: PID %d, was %d", after.PID, before.PID)
	}
	if err := m.host.Create(t.Context(), m.full("web-a")); err != nil {
		t.Errorf("its spec is not remembered: %v", err)
	}
}

func TestLauncherOfAnotherBuildIsReplaced(t *testing.T) {
	m := newMachine(t, inOwnRun(t))
	m.start(m.serving("web-a"))
	before := m.until("web-a", "passing", passing)
	launcher := m.launcherPID()
	if err := m.host.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(m.config.Launcher)
	if err != nil {
		t.Fatal(err)
	}
	m.config.Launcher = filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(m.config.Launcher, append(b, 0), 0o700); err != nil {
		t.Fatal(err)
	}
	m.open()
	if pid := m.launcherPID(); pid == launcher || pid == 0 {
		t.Errorf("the launcher is %d, was %d", pid, launcher)
	}
	if after := m.until("web-a", "passing", passing); after.PID != before.PID {
		t.Errorf("started again: %+v", after)
	}
}

// Creations that a dying launcher cuts short are carried out by the next one, or fail and leave nothing.
func TestLauncherDiesDuringCreations(t *testing.T) {
	m := newMachine(t, inOwnRun(t))
	for round := range 5 {
		done := make(chan error, 4)
		for n := range 4 {
			go func() { done <- m.host.Create(t.Context(), m.serving(fmt.Sprintf("web-%d-%d", round, n))) }()
		}
		time.Sleep(time.Duration(2+4*round) * time.Millisecond) // another moment each round
		m.killLauncher()
		for range 4 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	list, err := m.host.List(t.Context())
	if err != nil || len(list) != 20 {
		t.Fatalf("%d instances, %v; want 20", len(list), err)
	}
	for _, o := range list {
		if err := m.host.Start(t.Context(), o.Identity.ID); err != nil {
			t.Error(err)
		}
	}
	for _, o := range list {
		m.until(string(o.Identity.ID), "passing", passing)
	}
}

func TestSecondHostIsRefused(t *testing.T) {
	m := newMachine(t)
	if _, err := local.Open(t.Context(), m.config); !errors.Is(err, fault.Conflict) {
		t.Errorf("a second host: %v, want a conflict", err)
	}
}

func TestLogsAreRotated(t *testing.T) {
	m := newMachine(t, func(c *local.Config) { c.LogFileBytes, c.LogFiles = 64<<10, 3 })
	m.start(m.spec("say-a", "say", "20000", strings.Repeat("x", 20)))
	m.until("say-a", "passing", passing)
	deadline := time.Now().Add(10 * time.Second)
	for !strings.Contains(m.logs("say-a"), "\n") || !strings.Contains(m.logs("say-a"), " 19999 ") {
		if time.Now().After(deadline) {
			t.Fatal("the last line never came")
		}
		time.Sleep(10 * time.Millisecond)
	}
	files, err := filepath.Glob(filepath.Join(m.config.Dir, "logs", "say-a", "*"))
	if err != nil || len(files) != 3 {
		t.Errorf("log files: %v, %v; want 3", files, err)
	}
	size := int64(0)
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			size += info.Size()
		}
	}
	if size > 3*(64<<10)+128<<10 {
		t.Errorf("%d bytes of log, want about 3 × 64 KiB", size)
	}
	log := strings.Split(strings.TrimSpace(m.logs("say-a")), "\n")
	var first, next int
	fmt.Sscanf(strings.Fields(log[0])[2], "%d", &first)
	for n, line := range log {
		if fmt.Sscanf(strings.Fields(line)[2], "%d", &next); next != first+n {
			t.Fatalf("line %d is %q, want number %d", n, line, first+n)
		}
	}
}

func TestOldLogsOfRemovedInstancesAreDeleted(t *testing.T) {
	m := newMachine(t, func(c *local.Config) { c.KeepLogs = 1 })
	for _, id := range []string{"web-a", "web-b"} {
		m.start(m.spec(id, "exit", "0"))
		m.until(id, "exited", exited)
		if err := m.host.Remove(t.Context(), instance.ID(id)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.host.DeleteLogs(time.Now()); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(m.config.Dir, "logs", "*")); len(left) != 1 || filepath.Base(left[0]) != "web-b" {
		t.Errorf("logs left: %v, want web-b's", left)
	}
}

func TestGVisor(t *testing.T) {
	m := newMachine(t, inOwnRun(t))
	s := m.serving("web-a")
	s.Isolation, s.User = "gvisor", "0:0"
	if _, err := exec.LookPath("runsc"); err != nil {
		err := m.host.Create(t.Context(), s)
		if !errors.Is(err, fault.Invalid) || !strings.Contains(fault.Hint(err), "runsc") {
			t.Errorf("gvisor without runsc: %v, hint %q", err, fault.Hint(err))
		}
		return
	}
	m.start(s)
	m.until("web-a", "passing", passing)
	if got := m.get("web-a", "/write", url.Values{"path": {"/etc/x"}}); got != "read-only file system" {
		t.Errorf("writing /etc/x: %s", got)
	}
	if version := m.get("web-a", "/read", url.Values{"path": {"/proc/version"}}); strings.Contains(version, m.host.Features().Kernel) {
		t.Errorf("the instance sees the machine's kernel: %s", version)
	}
	if err := m.host.Stop(t.Context(), "web-a"); err != nil {
		t.Fatal(err)
	}
	if o := m.see("web-a"); o.State != instance.Exited || o.ExitCode != 0 {
		t.Errorf("stopped: %+v", o)
	}
	if t.Failed() {
		said, _ := os.ReadFile(filepath.Join(m.config.RunDir, "launcher.log"))
		t.Logf("launcher: %s", said)
	}
}

func TestInstanceThatVanishesIsNoLongerListed(t *testing.T) {
	m := newMachine(t, inOwnRun(t))
	m.start(m.serving("web-a"))
	o := m.until("web-a", "passing", passing)
	// Somebody deletes its record and its process, then the launcher dies: nobody knows it any more.
	if err := os.RemoveAll(filepath.Join(m.config.RunDir, "instances", "web-a", "oci")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(o.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.killLauncher()
	m.until("web-a", "absent", func(o instance.Observation) bool { return o.State == instance.Absent })
	m.start(m.serving("web-a"))
	m.until("web-a", "passing", passing)
}

// BenchmarkColdStart is from asked to the TCP port accepting, image local, all isolation on.
func BenchmarkColdStart(b *testing.B) {
	m := newMachine(b)
	n := 0
	for b.Loop() {
		s := m.serving(fmt.Sprintf("web-%d", n))
		n++
		m.start(s)
		m.accepts(s)
		b.StopTimer()
		m.remove(s)
		b.StartTimer()
	}
}

// BenchmarkWarmStart is the same for an instance that was created ahead.
func BenchmarkWarmStart(b *testing.B) {
	m := newMachine(b)
	n := 0
	for b.Loop() {
		b.StopTimer()
		s := m.serving(fmt.Sprintf("web-%d", n))
		n++
		if err := m.host.Create(b.Context(), s); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := m.host.Start(b.Context(), s.Identity.ID); err != nil {
			b.Fatal(err)
		}
		m.accepts(s)
		b.StopTimer()
		m.remove(s)
		b.StartTimer()
	}
}

func (m *machine) accepts(s runtime.Spec) {
	n, err := m.host.Network(m.t.Context(), s.Identity.ID)
	if err != nil {
		m.t.Fatal(err)
	}
	for {
		conn, err := local.DialIn(m.t.Context(), n.Path, 80)
		if err == nil {
			conn.Close()
			return
		}
		time.Sleep(150 * time.Microsecond)
	}
}

func (m *machine) remove(s runtime.Spec) {
	if err := m.host.Remove(m.t.Context(), s.Identity.ID); err != nil {
		m.t.Fatal(err)
	}
}

func TestWaitingInstanceIsSmall(t *testing.T) {
	m := newMachine(t, inOwnRun(t))
	if err := m.host.Create(t.Context(), m.full("web-a")); err != nil {
		t.Fatal(err)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	found := false
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil || !strings.Contains(string(b), "invar-"+filepath.Base(m.config.RunDir)+"/web-a") {
			continue
		}
		found = true
		smaps, err := os.ReadFile(filepath.Join(filepath.Dir(p), "smaps_rollup"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(smaps)) {
			var kib int
			if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kib); n == 1 {
				t.Logf("a waiting instance holds %d KiB (Pss)", kib)
				if kib > 16<<10 {
					t.Errorf("a waiting instance holds %d KiB, want at most 16 MiB", kib)
				}
			}
		}
	}
	if !found {
		t.Error("no process of the waiting instance")
	}
}
