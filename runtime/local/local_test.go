package local_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/local"
)

// built has the programs that the tests run, built once.
var built struct {
	once             sync.Once
	launcher, server string
	err              error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.server != "" {
		os.RemoveAll(filepath.Dir(built.server))
	}
	os.Exit(code)
}

// programs builds the launcher and the test server. Needs gcc and libseccomp-dev, as `make launcher` does.
func programs(t testing.TB) (launcher, server string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("instances need root: CI runs this test as root")
	}
	built.once.Do(func() {
		dir, err := os.MkdirTemp("", "invar-local-test-")
		if err != nil {
			built.err = err
			return
		}
		built.launcher, built.server = filepath.Join(dir, "invar-launcher"), filepath.Join(dir, "server")
		built.err = goBuild("1", built.launcher, "github.com/invarhq/invar/cmd/invar-launcher", "-tags", "seccomp netgo osusergo", "-ldflags", `-s -w -extldflags "-static"`)
		if built.err == nil {
			built.err = goBuild("0", built.server, "./testdata/server", "-ldflags", "-s -w")
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.launcher, built.server
}

func goBuild(cgo, to, pkg string, flags ...string) error {
	cmd := exec.Command("go", append(append([]string{"build", "-o", to}, flags...), pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// machine is a data directory, with a Host that can be opened again.
type machine struct {
	t      testing.TB
	config local.Config
	root   digest.Digest
	host   *local.Host
}

// newMachine opens a host on a fresh directory. Its root has the test server, users, and some directories.
func newMachine(t testing.TB, change ...func(*local.Config)) *machine {
	t.Helper()
	launcher, server := programs(t)
	dir := t.TempDir()
	m := &machine{t: t, config: local.Config{Dir: dir, Launcher: launcher, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}}
	for _, f := range change {
		f(&m.config)
	}
	m.root = writeRoot(t, dir, server)
	m.open()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := m.host.Shutdown(ctx); err != nil {
			t.Errorf("shutting down: %v", err)
		}
	})
	return m
}

func (m *machine) open() {
	m.t.Helper()
	h, err := local.Open(m.t.Context(), m.config)
	if err != nil {
		m.t.Fatal(err)
	}
	m.host = h
}

// writeRoot writes DIR/roots/HEX.erofs.
func writeRoot(t testing.TB, dir, server string) digest.Digest {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "roots"), 0o700); err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(dir, "roots", "new")
	f, err := os.Create(tmp)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	program, err := os.ReadFile(server)
	if err != nil {
		t.Fatal(err)
	}
	w := erofs.Create(f, erofs.WithBuildTime(0, 0))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"/etc", "/bin", "/data", "/proc", "/run"} {
		must(w.Mkdir(d, 0o755))
	}
	must(w.Mkdir("/tmp", 0o755))
	must(w.Chmod("/tmp", os.ModeSticky|0o777))
	must(w.Symlink("../run", "/data/run"))
	write := func(path string, mode os.FileMode, b []byte) {
		f, err := w.Create(path)
		must(err)
		_, err = f.Write(b)
		must(err)
		must(f.Close())
		must(w.Chmod(path, mode))
	}
	write("/bin/server", 0o755, program)
	write("/etc/passwd", 0o644, []byte("root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n"))
	write("/etc/group", 0o644, []byte("root:x:0:\nweb:x:1000:\nextra:x:2000:web\n"))
	write("/data/seed", 0o640, []byte("seed"))
	must(w.Chown("/data", 1000, 1000))
	must(w.Chown("/data/seed", 1000, 1000))
	must(w.Close())
	d, _, err := digest.OfReader(mustOpen(t, tmp))
	must(err)
	must(os.Rename(tmp, filepath.Join(dir, "roots", d.Hex()+".erofs")))
	return d
}

