package local_test

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/runtime/local"
)

// Each way to mount a root gives an instance that runs, can't write, and leaves nothing.
func TestRootsAreMountedWithLessKernel(t *testing.T) {
	for name, less := range map[string]func(*local.Features){
		"without file-backed EROFS": func(f *local.Features) { f.FileBacked = local.Feature{} },
		"without EROFS": func(f *local.Features) {
			f.EROFS, f.FileBacked, f.IDMapped = local.Feature{}, local.Feature{}, local.Feature{}
		},
		"without user namespaces": func(f *local.Features) { f.UserNamespaces = local.Feature{} },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.host.Restrict(less)
			m.start(m.full("web-a"))
			m.until("web-a", "passing", passing)
			for path, want := range map[string]string{"/etc/x": "read-only file system", "/bin/x": "read-only file system", "/data/x": "written", "/var/lib/new/x": "written"} {
				if got := m.get("web-a", "/write", url.Values{"path": {path}}); got != want {
					t.Errorf("writing %s: %s, want %s", path, got, want)
				}
			}
			for path, want := range map[string]string{"/bin/server": "-rwxr-xr-x 0:0", "/data/seed": "-rw-r----- 1000:1000", "/run/secrets/password": "-r-------- 1000:1000"} {
				if got := m.get("web-a", "/stat", url.Values{"path": {path}}); got != want {
					t.Errorf("%s: %s, want %s", path, got, want)
				}
			}
		})
	}
}

func TestRootIsImmutableWhileItIsMounted(t *testing.T) {
	m := newMachine(t)
	m.start(m.serving("web-a"))
	file := filepath.Join(m.config.Dir, "roots", m.root.Hex()+".erofs")
	if f, err := os.OpenFile(file, os.O_WRONLY, 0); err == nil {
		f.Close()
		t.Error("root can write to the file of a mounted root")
	}
	if err := m.host.ReleaseRoot(m.root); err == nil || !strings.Contains(err.Error(), "uses it") {
		t.Errorf("releasing a root in use: %v", err)
	}
	if err := m.host.Remove(t.Context(), "web-a"); err != nil {
		t.Fatal(err)
	}
	if err := m.host.ReleaseRoot(m.root); err != nil {
		t.Fatal(err)
	}
	if f, err := os.OpenFile(file, os.O_WRONLY, 0); err != nil {
		t.Errorf("a released root's file can't be written: %v", err)
	} else {
		f.Close()
	}
	m.start(m.serving("web-b")) // it is mounted again
	m.until("web-b", "passing", passing)
}

// With no launcher in it, invar says what to do.
func TestMissingLauncherIsExplained(t *testing.T) {
	_, err := local.Open(t.Context(), local.Config{Dir: t.TempDir(), Launcher: filepath.Join(t.TempDir(), "absent")})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "launcher") {
		t.Errorf("error %v, want one that names the launcher", err)
	}
}

func TestProbeExplainsWhatIsMissing(t *testing.T) {
	f := local.Features{Seccomp: local.Feature{OK: true}, UserNamespaces: local.Feature{Detail: "no user namespaces"}}
	if w := strings.Join(f.Warnings(), ";"); !strings.Contains(w, "no user namespaces") {
		t.Errorf("warnings %q", w)
	}
	if f.Usable() == nil {
		t.Error("a machine without namespaces is usable")
	}
	if os.Getuid() == 0 {
		real := local.Probe(t.Context(), false)
		for _, x := range []local.Feature{real.Namespaces, real.EROFS, real.FileBacked, real.UserNamespaces, real.IDMapped, real.Overlay, real.Limits, real.Seccomp, real.ExitCodes} {
			if x.Detail == "" {
				t.Errorf("a feature without explanation: %+v", real)
			}
		}
		t.Logf("this machine: %+v", real)
	}
}

// The kernel mounts no EROFS from a file that lies in memory: a loop device helps there, too.
func TestDataDirectoryMayBeATmpfs(t *testing.T) {
	m := newMachine(t, func(c *local.Config) {
		dir := c.Dir
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // once the host is shut down
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	})
	m.start(m.serving("web-a"))
	m.until("web-a", "passing", passing)
}
