package debian

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
)

// Build makes the file system that the lock describes and writes it as a tar to w, entries sorted. Equal locks give
// equal bytes. It needs root, for maintainer scripts run in it.
func (c Cache) Build(ctx context.Context, arch string, locked image.LockedImage, w io.Writer, progress Progress) error {
	if os.Geteuid() != 0 {
		return fault.WithHint(fault.Errorf(fault.Denied, "installing Debian packages needs root"), "run this command as root")
	}
	date, err := time.Parse(time.RFC3339, locked.Date)
	if err != nil {
		return fault.Errorf(fault.Invalid, "the lock's date: %v", err)
	}
	a, err := c.apt(locked.Suite, arch)
	if err != nil {
		return err
	}
	if err := a.fetchLocked(ctx, locked.Packages, progress); err != nil {
		return err
	}
	work, err := a.workspace(locked.Packages)
	if err != nil {
		return diskFull(err)
	}
	defer work.remove()
	if err := a.install(ctx, work, locked.Packages, date, progress); err != nil {
		return err
	}
	if err := scrub(work.root); err != nil {
		return fmt.Errorf("cleaning up after installation: %w", err)
	}
	return pack(ctx, work.root, date, w)
}

// workspace is where packages are installed.
type workspace struct {
	root string // the file system
	debs string // links to the packages
}

func (w workspace) remove() {
	os.RemoveAll(w.root)
	os.RemoveAll(w.debs)
}

// workspace makes one. dpkg syncs thousands of small writes, of which nothing is kept: so the file system
// is made in memory where there is plenty.
func (a apt) workspace(packages []image.LockedPackage) (workspace, error) {
	var size int64
	for _, p := range packages {
		size += p.SizeBytes
	}
	parent := filepath.Dir(a.dir)
	removeStale(filepath.Join(memory, "invar-install-*"), filepath.Join(parent, "invar-install-*"), filepath.Join(parent, "packages-*"), filepath.Join(a.debs, "download-*"))
	if roomy(memory, 8*size) {
		parent = memory
	}
	root, err := os.MkdirTemp(parent, "invar-install-*")
	if err != nil {
		return workspace{}, err
	}
	w := workspace{root: root}
	if err := os.Chmod(root, 0o755); err != nil {
		w.remove()
		return workspace{}, err
	}
	if w.debs, err = os.MkdirTemp(filepath.Dir(a.dir), "packages-*"); err != nil {
		w.remove()
		return workspace{}, err
	}
	return w, nil
}

// removeStale removes what builds that were killed left more than a day ago. What can't be removed is no build's problem.
func removeStale(patterns ...string) {
	for _, pattern := range patterns {
		names, _ := filepath.Glob(pattern) // fails for malformed patterns alone
		for _, name := range names {
			if isStale(name, time.Now()) {
				os.RemoveAll(name)
			}
		}
	}
}

// isStale tells whether a directory is ours and nothing about it has changed for a day. That is its change time, which the kernel
// keeps: its modification time is what a package's archive says of "/", often years ago.
func isStale(name string, now time.Time) bool {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
		return false
	}
	return now.Sub(time.Unix(st.Ctim.Unix())) > 24*time.Hour
}

// memory is where Linux systems have a tmpfs for POSIX shared memory.
const memory = "/dev/shm"

// roomy reports whether dir is a tmpfs on which programs can be run, with so much space.
func roomy(dir string, sizeBytes int64) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false
	}
	return st.Type == unix.TMPFS_MAGIC && st.Flags&unix.ST_NOEXEC == 0 && int64(st.Bavail)*st.Bsize >= sizeBytes
}

// fetchLocked fetches while holding the lock on apt's state.
func (a apt) fetchLocked(ctx context.Context, packages []image.LockedPackage, progress Progress) error {
	release, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer release()
	return a.fetch(ctx, packages, progress)
}

