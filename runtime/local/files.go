package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	mobyuser "github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime"
)

// user is a user as seen inside an instance.
type user struct {
	uid, gid int
	groups   []int
}

// lookupUser resolves "uid[:gid]" or names by the root's own /etc/passwd and /etc/group. "" is user 0.
func lookupUser(rootDir, spec string) (user, error) {
	passwd, err := readInRoot(rootDir, "/etc/passwd")
	if err != nil {
		return user{}, err
	}
	group, err := readInRoot(rootDir, "/etc/group")
	if err != nil {
		return user{}, err
	}
	u, err := mobyuser.GetExecUser(spec, &mobyuser.ExecUser{}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return user{}, fault.As(fault.Invalid, fmt.Errorf("user %q: %w", spec, err))
	}
	if u.Uid >= UIDSize || u.Gid >= UIDSize {
		return user{}, fault.Errorf(fault.Invalid, "user %q: only numbers below %d can be used", spec, UIDSize)
	}
	return user{u.Uid, u.Gid, u.Sgids}, nil
}

// readInRoot reads a file of the root; an absent one is empty.
func readInRoot(rootDir, p string) ([]byte, error) {
	real, info, err := locate(rootDir, p)
	if err != nil || info == nil || !info.Mode().IsRegular() {
		return nil, err
	}
	return os.ReadFile(filepath.Join(rootDir, real))
}

// writeFiles makes the instance's directory: the spec first, the FIFOs for its output, and its files, all in memory. It returns the mounts.
func (h *Host) writeFiles(s runtime.Spec, rootDir string, who user) ([]specs.Mount, error) {
	dir := h.dir(s.Identity.ID)
	if err := os.RemoveAll(dir); err != nil { // of a creation that failed
		return nil, err
	}
	for _, d := range []string{dir, filepath.Join(dir, "files")} {
		if err := errors.Join(os.Mkdir(d, 0o710), os.Chown(d, 0, UIDBase)); err != nil {
			return nil, err
		}
	}
	if err := h.inMemory(s); err != nil {
		return nil, err
	}
	b, err := json.Marshal(s.WithoutSecrets())
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "spec.json"), b, 0o600); err != nil {
		return nil, err
	}
	for _, stream := range []string{"stdout", "stderr"} {
		if err := h.makeFIFO(filepath.Join(dir, stream), who); err != nil {
			return nil, err
		}
	}
	var mounts []specs.Mount
	for n, f := range givenFiles(s) {
		owner := who
		if f.User != "" {
			if owner, err = lookupUser(rootDir, f.User); err != nil {
				return nil, fmt.Errorf("file %s: %w", f.Path, err)
			}
		}
		at := filepath.Join(dir, "files", strconv.Itoa(n))
		if err := h.writeFile(at, f, owner); err != nil {
			return nil, fmt.Errorf("file %s: %w", f.Path, err)
		}
		mounts = append(mounts, bind(at, f.Path, "ro", "noexec"))
	}
	return mounts, nil
}

// inMemory refuses an instance with secrets where the run directory would put them on a disk.
func (h *Host) inMemory(s runtime.Spec) error {
	if !s.HasSecrets() {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(h.dir(s.Identity.ID), &st); err != nil {
		return fmt.Errorf("examining %s: %w", h.run, err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		return fault.WithHint(fault.Errorf(fault.Unavailable, "%s is no tmpfs: a secret in it would be written to a disk", h.run),
			"unmount what is mounted there, and start the server again")
	}
	return nil
}

// makeFIFO makes one that the instance may open again by /dev/stdout.
func (h *Host) makeFIFO(path string, who user) error {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return fmt.Errorf("making %s: %w", path, err)
	}
	return os.Chown(path, h.features.hostID(who.uid), h.features.hostID(who.gid))
}

func (h *Host) writeFile(path string, f runtime.File, owner user) error {
	if err := os.WriteFile(path, f.Content, 0o600); err != nil {
		return err
	}
	if err := os.Chown(path, h.features.hostID(owner.uid), h.features.hostID(owner.gid)); err != nil {
		return err
	}
	mode := fs.FileMode(f.Mode & 0o777)
	if mode == 0 {
		mode = 0o444
	}
	return os.Chmod(path, mode)
}

func hostsFile(s runtime.Spec) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "127.0.0.1\tlocalhost %s\n", hostname(s))
	for _, e := range s.Hosts {
		fmt.Fprintf(&b, "%s\t%s\n", e.Address, strings.Join(e.Names, " "))
	}
	return []byte(b.String())
}

