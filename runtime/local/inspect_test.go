package local_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/local"
	"github.com/invarhq/invar/runtime/local/tampering"
)

// findings are what an inspection finds, in words.
func (m *machine) findings(s runtime.Spec) []string {
	m.t.Helper()
	x, err := m.host.Inspect(m.t.Context(), runtime.Question{Spec: s.WithoutSecrets()})
	if err != nil {
		m.t.Fatal(err)
	}
	var out []string
	for _, f := range drift.Compare(x.Want, x.Got) {
		out = append(out, f.String())
	}
	if len(out) == 0 && x.Want.Len() < 30 {
		m.t.Errorf("only %d facts follow from the spec", x.Want.Len())
	}
	return out
}

// everything has all that a spec can have.
func (m *machine) everything(id string) runtime.Spec {
	s := m.serving(id)
	s.WorkDir = "/data"
	s.Hosts = []runtime.HostEntry{{Address: "127.77.0.1", Names: []string{"db"}}}
	s.Files = []runtime.File{
		{Path: "/etc/app/config", Content: []byte("a"), Mode: 0o400, User: "web"},
		{Path: "/run/secrets/key", Content: []byte("secret"), Mode: 0o400, Secret: digest.Of([]byte("version"))},
	}
	s.Scratches = append(s.Scratches, runtime.Scratch{Path: "/tmp", SizeBytes: 1 << 20})
	s.Volumes = []runtime.Volume{{Env: "test", Component: "web", Name: "data", Path: "/data/run"}}
	s.CPUMillis, s.MemoryBytes, s.PIDs = 500, 100_000_000, 64
	return s
}

func TestUntouchedInstanceHasNoFinding(t *testing.T) {
	for name, change := range map[string]func(*local.Config){
		"": func(*local.Config) {}, "without user namespaces": func(c *local.Config) { c.WithoutUserNamespaces = true },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, change)
			small := m.spec("small-1", "sleep")
			big := m.everything("big-1")
			for _, s := range []runtime.Spec{small, big} {
				m.start(s)
			}
			m.until("big-1", "passing", func(o instance.Observation) bool { return o.Health == instance.Passing })
			for range 3 {
				for _, s := range []runtime.Spec{small, big} {
					if found := m.findings(s); len(found) > 0 {
						t.Errorf("%s:\n%s", s.Identity.ID, strings.Join(found, "\n"))
					}
				}
				if err := m.host.Close(); err != nil {
					t.Fatal(err)
				}
				m.open()
			}
			x, err := m.host.Inspect(t.Context(), runtime.Question{Spec: small, Content: true})
			if found := drift.Compare(x.Want, x.Got); err != nil || len(found) > 0 {
				t.Errorf("with the content: %v %v", found, err)
			}
		})
	}
}

// tamper is something that somebody who is root on the machine does to an instance.
type tamper struct {
	do   func(m *machine, s runtime.Spec)
	want string // part of a finding
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) pid(s runtime.Spec) string {
	return strconv.Itoa(m.see(string(s.Identity.ID)).PID)
}

// tampered does what root on the machine can.
func (m *machine) tampered(s runtime.Spec, act tampering.Act) {
	m.t.Helper()
	_, err := act(m.target(string(s.Identity.ID)))
	m.must(err)
}

func (m *machine) flip(s runtime.Spec) { m.tampered(s, tampering.FlipByte) }

// setLimit writes a limit of the instance's cgroup.
func (m *machine) setLimit(s runtime.Spec, file, value string) {
	m.t.Helper()
	paths, _ := filepath.Glob("/sys/fs/cgroup/*/invar-" + filepath.Base(m.host.Run()) + "/" + string(s.Identity.ID) + "/" + file)
	if len(paths) == 0 {
		m.t.Skip("this machine has no limits of that kind")
	}
	m.must(os.WriteFile(paths[0], []byte(value), 0))
}

// again has the launcher start the instance anew while no server looks, changed.
func (m *machine) again(s runtime.Spec, change func(*specs.Spec)) {
	m.t.Helper()
	m.tampered(s, tampering.Again(change))
	m.must(m.host.Close())
	m.open()
}

