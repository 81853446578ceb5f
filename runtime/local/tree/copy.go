package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options say how to copy. The zero value copies what nobody writes to.
type Options struct {
	// Live allows the source to be written to: what changed while it was copied is copied again, up to maxPasses times over.
	Live bool
	// Progress is told how many bytes are done of how many, as they lie on the disk. nil: nobody is.
	Progress func(done, total int64)
}

// Fixed measures of a copy.
const (
	maxPasses = 3
	chunk     = 16 << 20              // that is copied between two looks at whether to go on
	settles   = 20 * time.Millisecond // a file that changed so shortly before it was read may have changed again with the same time
)

// unixStat is what os tells of a file.
type unixStat = syscall.Stat_t

func statOf(s *unixStat) *unix.Stat_t {
	return &unix.Stat_t{
		Dev: s.Dev, Ino: s.Ino, Nlink: s.Nlink, Mode: s.Mode, Uid: s.Uid, Gid: s.Gid, Size: s.Size, Blocks: s.Blocks,
		Atim: unix.Timespec(s.Atim), Mtim: unix.Timespec(s.Mtim), Ctim: unix.Timespec(s.Ctim),
	}
}

// stamp tells whether a file is as it was.
type stamp struct {
	ino            uint64
	mode, uid, gid uint32
	size           int64
	mtime, ctime   int64
	racy           bool // it may have changed since without a trace
}

func stampOf(e entry, now time.Time) stamp {
	s := stamp{e.stat.Ino, e.stat.Mode, e.stat.Uid, e.stat.Gid, e.stat.Size, e.stat.Mtim.Nano(), e.stat.Ctim.Nano(), false}
	s.racy = now.UnixNano()-s.ctime < settles.Nanoseconds()
	return s
}

// as reports whether the file that had this stamp when it was copied is surely the same still.
func (s stamp) as(now stamp) bool {
	now.racy = false
	return s == now
}

// copier copies one tree.
type copier struct {
	ctx         context.Context
	from        *os.Root
	to          string
	opts        Options
	done, total int64
	copied      map[string]stamp     // in a live copy, what was copied as what
	links       map[[2]uint64]string // in this pass, the first name of files that have several
	stamps      map[[2]uint64]stamp  // in this pass, of files that have several names
	dirs        []entry              // that this pass saw, parents first
	changed     int                  // of this pass
	buffer      []byte               // for what the kernel does not copy
}

// Copy makes the directory to, which must not exist, into a copy of the directory from, and returns what it holds, read from the copy. changed is how
// many entries of a live source still differed at the end, as far as times and sizes tell: with 0, the copy is of one moment. On an error
// the caller deletes what there is of it. Nothing is synced.
func Copy(ctx context.Context, from, to string, opts Options) (c Content, changed int, err error) {
	root, err := os.OpenRoot(from)
	if err != nil {
		return c, 0, err
	}
	defer root.Close()
	x := &copier{ctx: ctx, from: root, to: to, opts: opts, copied: map[string]stamp{}}
	if err := walk(ctx, root, func(e entry) error { x.total += e.stored(); return nil }, nil); err != nil {
		return c, 0, fmt.Errorf("looking through %s: %w", from, err)
	}
	x.report(0)
	if err := x.passes(); err != nil {
		return c, 0, fmt.Errorf("copying %s: %w", from, err)
	}
	c, err = Measure(ctx, to)
	return c, x.changed, err
}

// passes copies all once, and of a live source what has changed since, until nothing has or it was done often enough.
func (x *copier) passes() error {
	for n := 1; ; n++ {
		if err := x.pass(n > maxPasses); err != nil {
			return err
		}
		if !x.opts.Live {
			x.changed = 0
			return nil
		}
		if n > 1 && x.changed == 0 || n > maxPasses {
			return nil
		}
		select {
		case <-time.After(settles):
		case <-x.ctx.Done():
			return x.ctx.Err()
		}
	}
}

// pass copies what is not copied as it is now, and deletes from the copy what is gone; with count it only counts both.
func (x *copier) pass(count bool) error {
	x.changed, x.links, x.dirs = 0, map[[2]uint64]string{}, nil
	x.stamps = map[[2]uint64]stamp{}
	seen := map[string]bool{}
	err := walk(x.ctx, x.from, func(e entry) error {
		seen[e.path] = true
		if e.kind() == unix.S_IFDIR && !count {
			x.dirs = append(x.dirs, e)
		}
		was, known := x.copied[e.path]
		now := x.stampOf(e)
		if x.opts.Live && known && was.as(now) {
			return nil
		}
		x.changed++
		if count {
			return nil
		}
		x.copied[e.path] = now
		err := x.entry(e)
		if x.opts.Live && gone(err) {
			delete(x.copied, e.path) // the next pass tells
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e.path, err)
		}
		return nil
	}, nil)
	if err != nil {
		return err
	}
	for path := range x.copied {
		if seen[path] {
			continue
		}
		x.changed++
		if !count {
			delete(x.copied, path)
			if err := os.RemoveAll(x.at(path)); err != nil {
				return err
			}
		}
	}
	return x.finishDirs()
}

