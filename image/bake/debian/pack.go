package debian

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// removed is what does not stay: made by chance or by the clock, or of use only while installing. Patterns are those of path.Match.
var removed = []string{
	"debs", servicePolicy, clusterPolicy,
	"etc/machine-id", "var/lib/dbus/machine-id", "etc/hostname", "etc/hosts", "etc/resolv.conf",
	"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-", "etc/.pwd.lock",
	"var/lib/dpkg/*-old", "var/lib/dpkg/lock*", "var/lib/dpkg/available", "var/lib/dpkg/triggers/Lock",
	"var/lib/systemd/random-seed",
	"etc/ssl/private/ssl-cert-snakeoil.key", "etc/ssl/certs/ssl-cert-snakeoil.pem", "etc/ssh/ssh_host_*",
	"usr/share/man", "usr/share/info", "usr/share/lintian", "usr/share/linda", "usr/share/locale",
}

// emptied are directories whose files, at any depth, do not stay.
var emptied = []string{"dev", "proc", "sys", "run", "tmp", "var/tmp", "var/log", "var/cache", "var/lib/apt/lists"}

// scrub removes what would differ between two installations, and documentation.
func scrub(root string) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	for _, pattern := range removed {
		names, err := fs.Glob(r.FS(), pattern)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := r.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	for _, dir := range emptied {
		if err := removeFiles(r, dir, func(string) bool { return true }); err != nil {
			return err
		}
	}
	notCopyright := func(p string) bool { return path.Base(p) != "copyright" }
	if err := removeFiles(r, "usr/share/doc", notCopyright); err != nil {
		return err
	}
	return removeDangling(r, "etc/ssl/certs")
}

// removeFiles removes all below dir that is no directory and that drop says.
func removeFiles(r *os.Root, dir string, drop func(string) bool) error {
	err := fs.WalkDir(r.FS(), dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !drop(p) {
			return err
		}
		return r.Remove(p)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// removeDangling removes symbolic links of a directory to files that are beside them no more.
func removeDangling(r *os.Root, dir string) error {
	entries, err := fs.ReadDir(r.FS(), dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if e.Type() != fs.ModeSymlink {
			continue
		}
		target, err := r.Readlink(name)
		if err != nil {
			return err
		}
		if strings.Contains(target, "/") {
			continue
		}
		if _, err := r.Lstat(path.Join(dir, target)); errors.Is(err, fs.ErrNotExist) {
			if err := r.Remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// packer writes a tree as a tar: sorted, owners by number, times no later than the source date, hard links kept.
type packer struct {
	root string
	date time.Time
	tw   *tar.Writer
	seen map[uint64]string // hard-linked files by inode
}

func pack(ctx context.Context, root string, date time.Time, w io.Writer) error {
	p := &packer{root: root, date: date, tw: tar.NewWriter(w), seen: map[uint64]string{}}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return p.add(name, d)
	})
	if err != nil {
		return fmt.Errorf("packing the file system: %w", err)
	}
	return p.tw.Close()
}

func (p *packer) add(file string, d fs.DirEntry) error {
	rel, err := filepath.Rel(p.root, file)
	if err != nil || rel == "." {
		return err
	}
	fi, err := d.Info()
	if err != nil {
		return err
	}
	if fi.Mode()&(fs.ModeSocket|fs.ModeDevice|fs.ModeNamedPipe) != 0 {
		return nil
	}
	h, err := p.header(file, rel, fi)
	if err != nil {
		return err
	}
	if err := p.tw.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(p.tw, f)
	return err
}

func (p *packer) header(file, rel string, fi fs.FileInfo) (*tar.Header, error) {
	target := ""
	if fi.Mode().Type() == fs.ModeSymlink {
		var err error
		if target, err = os.Readlink(file); err != nil {
			return nil, err
		}
	}
	h, err := tar.FileInfoHeader(fi, target)
	if err != nil {
		return nil, err
	}
	st := fi.Sys().(*syscall.Stat_t)
	mtime := fi.ModTime().Truncate(time.Second)
	if mtime.After(p.date) || fi.IsDir() {
		mtime = p.date
	}
	*h = tar.Header{Typeflag: h.Typeflag, Name: rel, Linkname: target, Size: h.Size, Mode: h.Mode, Uid: int(st.Uid), Gid: int(st.Gid), ModTime: mtime.UTC()}
	if fi.IsDir() {
		h.Name += "/"
	}
	if fi.Mode().IsRegular() && st.Nlink > 1 {
		if first, ok := p.seen[st.Ino]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return h, nil
		}
		p.seen[st.Ino] = rel
	}
	h.PAXRecords, err = capabilities(file, fi)
	return h, err
}

// capabilities returns the file capabilities, the one extended attribute that packages set.
func capabilities(file string, fi fs.FileInfo) (map[string]string, error) {
	if !fi.Mode().IsRegular() {
		return nil, nil
	}
	buf := make([]byte, 128)
	n, err := unix.Lgetxattr(file, "security.capability", buf)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading capabilities of %s: %w", file, err)
	}
	return map[string]string{"SCHILY.xattr.security.capability": string(buf[:n])}, nil
}
