package local

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
)

func (r *roots) unpacked(d digest.Digest) string { return filepath.Join(r.data, "unpacked", d.Hex()) }

// bindUnpacked is for kernels without EROFS: the image's files are written to disk and bound read-only. They were right when they
// were unpacked; unlike a mounted image, nothing keeps root from changing them later.
func (r *roots) bindUnpacked(f *os.File, d digest.Digest, at string) error {
	dir := r.unpacked(d)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("unpacking a root: this kernel has no EROFS", "root", d)
		if err := unpack(f, dir); err != nil {
			return fmt.Errorf("unpacking root %s: %w", d, err)
		}
	} else if err != nil {
		return err
	}
	mount, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("cloning the mount of %s: %w", dir, err)
	}
	defer unix.Close(mount)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("making the mount of %s read-only: %w", dir, err)
	}
	return attach(mount, at)
}

// unpack writes an image's files below dir, which appears when all are written.
func unpack(image io.ReaderAt, dir string) error {
	img, err := erofs.Open(image)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".unpacking-")
	if err != nil {
		return err
	}
	err = fs.WalkDir(img, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return unpackEntry(img, p, e, filepath.Join(tmp, p))
	})
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return nil
}

func unpackEntry(img fs.FS, p string, e fs.DirEntry, to string) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		if err := os.MkdirAll(to, 0o700); err != nil {
			return err
		}
	case fs.ModeSymlink:
		target, err := fs.ReadLink(img, p)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, to); err != nil {
			return err
		}
	case 0:
		if err := unpackFile(img, p, to); err != nil {
			return err
		}
	default:
		return nil // devices and the like are of no use without capabilities
	}
	if s, ok := info.Sys().(*erofs.Stat); ok {
		if err := os.Lchown(to, int(s.UID), int(s.GID)); err != nil {
			return err
		}
	}
	if info.Mode().Type() == fs.ModeSymlink {
		return nil
	}
	return os.Chmod(to, info.Mode()&(fs.ModePerm|fs.ModeSticky|fs.ModeSetgid|fs.ModeSetuid))
}

func unpackFile(img fs.FS, p, to string) error {
	from, err := img.Open(p)
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}
