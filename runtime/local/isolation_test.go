package local_test

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/local"
)

// full is an instance with one of everything.
func (m *machine) full(id string) runtime.Spec {
	s := m.serving(id)
	s.WorkDir = "/srv/app" // not in the root
	s.Hosts = []runtime.HostEntry{{Address: "127.77.0.2", Names: []string{"db", "db.test"}}}
	s.Files = []runtime.File{
		{Path: "/etc/web/config.yaml", Content: []byte("level: info\n"), Mode: 0o444},
		{Path: "/etc/passwd", Content: []byte("web:x:1000:1000::/:/bin/sh\n"), Mode: 0o440, User: "0:2000"}, // shadows the root's
		{Path: "/run/secrets/password", Content: []byte("hunter2"), Mode: 0o400, User: "web", Secret: digest.Of([]byte("ciphertext"))},
	}
	s.Scratches = append(s.Scratches, runtime.Scratch{Path: "/tmp", SizeBytes: 1 << 20})
	s.Volumes = []runtime.Volume{{Env: "test", Component: "web", Name: "data", Path: "/data"}, {Env: "test", Component: "web", Name: "new", Path: "/var/lib/new"}}
	s.MemoryBytes = 64 << 20
	s.CPUMillis = 500
	s.PIDs = 50
	return s
}

func TestWritesFailButInScratchesAndVolumes(t *testing.T) {
	m := newMachine(t)
	s := m.full("web-a")
	s.User = "0:0" // who could write most
	m.start(s)
	m.until("web-a", "passing", passing)
	for path, want := range map[string]string{
		"/scratch/x":                "written",
		"/tmp/x":                    "written",
		"/var/lib/new/x":            "written",
		"/x":                        "read-only file system",
		"/etc/x":                    "read-only file system",
		"/etc/hosts":                "read-only file system",
		"/etc/resolv.conf":          "read-only file system",
		"/etc/web/config.yaml":      "read-only file system",
		"/etc/web/x":                "read-only file system",
		"/etc/passwd":               "read-only file system",
		"/run/x":                    "read-only file system",
		"/run/secrets/x":            "read-only file system",
		"/bin/server":               "read-only file system",
		"/var/lib/x":                "read-only file system",
		"/srv/app/x":                "read-only file system",
		"/dev/x":                    "read-only file system",
		"/dev/shm/x":                "no such file or directory",
		"/dev/pts/x":                "permission denied",
		"/proc/sys/kernel/hostname": "read-only file system",
		"/proc/x":                   "no such file or directory",
	} {
		if got := m.get("web-a", "/write", url.Values{"path": {path}}); got != want {
			t.Errorf("writing %s: %s, want %s", path, got, want)
		}
	}
}

func TestUserWritesWhereItsVolumeIs(t *testing.T) {
	m := newMachine(t)
	m.start(m.full("web-a"))
	m.until("web-a", "passing", passing)
	for path, want := range map[string]string{"/data/x": "written", "/var/lib/new/x": "written", "/srv/app/x": "read-only file system"} {
		if got := m.get("web-a", "/write", url.Values{"path": {path}}); got != want {
			t.Errorf("writing %s: %s, want %s", path, got, want)
		}
	}
}

