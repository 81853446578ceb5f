// Package tree copies a directory with all that is below it, and names what a directory holds.
//
// A copy has the content, owners, permissions, times, extended attributes, hard links, symbolic links, FIFOs and holes of what it was made
// from. Sockets and devices are left out: the first mean nothing without their process, and an instance can't make the second. Where the
// file system shares blocks between files (FICLONE: btrfs, XFS), no data are copied.
//
// Nothing outside of the source is ever read: it is walked below its own descriptor, and no link is followed. Go has libraries that copy
// trees (containerd's continuity/fs is the best known); none of them copies what is being written to, says how far it is, can be
// stopped, or keeps holes.
//
// # Digest
//
// The digest of a tree is the SHA-256 of its lines, in the order of a walk by name. One entry is one line:
//
//	d MODE UID GID MTIME "PATH"
//	f MODE UID GID MTIME "PATH" SIZE SHA256        a further name of a file that has come already: h "PATH" "FIRST"
//	l MODE UID GID MTIME "PATH" "TARGET"
//	p MODE UID GID MTIME "PATH"
//
// and for each of its extended attributes, by name: x "NAME" "VALUE". MODE is octal with the bits for set-id and sticky, MTIME is in
// nanoseconds, PATH is relative to the tree ("." is itself), strings are quoted as Go does it.
package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
)

// Content is what a tree holds.
type Content struct {
	Bytes  int64 // of files, as their sizes say; each file once
	Files  int   // entries, the tree itself not counted
	Digest digest.Digest
}

// entry is one thing in a tree, found without following links.
type entry struct {
	path string // relative to the tree; "." is itself
	stat unix.Stat_t
}

func (e entry) kind() uint32 { return e.stat.Mode & unix.S_IFMT }

func (e entry) perm() uint32 { return e.stat.Mode & 0o7777 }

// key names the file that the entry is a name of.
func (e entry) key() [2]uint64 { return [2]uint64{uint64(e.stat.Dev), e.stat.Ino} }

// linked reports whether the file may have other names.
func (e entry) linked() bool { return e.stat.Nlink > 1 && e.kind() != unix.S_IFDIR }

// stored is how many bytes of the entry's file are on the disk, at most: holes are not.
func (e entry) stored() int64 {
	if e.kind() != unix.S_IFREG {
		return 0
	}
	return min(e.stat.Size, e.stat.Blocks*512)
}

// kept reports whether copies have such a thing.
func (e entry) kept() bool {
	return slices.Contains([]uint32{unix.S_IFDIR, unix.S_IFREG, unix.S_IFLNK, unix.S_IFIFO}, e.kind())
}

// walk calls visit for every entry that copies have, parents first, by name; leave, unless it is nil, for each directory after what is in it.
// What vanishes on the way is left out.
func walk(ctx context.Context, root *os.Root, visit, leave func(entry) error) error {
	return walkFrom(ctx, root, ".", visit, leave)
}

func walkFrom(ctx context.Context, root *os.Root, path string, visit, leave func(entry) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e, err := look(root, path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && path != ".":
		return nil
	case err != nil:
		return err
	case !e.kept():
		return nil
	}
	if err := visit(e); err != nil || e.kind() != unix.S_IFDIR {
		return err
	}
	names, err := list(root, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := walkFrom(ctx, root, filepath.Join(path, name), visit, leave); err != nil {
			return err
		}
	}
	if leave != nil {
		return leave(e)
	}
	return nil
}

func look(root *os.Root, path string) (entry, error) {
	info, err := root.Lstat(path)
	if err != nil {
		return entry{}, err
	}
	st, ok := info.Sys().(*unixStat)
	if !ok {
		return entry{}, fmt.Errorf("examining %s: no attributes", path)
	}
	return entry{path, *statOf(st)}, nil
}

func list(root *os.Root, path string) ([]string, error) {
	dir, err := root.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// open opens a file for reading, and nothing that took its place meanwhile: no link is followed, no FIFO waited for.
func open(root *os.Root, path string) (*os.File, error) {
	return root.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// Measure reads all of a tree.
func Measure(ctx context.Context, dir string) (Content, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Content{}, err
	}
	defer root.Close()
	c := Content{Files: -1}
	lines, first := sha256.New(), map[[2]uint64]string{}
	err = walk(ctx, root, func(e entry) error {
		c.Files++
		if at, again := first[e.key()]; again {
			fmt.Fprintf(lines, "h %q %q\n", e.path, at)
			return nil
		}
		if e.linked() {
			first[e.key()] = e.path
		}
		if e.kind() == unix.S_IFREG {
			c.Bytes += e.stat.Size
		}
		return describe(ctx, root, e, lines)
	}, nil)
	if err != nil {
		return Content{}, fmt.Errorf("measuring %s: %w", dir, err)
	}
	c.Digest = digest.Digest(fmt.Sprintf("sha256:%x", lines.Sum(nil)))
	return c, nil
}

var letters = map[uint32]string{unix.S_IFDIR: "d", unix.S_IFREG: "f", unix.S_IFLNK: "l", unix.S_IFIFO: "p"}

func describe(ctx context.Context, root *os.Root, e entry, lines io.Writer) error {
	detail := ""
	switch e.kind() {
	case unix.S_IFREG:
		size, sum, err := sumOf(ctx, root, e.path)
		if err != nil {
			return err
		}
		detail = fmt.Sprintf(" %d %x", size, sum.Sum(nil))
	case unix.S_IFLNK:
		target, err := root.Readlink(e.path)
		if err != nil {
			return err
		}
		detail = fmt.Sprintf(" %q", target)
	}
	fmt.Fprintf(lines, "%s %04o %d %d %d %q%s\n", letters[e.kind()], e.perm(), e.stat.Uid, e.stat.Gid, e.stat.Mtim.Nano(), e.path, detail)
	if e.kind() != unix.S_IFREG && e.kind() != unix.S_IFDIR {
		return nil
	}
	f, err := open(root, e.path)
	if err != nil {
		return err
	}
	defer f.Close()
	attrs, err := xattrs(f)
	for _, name := range sortedKeys(attrs) {
		fmt.Fprintf(lines, "x %q %q\n", name, attrs[name])
	}
	return err
}

func sumOf(ctx context.Context, root *os.Root, path string) (int64, hash.Hash, error) {
	f, err := open(root, path)
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.CopyBuffer(sum, readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return f.Read(p)
	}), make([]byte, 1<<20))
	return n, sum, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// xattrs returns the extended attributes of an open file or directory; none where its file system has none.
func xattrs(f *os.File) (map[string]string, error) {
	size, err := unix.Flistxattr(int(f.Fd()), nil)
	if err != nil || size == 0 {
		return nil, without(err)
	}
	buf := make([]byte, size)
	if size, err = unix.Flistxattr(int(f.Fd()), buf); err != nil {
		return nil, without(err)
	}
	out := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:size]), "\x00"), "\x00") {
		value := make([]byte, 1<<16) // the largest that Linux allows
		n, err := unix.Fgetxattr(int(f.Fd()), name, value)
		switch {
		case errors.Is(err, unix.ENODATA): // gone meanwhile
		case err != nil:
			return nil, fmt.Errorf("attribute %s of %s: %w", name, f.Name(), err)
		default:
			out[name] = string(value[:n])
		}
	}
	return out, nil
}

// without has file systems without extended attributes have none.
func without(err error) error {
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

func sortedKeys(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
