package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// seal is how a root was when it was hashed and mounted: what shows, without hashing again, that neither was touched. The numbers of mounts
// are never used twice (Linux 6.8), and no program can set a file's change time without setting the clock.
type seal struct {
	Mount     uint64 `json:"mount"`               // of RUN/roots/HEX, or of a tree
	Device    uint64 `json:"device"`              // of what is mounted
	File      stamp  `json:"file,omitzero"`       // of the root's file; zero for a tree
	Immutable bool   `json:"immutable,omitempty"` // the file could be made so
	Verity    string `json:"verity,omitempty"`    // what fs-verity says of it; "": it has none
}

// stamp tells a file and its last change.
type stamp struct {
	Device   uint64 `json:"device"`
	Inode    uint64 `json:"inode"`
	Size     int64  `json:"size"`
	Modified int64  `json:"modified_ns"`
	Changed  int64  `json:"changed_ns"`
}

func stampOf(st unix.Stat_t) stamp {
	return stamp{Device: st.Dev, Inode: st.Ino, Size: st.Size, Modified: st.Mtim.Nano(), Changed: st.Ctim.Nano()}
}

// String says what the file is like, for people.
func (s stamp) String() string {
	return fmt.Sprintf("inode %d, %d bytes, modified %s, changed %s", s.Inode, s.Size, nanos(s.Modified), nanos(s.Changed))
}

func nanos(n int64) string { return time.Unix(0, n).UTC().Format(time.RFC3339Nano) }

// mountSeal returns the seal of what is mounted at a directory now.
func mountSeal(at string) (seal, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, at, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID_UNIQUE, &st)
	if errors.Is(err, unix.EINVAL) {
		err = unix.Statx(unix.AT_FDCWD, at, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st)
	}
	if err != nil {
		return seal{}, fmt.Errorf("examining %s: %w", at, err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return seal{}, fault.Errorf(fault.Corrupt, "nothing is mounted on %s", at)
	}
	return seal{Mount: st.Mnt_id, Device: unix.Mkdev(st.Dev_major, st.Dev_minor)}, nil
}

func isImmutable(f *os.File) bool {
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	return err == nil && flags&immutable != 0
}

func (r *roots) sealPath(name string) string { return filepath.Join(r.seals, name) }

// sealRoot remembers a root that was hashed through f and is mounted.
func (r *roots) sealRoot(f *os.File, d digest.Digest) error {
	s, err := mountSeal(filepath.Join(r.mounts, d.Hex()))
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("examining root %s: %w", d, err)
	}
	s.File, s.Immutable = stampOf(st), isImmutable(f)
	if r.features.Verity.OK {
		s.Verity, _ = measureVerity(f) // one that could not get it has none
	}
	if err := writeSeal(r.sealPath(d.Hex()), s); err != nil {
		return err
	}
	r.remember(d, &s)
	return nil
}

func writeSeal(path string, s seal) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// readSeal returns a seal, false when there is none.
func readSeal(path string) (s seal, found bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	return s, err == nil, err
}

// sealOf returns a root's seal, from memory when it was read or written before. The caller holds no lock of the root.
func (r *roots) sealOf(d digest.Digest) (seal, bool, error) {
	r.mu.Lock()
	s, found := r.sealed[d]
	r.mu.Unlock()
	if found {
		return s, true, nil
	}
	defer r.lock(d)()
	s, found, err := readSeal(r.sealPath(d.Hex()))
	if found {
		r.remember(d, &s)
	}
	return s, found, err
}

// remember keeps a root's seal; nil: it has none. The caller holds the root's lock.
func (r *roots) remember(d digest.Digest, s *seal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s == nil {
		delete(r.sealed, d)
		return
	}
	r.sealed[d] = *s
}

// touched says what is not as it was when the root was sealed; nothing when all is. The file is looked at, not read.
func (r *roots) touched(d digest.Digest) (t touch) {
	s, found, err := r.sealOf(d)
	if err != nil || !found {
		t.mount = "not mounted by this server"
		return t
	}
	t.seal = s
	at := filepath.Join(r.mounts, d.Hex())
	switch now, err := mountSeal(at); {
	case err != nil:
		t.mount = err.Error()
	case now.Mount != s.Mount || now.Device != s.Device:
		t.mount = "another mount (" + strconv.FormatUint(now.Mount, 10) + ")"
	}
	now, immutable, err := lookAtFile(r.file(d))
	switch {
	case err != nil:
		t.file = err.Error()
	case now != s.File:
		t.file = now.String()
	}
	t.mutable = s.Immutable && !immutable
	if s.Verity != "" {
		t.verity = verityNow(r.file(d))
	}
	return t
}