// What is declared to be dynamic is no finding: of other components it is.
func TestListenersOfDynamicPortsAreNoFinding(t *testing.T) {
	m := newMachine(t)
	s := m.everything("web-1")
	s.DynamicPorts = true
	m.start(s)
	m.listen(s, 9999)
	m.bind(s, 5353)
	if found := m.findings(s); len(found) > 0 {
		t.Errorf("found:\n%s", strings.Join(found, "\n"))
	}
	s.DynamicPorts = false
	if found := strings.Join(m.findings(s), "\n"); !strings.Contains(found, "port tcp 127.0.0.1:9999: listening") || !strings.Contains(found, "port udp 127.0.0.1:5353: listening") {
		t.Errorf("found:\n%s", found)
	}
}

func TestEachTamperingIsFoundWithinFiveSeconds(t *testing.T) {
	for name, c := range map[string]tamper{
		"a byte of the root's file flipped":          {(*machine).flip, "root content: sha256:"},
		"the immutable attribute taken off":          {func(m *machine, s runtime.Spec) { m.tampered(s, tampering.Mutable) }, "root file: inode"},
		"a file bind-mounted over one in the root":   {(*machine).overmount, "mount /etc/passwd: file"},
		"a limit changed":                            {func(m *machine, s runtime.Spec) { m.setLimit(s, "pids.max", "1000") }, "limit processes: 1000 instead of 64"},
		"a limit taken away":                         {func(m *machine, s runtime.Spec) { m.setLimit(s, "pids.max", "max") }, "limit processes: none instead of 64"},
		"the hosts file edited":                      {func(m *machine, s runtime.Spec) { m.edit(s, "0") }, "file /etc/hosts: sha256:"},
		"the hosts file edited, its times as before": {(*machine).editMapped, "file /etc/hosts: sha256:"},
		"a given file edited":                        {func(m *machine, s runtime.Spec) { m.edit(s, "2") }, "file /etc/app/config: sha256:"},
		"an undeclared listener":                     {func(m *machine, s runtime.Spec) { m.listen(s, 9999) }, "port tcp 127.0.0.1:9999: listening"},
		"an undeclared UDP socket":                   {func(m *machine, s runtime.Spec) { m.bind(s, 5353) }, "port udp 127.0.0.1:5353: listening"},
		"a file in a scratch made executable": {func(m *machine, s runtime.Spec) {
			m.session(s, "plant", "/scratch/deep/er/evil")
		}, "writable /scratch/deep/er/evil: executable, which was not released"},
		"a program that lies in memory": {func(m *machine, s runtime.Spec) {
			m.session(s, "memory")
		}, "runs /memfd:evil (deleted), which was deleted or never was a file, which was not released"},
		"a program of the machine": {func(m *machine, s runtime.Spec) {
			m.moveTo(m.outside("sleep", "60").Process.Pid, string(s.Identity.ID))
		}, "sleep, which is neither of the root nor of a volume, which was not released"},
		"a process with more rights": {func(m *machine, s runtime.Spec) {
			m.moveTo(m.outside("nsenter", "-t", m.pid(s), "-m", "/bin/server", "sleep").Process.Pid, string(s.Identity.ID))
		}, "Uid 0 0 0 0 instead of 1073742824"},
		"started by hand, and the record put back": {func(m *machine, s runtime.Spec) {
			undo, err := tampering.AgainUnseen(tampering.OtherArguments)(m.target(string(s.Identity.ID)))
			m.must(err)
			m.t.Cleanup(undo)
			m.must(m.host.Close())
			m.open()
		}, "process record: not what the launcher says that it was told"},
		"another root in place of the right one": {func(m *machine, s runtime.Spec) {
			at := m.host.RootMount(s.Identity.ID)
			m.must(unix.Mount("other", at, "tmpfs", 0, ""))
		}, "root mount: another mount"},
		"other arguments": {func(m *machine, s runtime.Spec) {
			m.again(s, func(o *specs.Spec) { o.Process.Args = []string{"/bin/server", "serve", "81"} })
		}, `process arguments: "/bin/server" "serve" "81" instead of "/bin/server" "serve" "80"`},
		"other variables": {func(m *machine, s runtime.Spec) {
			m.again(s, func(o *specs.Spec) { o.Process.Env = append(o.Process.Env, "LD_PRELOAD=/data/evil.so") })
		}, `variable LD_PRELOAD: "/data/evil.so", which was not released`},
		"another user": {func(m *machine, s runtime.Spec) {
			m.again(s, func(o *specs.Spec) { o.Process.User.UID = 0 })
		}, "user uids: 1073741824"},
		"a capability added": {func(m *machine, s runtime.Spec) {
			m.again(s, func(o *specs.Spec) {
				caps := []string{"CAP_NET_ADMIN"}
				o.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps, Ambient: caps}
			})
		}, "capability CapEff: 0000000000001000 instead of 0000000000000000"},
		"no seccomp filter": {func(m *machine, s runtime.Spec) {
			m.again(s, func(o *specs.Spec) { o.Linux.Seccomp = nil })
		}, "confinement seccomp mode: 0 instead of 2"},
		"new privileges allowed": {func(m *machine, s runtime.Spec) {
			m.again(s, func(o *specs.Spec) { o.Process.NoNewPrivileges = false })
		}, "confinement no_new_privs: 0 instead of 1"},
		"the machine's processes": {func(m *machine, s runtime.Spec) {
			m.again(s, func(o *specs.Spec) {
				for n := range o.Linux.Namespaces {
					if o.Linux.Namespaces[n].Type == specs.IPCNamespace {
						o.Linux.Namespaces = append(o.Linux.Namespaces[:n], o.Linux.Namespaces[n+1:]...)
						return
					}
				}
			})
		}, "namespace ipc: the machine's instead of of its own"},
		"a scratch that can be executed": {func(m *machine, s runtime.Spec) {
			m.again(s, func(o *specs.Spec) {
				for n := range o.Mounts {
					if o.Mounts[n].Destination == "/scratch" {
						o.Mounts[n].Options = []string{"nosuid", "nodev"}
					}
				}
			})
		}, "mount /scratch: tmpfs nosuid,nodev instead of tmpfs nosuid,nodev,noexec"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			s := m.everything("web-1")
			m.start(s)
			if found := m.findings(s); len(found) > 0 {
				t.Fatalf("before:\n%s", strings.Join(found, "\n"))
			}
			c.do(m, s)
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			var found []string
			for ctx.Err() == nil {
				found = m.findings(s)
				for _, f := range found {
					if strings.Contains(f, c.want) {
						t.Logf("found after %v: %s", time.Since(began).Round(time.Millisecond), f)
						return
					}
				}
				time.Sleep(50 * time.Millisecond)
			}
			t.Errorf("want %q within 5s, found:\n%s", c.want, strings.Join(found, "\n"))
		})
	}
}

