package local

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime"
)

// point is where something will be mounted on: a directory, or a file.
type point struct {
	path string
	file bool
}

// points returns the mount points that a spec needs, sorted.
func points(s runtime.Spec) []point {
	list := []point{{"/proc", false}, {"/dev", false}, {"/etc/hosts", true}, {"/etc/resolv.conf", true}}
	if s.WorkDir != "" && s.WorkDir != "/" {
		list = append(list, point{s.WorkDir, false})
	}
	for _, f := range s.Files {
		list = append(list, point{f.Path, true})
	}
	for _, t := range s.Scratches {
		list = append(list, point{t.Path, false})
	}
	for _, v := range s.Volumes {
		list = append(list, point{v.Path, false})
	}
	slices.SortFunc(list, func(a, b point) int { return strings.Compare(a.path, b.path) })
	return slices.Compact(list)
}

// trees adds to roots the mount points that they lack.
//
// A root is read-only and shared, so a missing mount point can't be made in it. It comes from a second, small
// directory tree, the skeleton, laid over the root by an overlay without an upper layer: it can't be written
// either. One overlay serves every instance that needs the same points; roots that have all need none.
type trees struct {
	dir      string
	seals    string
	features Features
	mu       sync.Mutex
	made     map[string]string // by root and points: the tree's directory
}

func newTrees(run string, f Features) *trees {
	return &trees{dir: filepath.Join(run, "trees"), seals: filepath.Join(run, "seals"), features: f, made: map[string]string{}}
}

// at returns the directory where the root, mounted at rootDir, has all points.
func (t *trees) at(root digest.Digest, rootDir string, need []point) (string, error) {
	key := keyOf(root, need)
	t.mu.Lock()
	defer t.mu.Unlock()
	if dir, ok := t.made[key]; ok {
		return dir, nil
	}
	dir, err := t.make(key, rootDir, need)
	if err != nil {
		return "", err
	}
	t.made[key] = dir
	return dir, nil
}

func (t *trees) make(key, rootDir string, need []point) (string, error) {
	missing, err := lacking(rootDir, need)
	if err != nil || len(missing) == 0 {
		return rootDir, err
	}
	if !t.features.Overlay.OK {
		return "", fault.Errorf(fault.Invalid, "the root lacks %s, and %s", missing[0].path, t.features.Overlay.Detail)
	}
	base := filepath.Join(t.dir, key)
	at := filepath.Join(base, "root")
	yes, err := isMountPoint(at)
	if err != nil {
		return at, err
	}
	if yes && t.touched(key, at) == "" {
		return at, nil
	}
	if yes {
		if err := unmountAndDelete(at); err != nil {
			return at, err
		}
	}
	skeleton := filepath.Join(base, "skeleton")
	if err := t.skeleton(skeleton, rootDir, missing); err != nil {
		return "", fmt.Errorf("making mount points: %w", err)
	}
	if err := overlay(at, skeleton, rootDir); err != nil {
		return at, err
	}
	return at, t.seal(key, at)
}

func (t *trees) seal(key, at string) error {
	s, err := mountSeal(at)
	if err != nil {
		return err
	}
	return writeSeal(filepath.Join(t.seals, "tree-"+key), s)
}

// clean reports whether all trees of a root are mounted as they were made.
func (t *trees) clean(root digest.Digest) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, dir := range t.made {
		if strings.HasPrefix(key, root.Hex()[:32]+"-") && t.touched(key, dir) != "" {
			return false
		}
	}
	return true
}

// touched says how a tree's mount is not the one that was made; "" for one that is, or that an earlier version of this program made.
func (t *trees) touched(key, at string) string {
	s, found, err := readSeal(filepath.Join(t.seals, "tree-"+key))
	if err != nil {
		return err.Error()
	}
	if !found {
		return ""
	}
	switch now, err := mountSeal(at); {
	case err != nil:
		return err.Error()
	case now != s:
		return fmt.Sprintf("another mount (%d)", now.Mount)
	}
	return ""
}

// keyOf names the tree of a root and points.
func keyOf(root digest.Digest, need []point) string {
	sum := sha256.Sum256(fmt.Append(nil, need))
	return root.Hex()[:32] + "-" + hex.EncodeToString(sum[:8])
}

