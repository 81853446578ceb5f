package local

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime"
)

func TestLocateFollowsLinksInsideTheRoot(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"run", "var/lib", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "usr/bin/sh"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"bin": "usr/bin", "var/run": "/run", "up": "../../../../etc", "loop": "loop", "dangling": "/nowhere/x"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for p, want := range map[string]struct {
		real  string
		there bool
	}{
		"/bin/sh":        {"/usr/bin/sh", true},
		"/var/run":       {"/run", true},
		"/var/run/app":   {"/run/app", false},
		"/up/passwd":     {"/etc/passwd", false}, // the machine's /etc/passwd is out of reach
		"/dangling/y":    {"/nowhere/x/y", false},
		"/var/lib/a/b/c": {"/var/lib/a/b/c", false},
		"/":              {"/", true},
	} {
		real, info, err := locate(root, p)
		if err != nil || real != want.real || (info != nil) != want.there {
			t.Errorf("%s: %s, %v, %v; want %+v", p, real, info != nil, err, want)
		}
	}
	for _, p := range []string{"/loop/x", "/bin/sh/x"} {
		if _, _, err := locate(root, p); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want invalid", p, err)
		}
	}
}

func TestPointsAreSortedAndUnique(t *testing.T) {
	a := points(runtime.Spec{WorkDir: "/srv", Scratches: []runtime.Scratch{{Path: "/tmp"}, {Path: "/srv"}}})
	b := points(runtime.Spec{WorkDir: "/srv", Scratches: []runtime.Scratch{{Path: "/srv"}, {Path: "/tmp"}}})
	if len(a) != 6 || len(b) != len(a) {
		t.Fatalf("%v and %v, want 6 points", a, b)
	}
	for i := range a {
		if a[i] != b[i] {
			t.Errorf("the order of a spec counts: %v and %v", a, b)
		}
	}
}

// A namespace that is made on the process's first thread must not stay there: /proc/self is that thread's.
func TestNewNetworksLeaveTheProcessWhereItIs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root: CI runs this test as root")
	}
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		ns, err := newNetwork()
		if err != nil {
			t.Fatal(err)
		}
		ns.Close()
	}
	if after, err := os.Readlink("/proc/self/ns/net"); after != before || err != nil {
		t.Errorf("the process is in %s, was in %s: %v", after, before, err)
	}
}
