// Package local is the host that runs instances on this machine: runtime.Host with Linux namespaces.
//
// A Host prepares everything with plain files and mounts; the launcher (cmd/invar-launcher), a process that outlives the
// server, is the parent of the instances. Both find everything again from what lies here:
//
//	DIR/roots/HEX.erofs               the root of image HEX, one file, immutable while it is in use
//	DIR/volumes/ENV/COMPONENT/NAME/   volumes; further versions and snapshots lie beside: see placeDir
//	DIR/logs/ID/                      the log of an instance: current.log, 1.log, …; kept for a while after its removal
//	RUN/                              a tmpfs of our own, so that a restart of the machine forgets it with the processes
//	RUN/roots/HEX/                    that root, mounted once for all instances
//	RUN/seals/                        how these mounts and files were when they were made and hashed
//	RUN/trees/KEY/                    a root with the mount points that some spec needs and it lacks
//	RUN/netns/ID                      an instance's network namespace
//	RUN/instances/ID/                 spec.json, the files and secrets of the instance, its output FIFOs, the launcher's record
//	RUN/launcher.*                    the launcher's socket, lock and own log
//
// RUN is /run/invar/KEY, with KEY made from DIR, unless told otherwise.
//
// # What an instance gets
//
// Own pid, mount, uts, ipc, net, cgroup and user namespaces; user 0 to 65535 inside are users UIDBase and up on the host, the same for every
// instance, so that a volume stays readable by the next one. No capabilities, no_new_privs, moby's default
// seccomp profile, masked and read-only paths in /proc, no /sys, limits by cgroup. Its network has a loopback
// only, where any user may listen on any port. Nothing can be written but scratches and volumes: not /dev,
// /run, /tmp or /dev/shm unless they are declared as scratch.
package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
)

// UIDBase is the user and group of the host that is user and group 0 of every instance.
const (
	UIDBase = 1 << 30
	UIDSize = 1 << 16
)

// Config says where a Host lives. Dir is required.
type Config struct {
	Dir      string       // the data directory, made by the caller
	RunDir   string       // "" is /run/invar/KEY; every user must be able to enter it
	Launcher string       // path of the launcher's program; "" is the one that this program carries
	Log      *slog.Logger // nil drops the logs

	LogFileBytes int64         // an instance's log is put aside at this size; 0 is 10 MiB
	LogFiles     int           // files of an instance's log, the current one included; 0 is 3
	KeepLogs     int           // logs of removed instances that are kept; 0 is 1000
	KeepLogsFor  time.Duration // and for how long; 0 is 14 days
	Pool         int           // network namespaces made ahead; 0 is 4

	// Companions tells the processes of invar's own that enter networks of instances: the gateway. They are not foreign. nil: none.
	Companions func() []int

	// Restore makes the file of a root again, after one that had changed was set aside. nil: nothing can.
	Restore func(ctx context.Context, root digest.Digest) error

	WithoutUserNamespaces bool // runs instances without them even where they work
}

// Host runs instances on this machine. Open makes one; Close lets it go while the instances run on.
type Host struct {
	config      Config
	run         string // the run directory
	log         *slog.Logger
	features    Features
	roots       *roots
	trees       *trees
	nets        *nets
	launcher    *client
	lock        *os.File
	launcherPID atomic.Int64
	watch       *os.File        // inotify; nil: there is none
	closing     context.Context // ends with stop; what the loops run under
	stop        context.CancelFunc
	loops       sync.WaitGroup
	restoring   sync.Mutex // held while a root is looked at before an instance gets it

	mu        sync.Mutex
	instances map[instance.ID]*inst
	changed   chan struct{}          // nil when nobody asked since the last change
	signs     chan struct{}          // the same, for signs that something was touched
	pruned    time.Time              // when logs were last deleted
	attempts  int                    // creations that were asked of the launcher
	placing   map[runtime.Place]bool // that are being made or deleted

	alien    map[string]bool  // what the launcher has and this host may not have asked for
	suspects map[string]bool  // strays that the last scan found, by field
	strays   map[string]stray // those that the one before had found as well
}

