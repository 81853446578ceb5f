package local

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// roots mounts root file systems, each once.
//
// A root is hashed through the descriptor that is then mounted, after it was made immutable: so what is mounted is what was hashed, and
// stays so. It is hashed at each mount and never else; a mount lives until ReleaseRoot, Shutdown or the end of the machine.
type roots struct {
	files    string // directory of HEX.erofs
	data     string
	mounts   string // directory of mount points
	seals    string // directory of how they were when they were made
	features Features
	log      *slog.Logger

	mu   sync.Mutex
	each map[digest.Digest]*sync.Mutex // held while one root is mounted or released
	read map[digest.Digest]reading     // what files were found to be that had been touched, or whose turn it was

	sealed map[digest.Digest]seal // as written to seals
}

func newRoots(files, data, run string, f Features, log *slog.Logger) *roots {
	return &roots{files: files, data: data, mounts: filepath.Join(run, "roots"), seals: filepath.Join(run, "seals"), features: f, log: log, each: map[digest.Digest]*sync.Mutex{}, read: map[digest.Digest]reading{}, sealed: map[digest.Digest]seal{}}
}

func (r *roots) lock(d digest.Digest) (unlock func()) {
	r.mu.Lock()
	m, ok := r.each[d]
	if !ok {
		m = &sync.Mutex{}
		r.each[d] = m
	}
	r.mu.Unlock()
	m.Lock()
	return m.Unlock
}

func (r *roots) file(d digest.Digest) string { return filepath.Join(r.files, d.Hex()+".erofs") }

// mounted returns the directory where the root is mounted, and mounts it if it is not.
func (r *roots) mounted(d digest.Digest) (string, error) {
	defer r.lock(d)()
	at := filepath.Join(r.mounts, d.Hex())
	yes, err := isMountPoint(at)
	if err != nil {
		return at, err
	}
	if yes {
		return at, nil
	}
	f, err := os.Open(r.file(d))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fault.Errorf(fault.NotFound, "root %s is not on this host", d)
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := r.verify(f, d); err != nil {
		return "", err
	}
	if !r.features.EROFS.OK {
		err = r.bindUnpacked(f, d, at)
	} else {
		err = r.mount(f, at)
	}
	if err != nil {
		return at, err
	}
	return at, r.sealRoot(f, d)
}

// adopt seals the roots that an earlier version of this program mounted, which are hashed for that.
func (r *roots) adopt() error {
	entries, err := os.ReadDir(r.mounts)
	if err != nil {
		return err
	}
	for _, e := range entries {
		d := digest.Digest("sha256:" + e.Name())
		mounted, err := isMountPoint(filepath.Join(r.mounts, e.Name()))
		if _, found, sealErr := readSeal(r.sealPath(e.Name())); err != nil || !mounted || found && sealErr == nil {
			continue
		}
		if err := r.adoptOne(d); err != nil {
			r.log.Warn("a root that is mounted can't be adopted", "root", d, "error", err)
		}
	}
	return nil
}

func (r *roots) adoptOne(d digest.Digest) error {
	f, err := os.Open(r.file(d))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := r.verify(f, d); err != nil {
		return err
	}
	return r.sealRoot(f, d)
}

// verify makes the file immutable and hashes it. What somebody wrote through a mapping goes to the disk before: from then on the kernel lets nobody
// write through one, nor does it without a new change time.
func (r *roots) verify(f *os.File, d digest.Digest) error {
	if r.features.Verity.OK {
		if err := enableVerity(f); err != nil {
			r.log.Warn("root has no fs-verity", "root", d, "error", err)
		}
	}
	if err := setImmutable(f, true); err != nil {
		r.log.Warn("root can't be made immutable: whoever is root could change it while it is mounted", "root", d, "error", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("writing root %s to the disk: %w", d, err)
	}
	got, _, err := digest.OfReader(f)
	if err != nil {
		return fmt.Errorf("hashing root %s: %w", d, err)
	}
	if got != d {
		return errors.Join(fault.Errorf(fault.Corrupt, "root %s has the digest %s", d, got), setImmutable(f, false))
	}
	return nil
}

func (r *roots) mount(f *os.File, at string) error {
	mount, err := -1, error(unix.ENOTBLK)
	if r.features.FileBacked.OK {
		mount, err = mountFile(f)
	}
	if errors.Is(err, unix.ENOTBLK) { // on some file systems, as tmpfs is, the kernel wants a device also where it needs none on others
		mount, err = mountLoop(f)
	}
	if err != nil {
		return fmt.Errorf("mounting %s: %w", f.Name(), err)
	}
	defer unix.Close(mount)
	if r.features.userNamespaces() {
		ns, err := userNamespace()
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := mapOwners(mount, ns); err != nil {
			return err
		}
	}
	return attach(mount, at)
}

// immutable is FS_IMMUTABLE_FL of linux/fs.h.
const immutable = 0x10

// setImmutable sets or clears the attribute that keeps even root from writing (ioctl_iflags(2)).
func setImmutable(f *os.File, on bool) error {
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return fmt.Errorf("reading the attributes of %s: %w", f.Name(), err)
	}
	want := flags &^ immutable
	if on {
		want |= immutable
	}
	if want == flags {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(want)); err != nil {
		return fmt.Errorf("changing the attributes of %s: %w", f.Name(), err)
	}
	return nil
}

// release unmounts a root and lets its file be deleted.
func (r *roots) release(d digest.Digest) error {
	defer r.lock(d)()
	if err := unmountAndDelete(filepath.Join(r.mounts, d.Hex())); err != nil {
		return err
	}
	f, err := os.Open(r.file(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := setImmutable(f, false); err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	r.remember(d, nil)
	if err := os.Remove(r.sealPath(d.Hex())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(r.unpacked(d))
}

func (r *roots) releaseAll() error {
	entries, err := os.ReadDir(r.mounts)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, r.release(digest.Digest("sha256:"+e.Name())))
	}
	return errors.Join(append(errs, err)...)
}

// unmountAndDelete undoes attach. What is not mounted, or absent, is no error.
func unmountAndDelete(at string) error {
	for range 16 { // somebody may have mounted upon it
		err := unix.Unmount(at, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmounting %s: %w", at, err)
		}
	}
	if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ReleaseRoot unmounts a root and clears the attribute that protects its file, so that it can be deleted. It fails with fault.Conflict
// while an instance uses the root; a root that is not mounted is no error.
func (h *Host) ReleaseRoot(d digest.Digest) error {
	h.mu.Lock()
	defer h.mu.Unlock() // no instance can be claimed meanwhile
	for _, i := range h.instances {
		if i.spec.Root == d {
			return fault.Errorf(fault.Conflict, "releasing root %s: instance %s uses it", d, i.spec.Identity.ID)
		}
	}
	if err := h.trees.release(d); err != nil {
		return err
	}
	return h.roots.release(d)
}