// lookAtFile tells a file as it is now, and whether it is immutable, without opening it.
func lookAtFile(path string) (now stamp, immutable bool, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st); err != nil {
		return stamp{}, false, err
	}
	nano := func(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }
	now = stamp{Device: unix.Mkdev(st.Dev_major, st.Dev_minor), Inode: st.Ino, Size: int64(st.Size), Modified: nano(st.Mtime), Changed: nano(st.Ctime)}
	if st.Attributes_mask&unix.STATX_ATTR_IMMUTABLE != 0 {
		return now, st.Attributes&unix.STATX_ATTR_IMMUTABLE != 0, nil
	}
	f, err := os.Open(path) // a file system that tells only whom has the file open
	if err != nil {
		return now, false, err
	}
	defer f.Close()
	return now, isImmutable(f), nil
}

// touch is what touched finds.
type touch struct {
	seal    seal
	mount   string // "": as sealed
	file    string // "": as sealed
	mutable bool   // the immutable attribute is gone
	verity  string // what fs-verity says, where the seal has that
}

func (t touch) clean() bool {
	return t.mount == "" && t.file == "" && !t.mutable && t.verity == t.seal.Verity
}

// restore makes sure that the root that new instances get is the one that was asked for: one that was touched since it was sealed is
// hashed again, and one that differs is set aside, with its mounts, and made anew from its image. Running instances keep what they have.
func (h *Host) restore(d digest.Digest) error {
	h.restoring.Lock()
	defer h.restoring.Unlock()
	at := filepath.Join(h.roots.mounts, d.Hex())
	if mounted, err := isMountPoint(at); err != nil || !mounted {
		return err
	}
	t := h.roots.touched(d)
	covered, err := mountsBelow(at)
	if err != nil {
		return err
	}
	if t.clean() && len(covered) == 1 && h.trees.clean(d) {
		return nil
	}
	h.log.Warn("a root was touched since it was mounted: it is mounted anew for instances to come", "root", d, "mount", t.mount, "file", t.file, "mutable", t.mutable)
	if err := h.trees.release(d); err != nil {
		return err
	}
	if err := h.roots.detach(d); err != nil {
		return err
	}
	got, err := h.roots.hash(d)
	if err == nil && got == d {
		return nil
	}
	if err := h.roots.setAside(d, time.Now()); err != nil {
		return err
	}
	if h.config.Restore == nil {
		return fault.Errorf(fault.Corrupt, "root %s has the digest %s, and nothing makes it anew", d, got)
	}
	if err := h.config.Restore(h.closing, d); err != nil {
		return fmt.Errorf("making root %s anew: %w", d, err)
	}
	return nil
}

// detach takes a root's mounts away, and the seal.
func (r *roots) detach(d digest.Digest) error {
	defer r.lock(d)()
	r.remember(d, nil)
	if err := os.Remove(r.sealPath(d.Hex())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return unmountAndDelete(filepath.Join(r.mounts, d.Hex()))
}

// reading is the digest that a file had when it was read.
type reading struct {
	was    stamp
	digest digest.Digest
}

// reread hashes a root's file unless it was hashed since it last changed.
func (r *roots) reread(d digest.Digest) (digest.Digest, error) {
	var st unix.Stat_t
	if err := unix.Stat(r.file(d), &st); err != nil {
		return "", fault.As(fault.Corrupt, err)
	}
	if got, ok := r.lastRead(d, stampOf(st)); ok {
		return got, nil
	}
	got, err := r.hash(d)
	if err == nil { // with the time of before: who writes meanwhile has it read again
		r.keep(d, reading{stampOf(st), got})
	}
	return got, err
}

// lastRead returns the digest that a root's file had when it was read last, if it was read as it is now.
func (r *roots) lastRead(d digest.Digest, now stamp) (digest.Digest, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, ok := r.read[d]
	return last.digest, ok && last.was == now
}

func (r *roots) keep(d digest.Digest, found reading) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read[d] = found
}

// hash reads a root's file from the first byte to the last.
func (r *roots) hash(d digest.Digest) (digest.Digest, error) {
	f, err := os.Open(r.file(d))
	if err != nil {
		return "", fault.As(fault.Corrupt, err)
	}
	defer f.Close()
	got, _, err := digest.OfReader(f)
	return got, err
}

// setAside renames a root's file that is not what its name says. It is kept: it is evidence.
func (r *roots) setAside(d digest.Digest, now time.Time) error {
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
	return os.Rename(r.file(d), r.file(d)+".tampered-"+strconv.FormatInt(now.UnixMilli(), 10))
}