func (h *Host) volumeDir(v runtime.Volume) string { return h.placeDir(v.Place()) }

// makeVolumes makes the volumes that are not there yet, and returns the mounts.
func (h *Host) makeVolumes(s runtime.Spec, rootDir string, who user) ([]specs.Mount, error) {
	var mounts []specs.Mount
	for _, v := range s.Volumes {
		dir := h.volumeDir(v)
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			if err := h.makeVolume(dir, rootDir, v.Path, who); err != nil {
				return nil, fmt.Errorf("making volume %s: %w", v.Name, err)
			}
		} else if err != nil {
			return nil, err
		}
		mounts = append(mounts, bind(dir, v.Path, "rw"))
	}
	return mounts, nil
}

// makeVolume makes a volume with what the root has at its path, owners included: so a database finds
// the directory that its package made. A directory that nobody else owns goes to the instance's user.
func (h *Host) makeVolume(dir, rootDir, inside string, who user) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(parent, ".new-")
	if err != nil {
		return err
	}
	root := h.features.hostID(0)
	err = errors.Join(os.Chmod(tmp, 0o755), os.Chown(tmp, root, root))
	if real, info, lookErr := locate(rootDir, inside); err == nil && lookErr == nil && info != nil && info.IsDir() {
		err = copyTree(filepath.Join(rootDir, real), tmp)
	}
	if err == nil {
		err = giveAway(tmp, root, h.features.hostID(who.uid), h.features.hostID(who.gid))
	}
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, fs.ErrExist) { // another instance made it first
		return os.RemoveAll(tmp)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return nil
}

func giveAway(dir string, root, uid, gid int) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if int(info.Sys().(*syscall.Stat_t).Uid) != root {
		return nil
	}
	return os.Chown(dir, uid, gid)
}

// copyTree copies directories, files and links with owner, mode and time. from shows owners as the host does.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		return copyEntry(p, e, filepath.Join(to, rel))
	})
}

func copyEntry(p string, e fs.DirEntry, dst string) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		err = os.MkdirAll(dst, 0o700)
	case fs.ModeSymlink:
		var target string
		if target, err = os.Readlink(p); err == nil {
			err = os.Symlink(target, dst)
		}
	case 0:
		err = copyFile(p, dst)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	if err := os.Lchown(dst, int(stat.Uid), int(stat.Gid)); err != nil {
		return err
	}
	if info.Mode().Type() == fs.ModeSymlink {
		return nil
	}
	return errors.Join(os.Chmod(dst, info.Mode()&(fs.ModePerm|fs.ModeSticky|fs.ModeSetgid)), os.Chtimes(dst, info.ModTime(), info.ModTime()))
}

func copyFile(p, dst string) error {
	in, err := os.Open(p)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// DestroyVolumes implements runtime.Host.
func (h *Host) DestroyVolumes(_ context.Context, env string) error {
	if env == "" || env != filepath.Base(env) || env[0] == '.' {
		return fault.Errorf(fault.Invalid, "destroying volumes: %q is not an environment", env)
	}
	doomed, err := h.setAside(env)
	if err != nil || doomed == "" {
		return err
	}
	return os.RemoveAll(doomed)
}

// setAside renames the volumes of an environment, so that they are gone at once, before the long work of deleting them. What a crash
// leaves of that goes with the next call.
func (h *Host) setAside(env string) (doomed string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock() // no instance can be claimed meanwhile
	for p := range h.placing {
		if p.Env == env {
			return "", fault.Errorf(fault.Conflict, "destroying the volumes of %s: %s is being made or deleted", env, p)
		}
	}
	for _, i := range h.instances {
		for _, v := range i.spec.Volumes {
			if v.Env == env {
				return "", fault.Errorf(fault.Conflict, "destroying the volumes of %s: instance %s uses %s", env, i.spec.Identity.ID, v.Name)
			}
		}
	}
	doomed = filepath.Join(h.config.Dir, "volumes", ".destroyed")
	if err := os.MkdirAll(doomed, 0o700); err != nil {
		return "", err
	}
	to, err := os.MkdirTemp(doomed, env+"-")
	if err != nil {
		return "", err
	}
	err = os.Rename(filepath.Join(h.config.Dir, "volumes", env), filepath.Join(to, "volumes"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return doomed, err
}