var _ runtime.Host = (*Host)(nil)

// Open finds what runs in config.Dir, starts the launcher when there is none, and watches over both. It fails with fault.Conflict
// when another Host has the directory, and fault.Unavailable when this machine can't run instances.
func Open(ctx context.Context, config Config) (_ *Host, err error) {
	h, err := newHost(config)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	if err := h.prepare(); err != nil {
		return nil, err
	}
	h.features = Probe(ctx, config.WithoutUserNamespaces)
	if err := h.features.Usable(); err != nil {
		return nil, err
	}
	h.features.Verity = probeVerity(filepath.Join(h.config.Dir, "roots"))
	h.roots = newRoots(filepath.Join(h.config.Dir, "roots"), h.config.Dir, h.run, h.features, h.log)
	h.trees = newTrees(h.run, h.features)
	if err := errors.Join(h.loadSpecs(), h.roots.adopt()); err != nil {
		return nil, err
	}
	h.openWatch()
	first := make(chan error, 1)
	h.loops.Go(func() { h.keepLauncher(h.closing, first) })
	h.loops.Go(func() { h.nets.fill(h.closing) })
	h.loops.Go(func() { h.watchForeign(h.closing) })
	h.loops.Go(func() { h.watchTouches(h.closing) })
	adopted := h.roots.all()
	h.loops.Go(func() { h.sweepRoots(h.closing, adopted) })
	select {
	case err := <-first:
		return h, err
	case <-ctx.Done():
		return nil, fault.As(fault.Unavailable, fmt.Errorf("waiting for the launcher: %w", ctx.Err()))
	}
}

func newHost(config Config) (*Host, error) {
	dir, err := filepath.Abs(config.Dir)
	if err != nil || config.Dir == "" {
		return nil, fault.Errorf(fault.Invalid, "opening the local runtime: no data directory: %v", err)
	}
	config.Dir = dir
	if config.RunDir == "" {
		sum := sha256.Sum256([]byte(dir))
		config.RunDir = filepath.Join("/run/invar", hex.EncodeToString(sum[:6]))
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	config = config.withDefaults()
	h := &Host{config: config, run: config.RunDir, log: config.Log, instances: map[instance.ID]*inst{}, alien: map[string]bool{}, suspects: map[string]bool{}}
	h.closing, h.stop = context.WithCancel(context.Background())
	h.nets = newNets(filepath.Join(h.run, "netns"), config.Pool)
	h.launcher, err = newClient(h.run, config.Launcher, h.log)
	return h, err
}

func (c Config) withDefaults() Config {
	set := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	set(&c.LogFiles, 3)
	set(&c.KeepLogs, 1000)
	set(&c.Pool, 4)
	if c.LogFileBytes == 0 {
		c.LogFileBytes = 10 << 20
	}
	if c.KeepLogsFor == 0 {
		c.KeepLogsFor = 14 * 24 * time.Hour
	}
	return c
}

// prepare makes the run directory, takes its lock, and mounts a tmpfs there unless an earlier Host did.
func (h *Host) prepare() error {
	if os.Getuid() != 0 {
		return fault.WithHint(fault.Errorf(fault.Unavailable, "the local runtime needs root"), "run invar server as root")
	}
	for _, d := range []string{filepath.Dir(h.run), h.run} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return fmt.Errorf("making the run directory: %w", err)
		}
	}
	if err := h.takeLock(); err != nil {
		return err
	}
	mounted, err := isMountPoint(h.run)
	if err != nil {
		return err
	}
	if !mounted {
		if err := mountMemory(h.run); err != nil {
			return fmt.Errorf("mounting a tmpfs on %s: %w", h.run, err)
		}
	}
	if err := unix.Mount("", h.run, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keeping the mounts of %s private: %w", h.run, err)
	}
	for name, mode := range map[string]os.FileMode{"roots": 0o711, "trees": 0o711, "netns": 0o700, "seals": 0o700, "instances": 0o710, "state": 0o700} {
		if err := os.MkdirAll(filepath.Join(h.run, name), mode); err != nil {
			return err
		}
	}
	// What an instance's first process mounts, it reaches by path only as the group 0 of its user namespace: nobody else is in that group.
	// Else it would ask the launcher for each mount, which takes longer.
	return os.Chown(filepath.Join(h.run, "instances"), 0, UIDBase)
}