func TestFilesAppearAsDeclared(t *testing.T) {
	m := newMachine(t)
	m.start(m.full("web-a"))
	m.until("web-a", "passing", passing)
	for path, want := range map[string]string{
		"/etc/web/config.yaml":  "-r--r--r-- 1000:1000",
		"/etc/passwd":           "-r--r----- 0:2000",
		"/run/secrets/password": "-r-------- 1000:1000",
		"/etc/hosts":            "-r--r--r-- 0:0",
		"/bin/server":           "-rwxr-xr-x 0:0",
		"/tmp":                  "dtrwxrwxrwx 0:0",
		"/data":                 "drwxr-xr-x 1000:1000", // as in the root
		"/data/seed":            "-rw-r----- 1000:1000",
		"/var/lib/new":          "drwxr-xr-x 1000:1000", // the instance's user's
		"/srv/app":              "drwxr-xr-x 0:0",
		"/dev/null":             "Dcrw-rw-rw- 65534:65534",
	} {
		if got := m.get("web-a", "/stat", url.Values{"path": {path}}); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	for path, want := range map[string]string{
		"/etc/hosts":                "127.0.0.1\tlocalhost web-a\n127.77.0.2\tdb db.test\n",
		"/etc/resolv.conf":          "",
		"/etc/web/config.yaml":      "level: info\n",
		"/run/secrets/password":     "hunter2",
		"/data/seed":                "seed",
		"/proc/sys/kernel/hostname": "web-a\n",
	} {
		if got := m.get("web-a", "/read", url.Values{"path": {path}}); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func TestProcessIsConfined(t *testing.T) {
	m := newMachine(t)
	m.start(m.full("web-a"))
	o := m.until("web-a", "passing", passing)
	status := m.get("web-a", "/read", url.Values{"path": {"/proc/self/status"}})
	got := map[string]string{}
	for line := range strings.Lines(status) {
		k, v, _ := strings.Cut(line, ":")
		got[k] = strings.TrimSpace(v)
	}
	for k, want := range map[string]string{
		"Pid": "1", "CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000",
		"CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2", "Uid": "1000\t1000\t1000\t1000", "Groups": "2000",
	} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
	limits := strings.Join(strings.Fields(m.get("web-a", "/read", url.Values{"path": {"/proc/self/limits"}})), " ")
	if !strings.Contains(limits, "Max core file size 0 0") {
		t.Errorf("limits: %s", limits)
	}
	for _, ns := range []string{"pid", "mnt", "uts", "ipc", "net", "cgroup", "user"} {
		inside, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", o.PID, ns))
		outside, err2 := os.Readlink("/proc/self/ns/" + ns)
		if err1 != nil || err2 != nil || inside == outside {
			t.Errorf("%s namespace is the machine's: %s, %v, %v", ns, inside, err1, err2)
		}
	}
	if uids, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", o.PID)); err != nil || strings.Join(strings.Fields(string(uids)), " ") != fmt.Sprint("0 ", local.UIDBase, " ", local.UIDSize) {
		t.Errorf("users are mapped as %q, %v", uids, err)
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/kernel"} {
		if got := m.get("web-a", "/read", url.Values{"path": {path}}); got != "" && !strings.Contains(got, "no such file") && !strings.Contains(got, "permission denied") {
			t.Errorf("%s can be read: %.40q", path, got)
		}
	}
}

func TestNetworkIsALoopback(t *testing.T) {
	m := newMachine(t)
	for _, id := range []string{"web-a", "web-b"} {
		m.start(m.serving(id))
		m.until(id, "passing", passing)
	}
	for to, want := range map[string]string{
		"127.0.0.1:80":   "connected",
		"127.0.0.1:22":   "connection refused",
		"192.0.2.1:80":   "network is unreachable",
		"127.77.0.9:80":  "connection refused", // loopback, but nothing listens
		"169.254.1.1:80": "network is unreachable",
	} {
		if got := m.get("web-a", "/dial", url.Values{"to": {to}}); !strings.Contains(got, want) {
			t.Errorf("dialling %s: %s, want %s", to, got, want)
		}
	}
	dev := m.get("web-a", "/read", url.Values{"path": {"/proc/net/dev"}})
	if n := strings.Count(dev, ":"); n != 1 || !strings.Contains(dev, "lo:") {
		t.Errorf("interfaces: %s", dev)
	}
}

func TestMemoryLimitIsReported(t *testing.T) {
	m := newMachine(t)
	if !m.host.Features().Limits.OK {
		t.Skip("no limits on this machine: ", m.host.Features().Limits.Detail)
	}
	s := m.spec("hog-a", "hog", "200")
	s.MemoryBytes = 32 << 20
	m.start(s)
	o := m.until("hog-a", "exited", exited)
	if !o.OOM || o.ExitCode != 137 || !strings.Contains(o.Detail, "memory") {
		t.Errorf("%+v, want killed for want of memory", o)
	}
}

func TestExecHealthAndRecovery(t *testing.T) {
	m := newMachine(t)
	s := m.serving("web-a")
	s.Health = &runtime.Health{Exec: []string{"/bin/server", "check", "/scratch/well"}, Interval: 20 * time.Millisecond, Timeout: 5 * time.Second, Failures: 1}
	m.start(s)
	o := m.until("web-a", "failing", func(o instance.Observation) bool { return o.Health == instance.Failing })
	if !strings.Contains(o.Detail, "no such file") {
		t.Errorf("detail %q, want what the command wrote", o.Detail)
	}
	m.get("web-a", "/write", url.Values{"path": {"/scratch/well"}})
	m.until("web-a", "passing", passing)
	code, out, err := m.host.Check(t.Context(), "web-a", []string{"/bin/server", "exit", "7"}, 5*time.Second)
	if code != 7 || !strings.Contains(out, "about to exit") || err != nil {
		t.Errorf("exec: %d, %q, %v", code, out, err)
	}
}

func TestHealthTurnsWithTheAnswer(t *testing.T) {
	m := newMachine(t)
	m.start(m.serving("web-a"))
	m.until("web-a", "passing", passing)
	m.get("web-a", "/write", url.Values{"path": {"/scratch/sick"}})
	o := m.until("web-a", "failing", func(o instance.Observation) bool { return o.Health == instance.Failing })
	if !strings.Contains(o.Detail, "503") {
		t.Errorf("detail %q, want the status", o.Detail)
	}
}

func TestVolumeOutlivesItsInstance(t *testing.T) {
	m := newMachine(t)
	m.start(m.full("web-a"))
	m.until("web-a", "passing", passing)
	m.get("web-a", "/write", url.Values{"path": {"/data/kept"}, "text": {"row"}})
	if err := m.host.Remove(t.Context(), "web-a"); err != nil {
		t.Fatal(err)
	}
	m.start(m.full("web-b"))
	m.until("web-b", "passing", passing)
	if got := m.get("web-b", "/read", url.Values{"path": {"/data/kept"}}); got != "row" {
		t.Errorf("the next instance reads %q, want row", got)
	}
	if got := m.get("web-b", "/write", url.Values{"path": {"/data/kept"}, "text": {"row 2"}}); got != "written" {
		t.Errorf("the next instance writes: %s", got)
	}
}

func TestWrongRootIsRefused(t *testing.T) {
	m := newMachine(t)
	s := m.spec("web-a", "sleep")
	wrong := m.writeWrongRoot()
	s.Root = wrong
	err := m.host.Create(t.Context(), s)
	if err == nil || !strings.Contains(err.Error(), "has the digest") {
		t.Errorf("creating from a root with another digest: %v", err)
	}
	if list, _ := m.host.List(t.Context()); len(list) != 0 {
		t.Errorf("left: %+v", list)
	}
}

func TestUnknownUserAndBadMountPointAreInvalid(t *testing.T) {
	m := newMachine(t)
	for want, change := range map[string]func(*runtime.Spec){
		`user "nobody"`:       func(s *runtime.Spec) { s.User = "nobody" },
		"can't be mounted on": func(s *runtime.Spec) { s.Scratches = []runtime.Scratch{{Path: "/bin/server"}} },
		"has no program":      func(s *runtime.Spec) { s.Args = []string{"/bin/absent"} },
		`no program "data"`:   func(s *runtime.Spec) { s.Args = []string{"data"} },
		"is not a directory":  func(s *runtime.Spec) { s.Scratches = []runtime.Scratch{{Path: "/bin/server/x"}} },
	} {
		s := m.spec("web-a", "sleep")
		change(&s)
		if err := m.host.Create(t.Context(), s); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want an invalid one with %s", err, want)
		}
	}
}

func TestProgramIsFoundByPath(t *testing.T) {
	m := newMachine(t)
	s := m.serving("web-a")
	s.Args[0] = "server" // in /bin, by the default PATH
	m.start(s)
	m.until("web-a", "passing", passing)
}

// traces returns what is left of a machine: mounts, cgroups, files in memory.
func (m *machine) traces(run string) []string {
	var found []string
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, run) {
			found = append(found, strings.Fields(line)[4])
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/invar-" + filepath.Base(run), "/sys/fs/cgroup/invar-" + filepath.Base(run), run, run + ".lock"} {
		matches, _ := filepath.Glob(pattern)
		found = append(found, matches...)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), run) {
			found = append(found, string(b))
		}
	}
	return found
}

func TestShutdownLeavesNothing(t *testing.T) {
	run := filepath.Join("/run/invar", fmt.Sprintf("test-%d", os.Getpid()))
	m := newMachine(t, func(c *local.Config) { c.RunDir = run })
	m.start(m.full("web-a"))
	m.start(m.spec("web-b", "exit", "1"))
	if err := m.host.Create(t.Context(), m.spec("web-c", "sleep")); err != nil {
		t.Fatal(err)
	}
	m.until("web-a", "passing", passing)
	if len(m.traces(run)) < 5 {
		t.Errorf("this test sees nothing: %v", m.traces(run))
	}
	if err := m.host.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string(nil), m.traces(run)); d != "" {
		t.Errorf("left behind: %s", d)
	}
	if err := os.Remove(filepath.Join(m.config.Dir, "roots", m.root.Hex()+".erofs")); err != nil {
		t.Errorf("the root can't be deleted: %v", err)
	}
	m.root = writeRoot(t, m.config.Dir, built.server)
	m.open() // for the cleanup; and the directory can be used again
}