// edit appends to a file that the instance was given.
func (m *machine) edit(s runtime.Spec, n string) {
	m.t.Helper()
	f, err := os.OpenFile(filepath.Join(m.host.Run(), "instances", string(s.Identity.ID), "files", n), os.O_WRONLY|os.O_APPEND, 0)
	m.must(err)
	_, err = f.WriteString("127.0.0.1\tevil\n")
	m.must(err)
	m.must(f.Close())
}

// editMapped writes to the hosts file through a mapping that was written to before: that changes none of a tmpfs's times.
func (m *machine) editMapped(s runtime.Spec) {
	m.t.Helper()
	f, err := os.OpenFile(filepath.Join(m.host.Run(), "instances", string(s.Identity.ID), "files", "0"), os.O_RDWR, 0)
	m.must(err)
	defer f.Close()
	info, err := f.Stat()
	m.must(err)
	mapped, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	m.must(err)
	defer unix.Munmap(mapped)
	mapped[len(mapped)-1] = 0x0a // as it is; the page is writable from here on
	before, err := f.Stat()
	m.must(err)
	time.Sleep(1100 * time.Millisecond) // so that the change is not a fresh one
	if found := m.findings(s); len(found) > 0 {
		m.t.Fatalf("while nothing differs: %v", found)
	}
	mapped[0] ^= 1
	after, err := f.Stat()
	m.must(err)
	if !after.ModTime().Equal(before.ModTime()) {
		m.t.Log("this kernel tells by its times")
	}
}

// overmount mounts a file over one of the root, in the instance.
func (m *machine) overmount(s runtime.Spec) {
	m.t.Helper()
	evil := filepath.Join(m.host.Run(), "instances", string(s.Identity.ID), "files", "2")
	tree, err := unix.OpenTree(unix.AT_FDCWD, evil, unix.OPEN_TREE_CLONE)
	m.must(err)
	defer unix.Close(tree)
	ns, err := unix.Open("/proc/"+m.pid(s)+"/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	m.must(err)
	defer unix.Close(ns)
	m.must(local.MountIn(ns, tree, "/etc/passwd"))
}

// listen opens a listener in the instance's network.
func (m *machine) listen(s runtime.Spec, port int) {
	m.t.Helper()
	fd, err := local.ListenIn(m.network(string(s.Identity.ID)), port)
	m.must(err)
	m.t.Cleanup(func() { unix.Close(fd) })
}

// bind takes an UDP port in the instance's network.
func (m *machine) bind(s runtime.Spec, port int) {
	m.t.Helper()
	fd, err := local.BindIn(m.network(string(s.Identity.ID)), port)
	m.must(err)
	m.t.Cleanup(func() { unix.Close(fd) })
}

// session runs the test server in the instance beside its first process, until the test ends.
func (m *machine) session(s runtime.Spec, args ...string) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		_, err := m.host.Exec(ctx, s.Identity.ID, runtime.Session{Args: append([]string{"/bin/server"}, args...)})
		ended <- err
	}()
	m.t.Cleanup(func() { cancel(); <-ended })
}