func mustOpen(t testing.TB, path string) io.Reader {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// spec is of an instance that runs the test server with the arguments.
func (m *machine) spec(id string, args ...string) runtime.Spec {
	return runtime.Spec{
		Identity:    instance.Identity{ID: instance.ID(id), Env: "test", Component: "web", Generation: 1},
		Root:        m.root,
		Args:        append([]string{"/bin/server"}, args...),
		Env:         []string{"A=b"},
		StopTimeout: 2 * time.Second,
	}
}

// serving is of an instance that answers HTTP on port 80, as user web.
func (m *machine) serving(id string) runtime.Spec {
	s := m.spec(id, "serve", "80")
	s.User = "web"
	s.Ports = []int{80}
	s.Health = &runtime.Health{Port: 80, HTTPPath: "/healthz", Interval: 20 * time.Millisecond, Timeout: time.Second, Failures: 2}
	s.Scratches = []runtime.Scratch{{Path: "/scratch", SizeBytes: 1 << 20}}
	return s
}

func (m *machine) start(s runtime.Spec) {
	m.t.Helper()
	if err := m.host.Create(m.t.Context(), s); err != nil {
		m.t.Fatal(err)
	}
	if err := m.host.Start(m.t.Context(), s.Identity.ID); err != nil {
		m.t.Fatal(err)
	}
}

// see returns the observation of an instance, Absent when it is not listed.
func (m *machine) see(id string) instance.Observation {
	m.t.Helper()
	list, err := m.host.List(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	for _, o := range list {
		if string(o.Identity.ID) == id {
			return o
		}
	}
	return instance.Observation{}
}

// until waits for the instance to be as wanted.
func (m *machine) until(id, what string, ok func(instance.Observation) bool) instance.Observation {
	m.t.Helper()
	deadline := time.After(15 * time.Second)
	for {
		changed := m.host.Changed()
		o := m.see(id)
		if ok(o) {
			return o
		}
		select {
		case <-changed:
		case <-deadline:
			m.t.Fatalf("instance %s never was %s: %+v\nlog: %s", id, what, o, m.logs(id))
		}
	}
}

func passing(o instance.Observation) bool { return o.Health == instance.Passing }
func exited(o instance.Observation) bool  { return o.State == instance.Exited }

func (m *machine) logs(id string) string {
	var b strings.Builder
	if err := m.host.Logs(m.t.Context(), instance.ID(id), &b, -1, false); err != nil {
		return err.Error()
	}
	return b.String()
}

// get asks the server in an instance, through its network namespace.
func (m *machine) get(id, path string, query url.Values) string {
	m.t.Helper()
	n, err := m.host.Network(m.t.Context(), instance.ID(id))
	if err != nil {
		m.t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return local.DialIn(ctx, n.Path, 80)
	}}}
	response, err := client.Get("http://instance" + path + "?" + query.Encode())
	if err != nil {
		m.t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

func TestInstanceRunsServesStopsAndLeavesNothing(t *testing.T) {
	m := newMachine(t)
	s := m.serving("web-a")
	if err := m.host.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if o := m.see("web-a"); o.State != instance.Created || o.PID != 0 || o.Identity != s.Identity {
		t.Errorf("after Create: %+v", o)
	}
	began := time.Now()
	if err := m.host.Start(t.Context(), "web-a"); err != nil {
		t.Fatal(err)
	}
	m.until("web-a", "passing", passing)
	t.Logf("started and passing after %v", time.Since(began))
	if got := m.get("web-a", "/whoami", nil); got != "1000:1000" {
		t.Errorf("runs as %s, want 1000:1000", got)
	}
	if err := m.host.Stop(t.Context(), "web-a"); err != nil {
		t.Fatal(err)
	}
	if o := m.see("web-a"); o.State != instance.Exited || o.ExitCode != 0 {
		t.Errorf("after Stop: %+v", o)
	}
	if err := m.host.Remove(t.Context(), "web-a"); err != nil {
		t.Fatal(err)
	}
	if o := m.see("web-a"); o.State != instance.Absent {
		t.Errorf("after Remove: %+v", o)
	}
	if log := m.logs("web-a"); !strings.Contains(log, "stdout serving on 80\n") || !strings.Contains(log, "terminated") {
		t.Errorf("log after the removal: %q", log)
	}
}

// writeWrongRoot puts a root under a name that is not its digest.
func (m *machine) writeWrongRoot() digest.Digest {
	m.t.Helper()
	wrong := digest.Of([]byte("another root"))
	b, err := os.ReadFile(filepath.Join(m.config.Dir, "roots", m.root.Hex()+".erofs"))
	if err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.config.Dir, "roots", wrong.Hex()+".erofs"), b, 0o600); err != nil {
		m.t.Fatal(err)
	}
	return wrong
}
