package local_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/local"
)

// outside starts a process on the host, which is ended with the test.
func (m *machine) outside(name string, args ...string) *exec.Cmd {
	m.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		cmd.Wait()
	})
	return cmd
}

// foundWithin waits for a foreign process in the instance, five seconds at most.
func (m *machine) foundWithin(id string) instance.Foreign {
	m.t.Helper()
	limit := time.After(5 * time.Second)
	for {
		changed := m.host.Changed()
		if o := m.see(id); len(o.Foreign) > 0 {
			return o.Foreign[0]
		}
		select {
		case <-changed:
		case <-limit:
			m.t.Fatal("not found within 5s")
		}
	}
}

func TestForeignProcessIsFoundWithinFiveSeconds(t *testing.T) {
	if _, err := exec.LookPath("nsenter"); err != nil {
		t.Skip("needs nsenter, of util-linux")
	}
	m := newMachine(t)
	_, server := programs(t)
	for name, c := range map[string]struct {
		args func(pid string, id string) []string
		want string // a namespace that it is in
	}{
		"all of its namespaces": {func(pid, _ string) []string { return []string{"nsenter", "-t", pid, "-a", "/bin/server", "sleep"} }, "mnt"},
		"its network only":      {func(pid, _ string) []string { return []string{"nsenter", "-t", pid, "-n", "sleep", "60"} }, "net"},
		"its pinned network": {func(_, id string) []string {
			n, err := m.host.Network(t.Context(), instance.ID(id))
			if err != nil {
				t.Fatal(err)
			}
			return []string{"nsenter", "--net=" + n.Path, "sleep", "60"}
		}, "net"},
		"its mounts only":    {func(pid, _ string) []string { return []string{"nsenter", "-t", pid, "-m", "/bin/server", "sleep"} }, "mnt"},
		"its processes only": {func(pid, _ string) []string { return []string{"nsenter", "-t", pid, "-p", "sleep", "60"} }, "pid_for_children"},
		"one thread":         {func(pid, _ string) []string { return []string{server, "join", "/proc/" + pid + "/ns/net"} }, "net"},
		"its cgroup":         {func(_, id string) []string { return []string{"sleep", "60"} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			id := "web-" + strings.ReplaceAll(name, " ", "-")
			pid := m.run(id).PID
			args := c.args(strconv.Itoa(pid), id)
			began := time.Now()
			cmd := m.outside(args[0], args[1:]...)
			if c.want == "" {
				m.moveTo(cmd.Process.Pid, id)
			}
			f := m.foundWithin(id)
			t.Logf("found after %v: %v", time.Since(began).Round(time.Millisecond), f)
			if c.want != "" && !slices.Contains(f.Namespaces, c.want) && !slices.Contains(f.Namespaces, "pid") || c.want == "" && !f.Cgroup {
				t.Errorf("found in %v, cgroup %v", f.Namespaces, f.Cgroup)
			}
			if f.PID == pid || f.UID != 0 && f.UID != local.UIDBase || f.Command == "" || time.Since(f.StartedAt) > time.Minute || time.Since(f.StartedAt) < -time.Second {
				t.Errorf("measured %+v", f)
			}
			if name == "one thread" && f.TID == 0 {
				t.Errorf("a process where a thread joined: %+v", f)
			}
		})
	}
}

// moveTo puts a process into the instance's cgroup by hand.
func (m *machine) moveTo(pid int, id string) {
	m.t.Helper()
	moved := 0
	group := "/invar-" + filepath.Base(m.host.Run()) + "/" + id // beside this test, others may run
	filepath.WalkDir("/sys/fs/cgroup", func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.HasSuffix(path, group) {
			if os.WriteFile(filepath.Join(path, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0) == nil {
				moved++
			}
		}
		return nil
	})
	if moved == 0 {
		m.t.Skip("this machine has no cgroups that a process can be moved to")
	}
}

// Checks that run commands, sessions, and connections into the network are the instance's own business.
func TestOwnProcessesAreNotForeign(t *testing.T) {
	m := newMachine(t)
	for n := range 8 {
		s := m.serving(fmt.Sprintf("web-%d", n))
		s.Health = &runtime.Health{Exec: []string{"/bin/server", "check", "/bin/server"}, Interval: 20 * time.Millisecond, Timeout: 5 * time.Second, Failures: 5}
		m.start(s)
	}
	var busy sync.WaitGroup
	until := time.Now().Add(4 * time.Second)
	for n := range 8 {
		id := fmt.Sprintf("web-%d", n)
		busy.Go(func() {
			for time.Now().Before(until) {
				m.host.Exec(t.Context(), instance.ID(id), runtime.Session{Args: []string{"/bin/server", "exit", "0"}})
				if c, err := local.DialIn(t.Context(), m.network(id), 80); err == nil {
					c.Close()
				}
			}
		})
	}
	busy.Wait()
	for n := range 8 {
		if o := m.see(fmt.Sprintf("web-%d", n)); len(o.Foreign) > 0 {
			t.Errorf("%s: %v", o.Identity.ID, o.Foreign)
		}
	}
}

func (m *machine) network(id string) string {
	n, err := m.host.Network(m.t.Context(), instance.ID(id))
	if err != nil {
		return ""
	}
	return n.Path
}

func BenchmarkScan(b *testing.B) {
	m := newMachine(b)
	const instances = 100
	for n := range instances {
		m.start(m.serving(fmt.Sprintf("web-%d", n)))
	}
	scan := m.host.Scanner()
	b.ReportMetric(instances, "instances")
	for b.Loop() {
		scan()
	}
}