// install unpacks all packages and lets dpkg, inside of them, install them.
func (a apt) install(ctx context.Context, w workspace, packages []image.LockedPackage, date time.Time, progress Progress) error {
	root := w.root
	if err := a.skeleton(root); err != nil {
		return diskFull(err)
	}
	progress("unpacking", 0, 0)
	all, err := a.controls(ctx, packages)
	if err != nil {
		return err
	}
	need := first(all)
	if err := a.gather(w.debs, packages, need); err != nil {
		return diskFull(err)
	}
	if err := a.unpack(ctx, root, packages, need); err != nil {
		return err
	}
	progress("configuring", 0, 0)
	return a.configureAll(ctx, root, w.debs, date)
}

// skeleton makes what must be there before the first package: the merged /usr, dpkg's empty database, a policy
// that starts no service, and one that makes no PostgreSQL cluster.
func (a apt) skeleton(root string) error {
	links := []string{"bin", "sbin", "lib"}
	if a.arch == "amd64" {
		links = append(links, "lib64")
	}
	for _, l := range links {
		if err := os.MkdirAll(filepath.Join(root, "usr", l), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+l, filepath.Join(root, l)); err != nil {
			return err
		}
	}
	for _, d := range []string{"dev", "proc", "debs", "var/lib/dpkg/updates", "var/lib/dpkg/info", "var/lib/dpkg/triggers", filepath.Dir(clusterPolicy)} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"var/lib/dpkg/status":    "",
		"var/lib/dpkg/available": "",
		clusterPolicy:            "create_main_cluster = false\n",
		servicePolicy:            "#!/bin/sh\nexit 101\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o755); err != nil {
			return err
		}
	}
	return nil
}

const (
	clusterPolicy = "etc/postgresql-common/createcluster.d/00-invar.conf"
	servicePolicy = "usr/sbin/policy-rc.d"
)

// gather links the packages into two directories, those that are needed first and the others, under names that
// sort as the lock does: that is the order in which dpkg sees them.
func (a apt) gather(dir string, packages []image.LockedPackage, need map[string]bool) error {
	for _, d := range []string{"1", "2"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for _, p := range packages {
		d := "2"
		if need[p.Name] {
			d = "1"
		}
		if err := os.Link(a.deb(p), filepath.Join(dir, d, p.Name+"_"+p.Architecture+".deb")); err != nil {
			return err
		}
	}
	return nil
}

// unpack extracts the packages that are needed first, two at a time: so dpkg and its scripts find all that they
// call. dpkg then installs these, too. What one package has, no other has (but directories), so the order means nothing.
func (a apt) unpack(ctx context.Context, root string, packages []image.LockedPackage, need map[string]bool) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for _, p := range packages {
		if !need[p.Name] {
			continue
		}
		g.Go(func() error {
			if err := extract(ctx, a.deb(p), root); err != nil {
				return fmt.Errorf("unpacking %s: %w", p.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// extract pipes a package's files through tar, which keeps the merged /usr's links as dpkg does.
func extract(ctx context.Context, deb, root string) error {
	from := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	to := exec.CommandContext(ctx, "tar", "--extract", "--keep-directory-symlink", "--numeric-owner", "--same-permissions", "--directory", root)
	var fromSaid, toSaid bytes.Buffer
	from.Stderr, to.Stderr = &fromSaid, &toSaid
	pipe, err := from.StdoutPipe()
	if err != nil {
		return err
	}
	to.Stdin = pipe
	if err := from.Start(); err != nil {
		return err
	}
	err = to.Run()
	io.Copy(io.Discard, pipe) // lets dpkg-deb end when tar has failed
	if werr := from.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return diskFull(fault.As(fault.Corrupt, fmt.Errorf("%w: %s", err, strings.TrimSpace(fromSaid.String()+toSaid.String()))))
	}
	return nil
}

// enter is run by a shell in namespaces of its own: it mounts what scripts need and lets dpkg install.
//
//go:embed enter.sh
var enter string

func (a apt) configureAll(ctx context.Context, root, debs string, date time.Time) error {
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts", "--",
		"sh", "-ec", enter, root, debs, strconv.FormatInt(date.Unix(), 10))
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.WaitDelay = 10 * time.Second
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fault.Errorf(fault.Invalid, "installing packages: %w\n%s", err, tail(said.String(), 20))
	}
	return nil
}

func tail(s string, most int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-most):], "\n")
}