// overlay mounts upper over lower at a directory, read-only.
func overlay(at, upper, lower string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`)
	if err := unix.FsconfigSetString(fs, "lowerdir", escape.Replace(upper)+":"+escape.Replace(lower)); err != nil {
		return fmt.Errorf("fsconfig lowerdir: %w", err)
	}
	mount, err := createMount(fs)
	if err != nil {
		return fmt.Errorf("mounting an overlay: %w", err)
	}
	defer unix.Close(mount)
	return attach(mount, at)
}

// lacking returns the real paths of the points that the root does not have. A point that is there as the other
// kind (a file where a directory is needed) is fault.Invalid.
func lacking(rootDir string, need []point) ([]point, error) {
	var missing []point
	for _, p := range need {
		real, info, err := locate(rootDir, p.path)
		switch {
		case err != nil:
			return nil, fmt.Errorf("looking for %s in the root: %w", p.path, err)
		case info == nil:
			missing = append(missing, point{real, p.file})
		case info.IsDir() == p.file:
			return nil, fault.Errorf(fault.Invalid, "%s can't be mounted on: it is a %s in the root", p.path, map[bool]string{true: "directory", false: "file"}[info.IsDir()])
		}
	}
	return missing, nil
}

// locate follows a path inside a root as the kernel would with the root as /, links included. It returns the path without
// links; info is nil when there is nothing. The root is read-only, so nothing changes meanwhile.
func locate(rootDir, p string) (real string, info fs.FileInfo, err error) {
	real = "/"
	rest := strings.Split(strings.Trim(p, "/"), "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		next := path.Join(real, name) // ".." included
		info, err = os.Lstat(filepath.Join(rootDir, next))
		if errors.Is(err, fs.ErrNotExist) {
			return path.Join(append([]string{next}, rest...)...), nil, nil
		}
		if errors.Is(err, syscall.ENOTDIR) {
			return "", nil, fault.Errorf(fault.Invalid, "%s is not a directory", real)
		}
		if err != nil {
			return "", nil, err
		}
		if info.Mode().Type() != fs.ModeSymlink {
			real = next
			continue
		}
		if links++; links > 40 {
			return "", nil, fault.Errorf(fault.Invalid, "too many links")
		}
		target, err := os.Readlink(filepath.Join(rootDir, next))
		if err != nil {
			return "", nil, err
		}
		if path.IsAbs(target) {
			real = "/"
		}
		rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
	}
	info, err = os.Lstat(filepath.Join(rootDir, real))
	return real, info, err
}

// skeleton makes dir with the points and the directories above them. Those that the root has look as they do there,
// since in an overlay the upper one's owner and mode count.
func (t *trees) skeleton(dir, rootDir string, missing []point) error {
	if err := os.RemoveAll(dir); err != nil { // of a crash in the middle
		return err
	}
	owner := t.features.hostID(0)
	made := map[string]bool{}
	var mkdir func(p string) error
	mkdir = func(p string) error {
		if made[p] {
			return nil
		}
		made[p] = true
		if p != "/" {
			if err := mkdir(path.Dir(p)); err != nil {
				return err
			}
		}
		to := filepath.Join(dir, p)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		uid, gid, mode := owner, owner, os.FileMode(0o755)
		if info, err := os.Lstat(filepath.Join(rootDir, p)); err == nil {
			stat := info.Sys().(*syscall.Stat_t)
			uid, gid, mode = int(stat.Uid), int(stat.Gid), info.Mode()
		}
		return errors.Join(os.Lchown(to, uid, gid), os.Chmod(to, mode&(fs.ModePerm|fs.ModeSticky|fs.ModeSetgid)))
	}
	for _, p := range missing {
		if !p.file {
			if err := mkdir(p.path); err != nil {
				return err
			}
			continue
		}
		if err := mkdir(path.Dir(p.path)); err != nil {
			return err
		}
		to := filepath.Join(dir, p.path)
		if err := errors.Join(os.WriteFile(to, nil, 0o644), os.Lchown(to, owner, owner)); err != nil {
			return err
		}
	}
	return filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(p, time.Unix(0, 0), time.Unix(0, 0)))
	})
}

// release unmounts all trees of a root.
func (t *trees) release(root digest.Digest) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return err
	}
	prefix := root.Hex()[:32] + "-"
	for key := range t.made {
		if strings.HasPrefix(key, prefix) {
			delete(t.made, key)
		}
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		base := filepath.Join(t.dir, e.Name())
		if err := os.Remove(filepath.Join(t.seals, "tree-"+e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := errors.Join(unmountAndDelete(filepath.Join(base, "root")), os.RemoveAll(base)); err != nil {
			return err
		}
	}
	return nil
}
