package bake_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/bake"
	"github.com/invarhq/invar/image/root"
	"github.com/invarhq/invar/spec"
)

func debianImage(name spec.ImageName, packages ...string) spec.Image {
	return spec.Image{Name: name, Debian: &spec.DebianImage{Suite: "bookworm", Packages: packages, Env: map[string]string{"LANG": "C.UTF-8"}}}
}

// shareDebs lets a second data directory use the packages that the first one fetched.
func shareDebs(t *testing.T, from, to bake.Request) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(to.Store.Dir(), "debian"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(from.Store.Dir(), "debian", "debs"), filepath.Join(to.Store.Dir(), "debian", "debs")); err != nil {
		t.Fatal(err)
	}
}

// unpackRoot extracts an image's root into a directory.
func unpackRoot(t *testing.T, req bake.Request, r image.Resolved) string {
	t.Helper()
	f, err := os.Open(root.Path(req.Roots, r.Root))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "root")
	if err := os.CopyFS(dir, fsys); err != nil {
		t.Fatal(err)
	}
	return dir
}

// chroot runs a command in an extracted root, in a mount namespace of its own.
func chroot(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "chroot", append([]string{dir}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestDebianImagesAreTheSameInTwoDataDirectoriesAndRun(t *testing.T) {
	first := request(t, t.TempDir(), debianImage("cache", "redis-server"))
	one := run(t, first)
	locked := one.Lock.Images["cache"]
	if len(locked.Packages) < 30 || locked.Validate() != nil {
		t.Fatalf("locked: %d packages, %v", len(locked.Packages), locked.Validate())
	}
	second := request(t, t.TempDir(), first.Images...)
	shareDebs(t, first, second)
	second.Lock, second.Frozen = one.Lock, true
	two := run(t, second)
	if diff := cmp.Diff(one.Images, two.Images); diff != "" {
		t.Errorf("second bake differs (-first +second):\n%s", diff)
	}
	dir := unpackRoot(t, first, one.Images["cache"])
	if got := chroot(t, dir, "redis-server", "--version"); !strings.Contains(got, "Redis server v=7") {
		t.Errorf("redis-server --version: %s", got)
	}
	if got := chroot(t, dir, "id", "redis"); !strings.Contains(got, "uid=") {
		t.Errorf("id redis: %s", got)
	}
}

func TestDebianPostgreSQLAndNginxRun(t *testing.T) {
	req := request(t, t.TempDir(), debianImage("db", "postgresql-15", "nginx-light"))
	r := run(t, req).Images["db"]
	dir := unpackRoot(t, req, r)
	if got := chroot(t, dir, "/usr/lib/postgresql/15/bin/postgres", "--version"); !strings.Contains(got, "PostgreSQL) 15") {
		t.Errorf("postgres --version: %s", got)
	}
	chroot(t, dir, "id", "postgres")
	chroot(t, dir, "mkdir", "-m", "0777", "/data")
	chroot(t, dir, "sh", "-c", "umask 0; mknod /dev/null c 1 3; mknod /dev/urandom c 1 9")
	chroot(t, dir, "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups",
		"/usr/lib/postgresql/15/bin/initdb", "--no-sync", "-D", "/data/db")
	if got := chroot(t, dir, "nginx", "-v"); !strings.Contains(got, "nginx/1.") {
		t.Errorf("nginx -v: %s", got)
	}
	for _, absent := range []string{"etc/ssl/private/ssl-cert-snakeoil.key", "etc/machine-id", "var/lib/postgresql/15/main"} {
		if _, err := os.Lstat(filepath.Join(dir, absent)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v, want it absent", absent, err)
		}
	}
}

func TestDebianNamesWhatIsNotOffered(t *testing.T) {
	req := request(t, t.TempDir(), debianImage("x", "no-such-package-at-all"))
	if _, err := bake.Bake(t.Context(), req); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "no-such-package-at-all") {
		t.Errorf("unknown package: %v", err)
	}
	other := req
	other.Images = []spec.Image{{Name: "x", Debian: &spec.DebianImage{Suite: "nosuite", Packages: []string{"redis-server"}}}}
	if _, err := bake.Bake(t.Context(), other); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "nosuite") {
		t.Errorf("unknown suite: %v", err)
	}
	req.Images = []spec.Image{debianImage("x", "hostname")}
	req.LockOnly = true
	lock := run(t, req).Lock
	req.LockOnly, req.Frozen = false, true
	e := lock.Images["x"]
	e.Packages[len(e.Packages)-1].Version = "0.1-gone"
	name := e.Packages[len(e.Packages)-1].Name
	req.Lock = lock
	_, err := bake.Bake(t.Context(), req)
	if !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), name) || !strings.Contains(fault.Hint(err), "invar lock --update") {
		t.Errorf("version that is gone: %v (hint %q)", err, fault.Hint(err))
	}
}