// stampOf returns the entry's stamp in this pass: the same for all names of a file, so that they are copied together or not at all.
func (x *copier) stampOf(e entry) stamp {
	if !e.linked() {
		return stampOf(e, time.Now())
	}
	if _, ok := x.stamps[e.key()]; !ok {
		x.stamps[e.key()] = stampOf(e, time.Now())
	}
	return x.stamps[e.key()]
}

// gone reports whether a source that is being written to has no such file any more, or another kind of one.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENXIO) || errors.Is(err, errOther)
}

var errOther = errors.New("it is something else meanwhile")

func (x *copier) at(path string) string { return filepath.Join(x.to, path) }

// entry copies one entry. Of a live source, the copy may have an older state of it.
func (x *copier) entry(e entry) error {
	dst := x.at(e.path)
	if x.opts.Live {
		if info, err := os.Lstat(dst); err == nil && !(info.IsDir() && e.kind() == unix.S_IFDIR) {
			if err := os.RemoveAll(dst); err != nil {
				return err
			}
		}
	}
	if first, ok := x.links[e.key()]; ok && e.linked() {
		return os.Link(x.at(first), dst)
	}
	if err := x.make(e, dst); err != nil {
		return err
	}
	if e.linked() {
		x.links[e.key()] = e.path
	}
	if e.kind() == unix.S_IFDIR {
		return nil // finishDirs
	}
	return attributes(e, dst)
}

func (x *copier) make(e entry, dst string) error {
	switch e.kind() {
	case unix.S_IFDIR:
		err := os.Mkdir(dst, 0o700)
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return x.extended(e, dst)
	case unix.S_IFLNK:
		target, err := x.from.Readlink(e.path)
		if err != nil {
			return err
		}
		return os.Symlink(target, dst)
	case unix.S_IFIFO:
		return unix.Mkfifo(dst, 0o600)
	}
	return x.file(e, dst)
}

// extended gives a directory its extended attributes.
func (x *copier) extended(e entry, dst string) error {
	in, err := open(x.from, e.path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Open(dst)
	if err != nil {
		return err
	}
	defer out.Close()
	return setExtended(in, out)
}

func setExtended(in, out *os.File) error {
	attrs, err := xattrs(in)
	if err != nil {
		return err
	}
	for name, value := range attrs {
		if err := unix.Fsetxattr(int(out.Fd()), name, []byte(value), 0); err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}

// attributes gives the copy of an entry its owner, permissions and times. The owner comes first: it takes set-id bits away.
func attributes(e entry, dst string) error {
	if err := os.Lchown(dst, int(e.stat.Uid), int(e.stat.Gid)); err != nil {
		return err
	}
	if e.kind() != unix.S_IFLNK {
		if err := unix.Chmod(dst, e.perm()); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dst, []unix.Timespec{e.stat.Atim, e.stat.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// finishDirs sets the attributes of directories once nothing is made in them any more: of all, since a pass may have changed what is in
// one that it did not copy.
func (x *copier) finishDirs() error {
	for i := len(x.dirs) - 1; i >= 0; i-- {
		if err := attributes(x.dirs[i], x.at(x.dirs[i].path)); err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// file copies a file's content and its extended attributes.
func (x *copier) file(e entry, dst string) error {
	in, err := open(x.from, e.path)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errOther
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err = x.content(in, out, info.Size(), e); err == nil {
		err = setExtended(in, out)
	}
	return errors.Join(err, out.Close())
}

func (x *copier) content(in, out *os.File, size int64, e entry) error {
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		x.report(e.stored())
		return nil
	}
	for at := int64(0); at < size; {
		begin, end := extent(in, at, size)
		for ; begin < end; at = begin {
			if err := x.ctx.Err(); err != nil {
				return err
			}
			n, err := x.part(in, out, begin, min(end-begin, chunk))
			if err != nil {
				return err
			}
			if n == 0 { // it was cut meanwhile
				return out.Truncate(begin)
			}
			begin += n
			x.report(n)
		}
		at = max(at, end)
	}
	return out.Truncate(size)
}

// extent returns where the next data of a file are, from at on; none: at its end. A file system that knows no holes has data all over.
func extent(f *os.File, at, size int64) (begin, end int64) {
	begin, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size
	case err != nil:
		return at, size
	}
	if end, err = unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE); err != nil {
		return begin, size
	}
	return min(begin, size), min(end, size)
}

// part copies bytes within the kernel where it can.
func (x *copier) part(in, out *os.File, at, n int64) (int64, error) {
	from, to := at, at
	did, err := unix.CopyFileRange(int(in.Fd()), &from, int(out.Fd()), &to, int(n), 0)
	if err == nil {
		return int64(did), nil
	}
	if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return 0, err
	}
	if x.buffer == nil {
		x.buffer = make([]byte, 1<<20)
	}
	read, err := in.ReadAt(x.buffer[:min(n, int64(len(x.buffer)))], at)
	if err != nil && err != io.EOF {
		return 0, err
	}
	wrote, err := out.WriteAt(x.buffer[:read], at)
	return int64(wrote), err
}

// report tells of further bytes. What is copied again counts no second time.
func (x *copier) report(n int64) {
	x.done = min(x.done+n, x.total)
	if x.opts.Progress != nil {
		x.opts.Progress(x.done, x.total)
	}
}