// mountMemory mounts a tmpfs that is never swapped out, where the kernel can (Linux 6.4): it holds secrets.
func mountMemory(path string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	err := unix.Mount("invar", path, "tmpfs", flags, "mode=0711,noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("invar", path, "tmpfs", flags, "mode=0711")
	}
	return err
}

// takeLock keeps a second Host out. The lock lies beside RUN, which is mounted over.
func (h *Host) takeLock() error {
	f, err := os.OpenFile(h.run+".lock", os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fault.Errorf(fault.Conflict, "another server runs the instances of %s", h.config.Dir)
	}
	h.lock = f
	return nil
}

func isMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("examining %s: %w", path, err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

func (h *Host) companions() []int {
	if h.config.Companions == nil {
		return nil
	}
	return h.config.Companions()
}

// Features returns what this machine can do.
func (h *Host) Features() Features { return h.features }

// Close lets go of the host. Instances and launcher run on; the next Open finds them.
func (h *Host) Close() error {
	h.stop()
	h.loops.Wait()
	h.nets.drain()
	h.forgetLooks()
	h.launcher.close()
	if h.lock == nil {
		return nil
	}
	return h.lock.Close()
}

// forgetLooks drops what looks at instances found, with the sockets that they were taken by.
func (h *Host) forgetLooks() {
	h.mu.Lock()
	all := slices.Collect(maps.Values(h.instances))
	h.mu.Unlock()
	for _, i := range all { // a look may take a while
		i.memory.close()
	}
}

// Shutdown removes every instance, ends the launcher, and unmounts everything. Volumes, roots and logs stay. The Host is closed then.
func (h *Host) Shutdown(ctx context.Context) error {
	errs := []error{h.removeAll(ctx)}
	h.stop()
	h.loops.Wait()
	errs = append(errs, h.launcher.quit(ctx))
	h.nets.drain()
	if errors.Join(errs...) == nil {
		errs = append(errs, h.roots.releaseAll(), h.dismantle())
	}
	return errors.Join(append(errs, h.Close())...)
}

func (h *Host) removeAll(ctx context.Context) error {
	list, err := h.List(ctx)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, len(list))
	slots := make(chan struct{}, 8)
	for i, o := range list {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = errors.Join(h.Stop(ctx, o.Identity.ID), h.Remove(ctx, o.Identity.ID))
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// dismantle unmounts everything below the run directory, deepest first, and deletes it.
func (h *Host) dismantle() error {
	mounts, err := mountsBelow(h.run)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting %s: %w", m, err)
		}
	}
	return errors.Join(h.removeCgroups(), os.RemoveAll(h.run), os.Remove(h.run+".lock"))
}

// mountsBelow returns the mount points at path and below, parents first.
func mountsBelow(path string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		at := unescapeMount(fields[4])
		if at == path || strings.HasPrefix(at, path+"/") {
			found = append(found, at)
		}
	}
	return found, nil
}

// unescapeMount undoes what the kernel does to blanks in mountinfo (proc(5)).
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// removeCgroups deletes the groups of launcher and instances, in every hierarchy. A group is busy until the last process in it
// has ended, which takes a moment longer than that process's locks.
func (h *Host) removeCgroups() error {
	dirs, err := filepath.Glob("/sys/fs/cgroup/*" + h.cgroupParent())
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range append(dirs, "/sys/fs/cgroup"+h.cgroupParent()) {
		var groups []string
		filepath.WalkDir(d, func(p string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				groups = append(groups, p)
			}
			return nil
		})
		for _, g := range slices.Backward(groups) {
			errs = append(errs, removeGroup(g))
		}
	}
	return errors.Join(errs...)
}

func removeGroup(dir string) error {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("deleting cgroup %s: %w", dir, err)
		}
	}
}