// What the gateway said that it opened in an instance must be there, and be the gateway's.
func TestListenersOfTheGatewayMustBeThere(t *testing.T) {
	gateway := os.Getpid()
	m := newMachine(t, func(c *local.Config) { c.Companions = func() []int { return []int{gateway} } })
	s := m.serving("web-1")
	m.start(s)
	look := func(opened bool) string {
		x, err := m.host.Inspect(t.Context(), runtime.Question{Spec: s.WithoutSecrets(), Listeners: []string{"127.0.0.1:5432"}, Opened: opened})
		m.must(err)
		var found []string
		for _, f := range drift.Compare(x.Want, x.Got) {
			found = append(found, f.String())
		}
		return strings.Join(found, "\n")
	}
	const missing = "port tcp 127.0.0.1:5432: nothing instead of listening, by the gateway"
	if got := look(false) + look(true); got != missing {
		t.Errorf("before: %q", got)
	}
	fd, err := local.ListenIn(m.network("web-1"), 5432)
	m.must(err)
	if got := look(false) + look(true); got != "" {
		t.Errorf("with the gateway's: %q", got)
	}
	unix.Close(fd)
	if got := look(true); got != missing {
		t.Errorf("after it was closed: %q", got)
	}
	gateway = m.outside("sleep", "60").Process.Pid
	m.listen(s, 5432)
	if got := look(true); got != "port tcp 127.0.0.1:5432: listening, by another process than the gateway instead of listening, by the gateway" {
		t.Errorf("with another's: %q", got)
	}
	if got := look(false); !strings.HasPrefix(got, "port tcp 127.0.0.1:5432: listening, by another process") {
		t.Errorf("with another's, where the gateway has not yet opened its own: %q", got)
	}
}

// What a program does with what it was given is its own business, at every look.
func TestBusyProgramHasNoFinding(t *testing.T) {
	m := newMachine(t)
	s := m.serving("web-1")
	s.Args = []string{"/bin/server", "busy"}
	m.start(s)
	m.until("web-1", "passing", passing)
	for range 20 {
		if found := m.confirmed(s); len(found) > 0 {
			t.Fatalf("found:\n%s", strings.Join(found, "\n"))
		}
	}
}

// confirmed is what two looks find, as an inspector takes them.
func (m *machine) confirmed(s runtime.Spec) []string {
	m.t.Helper()
	look := func() []instance.Finding {
		x, err := m.host.Inspect(m.t.Context(), runtime.Question{Spec: s.WithoutSecrets()})
		m.must(err)
		return drift.Compare(x.Want, x.Got)
	}
	first := look()
	if len(first) == 0 {
		return nil
	}
	time.Sleep(200 * time.Millisecond)
	var out []string
	for _, f := range drift.Confirmed(first, look()) {
		out = append(out, f.String())
	}
	return out
}

// A look takes from memory what can't have changed, and sees every change nevertheless, also those that leave size and modification time.
func TestMemoryHidesNoChange(t *testing.T) {
	m := newMachine(t)
	s := m.everything("web-1")
	m.start(s)
	for range 3 {
		if found := m.findings(s); len(found) > 0 {
			t.Fatalf("before:\n%s", strings.Join(found, "\n"))
		}
	}
	file := filepath.Join(m.host.Run(), "instances", "web-1", "files", "2")
	info, err := os.Stat(file)
	m.must(err)
	m.must(os.WriteFile(file, []byte("b"), 0o400))
	m.must(os.Chtimes(file, info.ModTime(), info.ModTime()))
	if found := m.findings(s); len(found) != 1 || !strings.HasPrefix(found[0], "file /etc/app/config: sha256:") {
		t.Errorf("after a change of one byte: %q", found)
	}
	m.must(os.WriteFile(file, []byte("a"), 0o400))
	if found := m.findings(s); len(found) > 0 {
		t.Errorf("after it was undone: %q", found)
	}
	changed := s
	changed.Env = append([]string{"B=c"}, s.Env...)
	if found := m.findings(changed); len(found) != 1 || !strings.HasPrefix(found[0], "variable B: nothing") {
		t.Errorf("with another question: %q", found)
	}
}

