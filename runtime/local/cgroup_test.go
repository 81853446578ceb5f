package local_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/runtime/local"
)

func TestLimitsAreSet(t *testing.T) {
	m := newMachine(t, inOwnRun(t))
	f := m.host.Features()
	if !f.Limits.OK {
		t.Skip("no limits on this machine: ", f.Limits.Detail)
	}
	m.start(m.full("web-a"))
	group := "invar-" + filepath.Base(m.config.RunDir) + "/web-a/"
	want := map[string]string{ // of 64 MiB, half a CPU, 50 processes
		"memory/" + group + "memory.limit_in_bytes": "67108864",
		"cpu/" + group + "cpu.cfs_quota_us":         "50000",
		"pids/" + group + "pids.max":                "50",
	}
	if f.CgroupVersion == 2 {
		want = map[string]string{group + "memory.max": "67108864", group + "memory.swap.max": "0", group + "cpu.max": "50000 100000", group + "pids.max": "50"}
	}
	for file, want := range want {
		b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", file))
		if got := strings.TrimSpace(string(b)); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", file, got, err, want)
		}
	}
}

func TestLauncherIsNotInTheServersGroup(t *testing.T) {
	m := newMachine(t, inOwnRun(t))
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", m.launcherPID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if tracked := parts[1] == "" || parts[1] == "name=systemd"; tracked && !strings.HasSuffix(parts[2], "/_launcher") {
			t.Errorf("the launcher is in group %s", strings.TrimSpace(line))
		}
	}
}

// TestCgroupV2 runs the life of an instance where /sys/fs/cgroup is cgroup v2 alone: in a mount namespace of its own, unless the
// machine is so anyway. On a machine whose controllers are bound to v1, v2 has none; then this proves that
// instances run and are cleaned up under v2, that their group is right, and that the lack of limits is reported.
func TestCgroupV2(t *testing.T) {
	programs(t)
	if os.Getenv("INVAR_TEST_CGROUP2") == "" {
		inCgroup2View(t)
		return
	}
	m := newMachine(t, inOwnRun(t))
	f := m.host.Features()
	if f.CgroupVersion != 2 {
		t.Fatalf("the view is of cgroup v%d", f.CgroupVersion)
	}
	t.Logf("limits: %v, %s", f.Limits.OK, f.Limits.Detail)
	m.start(m.full("web-a"))
	o := m.until("web-a", "passing", passing)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", o.PID))
	if err != nil {
		t.Fatal(err)
	}
	if want := "0::/invar-" + filepath.Base(m.config.RunDir) + "/web-a\n"; !strings.Contains(string(b), want) {
		t.Errorf("groups of the instance: %s, want %s", b, want)
	}
	if f.Limits.OK {
		t.Run("Limits", TestLimitsAreSet)
		t.Run("Memory", TestMemoryLimitIsReported)
	} else if !strings.Contains(f.Limits.Detail, "controller") {
		t.Errorf("the lack of limits is told as %q", f.Limits.Detail)
	}
	m.killLauncher()
	if err := m.host.Stop(t.Context(), "web-a"); err != nil {
		t.Fatal(err)
	}
	m.until("web-a", "exited", exited)
	if err := m.host.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/invar-" + filepath.Base(m.config.RunDir) + "*"); len(left) > 0 {
		t.Errorf("groups left: %v", left)
	}
	m.open() // for the cleanup
}

// inCgroup2View runs this test again in a mount namespace where /sys/fs/cgroup is cgroup v2.
func inCgroup2View(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCgroupV2$", "-test.v")
	cmd.Env = append(os.Environ(), "INVAR_TEST_CGROUP2=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	// The shell mounts before the test starts: its own mounts, in the namespace that it is alone in.
	if f := local.Probe(t.Context(), false); f.CgroupVersion != 2 {
		cmd = exec.CommandContext(t.Context(), "/bin/sh", "-c", `mount -t cgroup2 none /sys/fs/cgroup && exec "$0" "$@"`, os.Args[0], "-test.run=^TestCgroupV2$", "-test.v")
		cmd.Env = append(os.Environ(), "INVAR_TEST_CGROUP2=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("under cgroup v2: %v", err)
	}
}