// A sign comes at once when a file is touched that looks read, and none while nothing is.
func TestTouchIsToldAtOnce(t *testing.T) {
	for name, touch := range map[string]func(m *machine, s runtime.Spec){
		"the hosts file":     func(m *machine, s runtime.Spec) { m.edit(s, "0") },
		"a byte of the root": (*machine).flip,
		"what the launcher knows": func(m *machine, s runtime.Spec) {
			m.appendTo(filepath.Join("instances", "web-1", "oci", "config.json"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			s := m.everything("web-1")
			m.start(s)
			m.until("web-1", "passing", passing)
			m.findings(s)
			sign := m.host.Touched()
			select {
			case <-sign:
				t.Fatal("a sign, though nothing was touched")
			case <-time.After(300 * time.Millisecond):
			}
			touch(m, s)
			select {
			case <-sign:
			case <-time.After(2 * time.Second):
				t.Error("no sign within 2s")
			}
		})
	}
}

// appendTo writes to a file of the run directory.
func (m *machine) appendTo(name string) {
	m.t.Helper()
	f, err := os.OpenFile(filepath.Join(m.host.Run(), name), os.O_WRONLY|os.O_APPEND, 0)
	m.must(err)
	_, err = f.WriteString("\n")
	m.must(errors.Join(err, f.Close()))
}

func TestRootThatWasTouchedIsNotGivenToNewInstances(t *testing.T) {
	var m *machine
	var sound []byte
	restored := 0
	m = newMachine(t, func(c *local.Config) {
		c.Restore = func(_ context.Context, d digest.Digest) error {
			restored++
			return os.WriteFile(filepath.Join(c.Dir, "roots", d.Hex()+".erofs"), sound, 0o600)
		}
	})
	first, second, third := m.serving("web-1"), m.serving("web-2"), m.serving("web-3")
	m.start(first)
	var err error
	sound, err = os.ReadFile(m.host.RootFile("web-1"))
	m.must(err)
	m.flip(first)
	m.start(second)
	if found := m.findings(second); len(found) > 0 || restored != 1 {
		t.Errorf("restored %d times, found:\n%s", restored, strings.Join(found, "\n"))
	}
	kept, _ := filepath.Glob(m.host.RootFile("web-1") + ".tampered-*")
	if len(kept) != 1 {
		t.Errorf("the file that had changed is kept as %v", kept)
	}
	m.must(unix.Mount("other", m.host.RootMount("web-1"), "tmpfs", 0, ""))
	m.start(third)
	if found := m.findings(third); len(found) > 0 {
		t.Errorf("with another mount in its place, found:\n%s", strings.Join(found, "\n"))
	}
	if found := m.findings(first); len(found) == 0 {
		t.Error("the first one still runs on the root that had changed, and nothing was found")
	}
}

// BenchmarkInspect tells the processor time of a look, and of a scan for foreign processes, at 100 instances.
func BenchmarkInspect(b *testing.B) {
	m := newMachine(b)
	const instances = 100
	var all []runtime.Spec
	for n := range instances {
		s := m.everything(fmt.Sprintf("web-%d", n))
		s.Volumes, s.Ports, s.Health = nil, nil, nil // so that nothing is checked meanwhile
		s.Args = []string{"/bin/server", "sleep"}
		m.start(s)
		all = append(all, s.WithoutSecrets())
	}
	scan := m.host.Scanner()
	for name, act := range map[string]func(){
		"look": func() {
			for _, s := range all {
				if _, err := m.host.Inspect(b.Context(), runtime.Question{Spec: s}); err != nil {
					b.Fatal(err)
				}
			}
		},
		"scan": scan,
	} {
		b.Run(name, func(b *testing.B) {
			act()
			began := cpu(b)
			for b.Loop() {
				act()
			}
			b.ReportMetric(float64(cpu(b)-began)/1e3/float64(b.N)/instances, "cpu-µs/instance")
		})
	}
}

// cpu is what this process has used of the processors.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
