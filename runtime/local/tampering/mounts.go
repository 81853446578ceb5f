package tampering

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// OtherRoot mounts another root upon the one that instances to come would get.
func OtherRoot(t Target) (func(), error) {
	s, err := t.spec()
	if err != nil {
		return nil, err
	}
	at := filepath.Join(t.Run, "roots", s.Root.Hex())
	if err := unix.Mount("other", at, "tmpfs", 0, ""); err != nil {
		return nil, fmt.Errorf("mounting upon %s: %w", at, err)
	}
	return nothing, nil // the server takes it away with what lies below
}

// OtherRootInside mounts an empty root upon that of the instance, in its mount namespace: for processes to come, exec by an absolute
// path among them, not for those that hold the old one.
func OtherRootInside(t Target) (func(), error) { return nothing, t.mountTmpfs("/") }

// Overmount mounts a file of the machine upon the first process's program, in the instance's mount namespace.
func Overmount(t Target) (func(), error) {
	program, err := os.Readlink(t.proc("exe"))
	if err != nil {
		return nil, err
	}
	evil := filepath.Join(t.dir(), "files", "1")
	tree, err := unix.OpenTree(unix.AT_FDCWD, evil, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cloning the mount of %s: %w", evil, err)
	}
	defer unix.Close(tree)
	return nothing, t.attach(tree, program)
}

// ExecutableScratch mounts the instance's first scratch anew, without noexec.
func ExecutableScratch(t Target) (func(), error) {
	s, err := t.spec()
	if err != nil {
		return nil, err
	}
	if len(s.Scratches) == 0 {
		return nil, fmt.Errorf("%s has no scratch", t.ID)
	}
	return nothing, t.clear(s.Scratches[0].Path, unix.MOUNT_ATTR_NOEXEC)
}

// DropProgram puts a program into the instance's first scratch, from outside.
func DropProgram(t Target) (func(), error) {
	s, err := t.spec()
	if err != nil {
		return nil, err
	}
	if len(s.Scratches) == 0 {
		return nil, fmt.Errorf("%s has no scratch", t.ID)
	}
	dir, err := unix.Open(filepath.Join(t.proc("root"), s.Scratches[0].Path), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	var owner unix.Stat_t
	if err := unix.Stat(t.proc(""), &owner); err != nil {
		return nil, err
	}
	return nothing, onThread(func() error {
		// A file must belong to a user whom the instance's user namespace has.
		unix.Setfsgid(int(owner.Gid))
		unix.Setfsuid(int(owner.Uid))
		fd, err := unix.Openat(dir, "evil", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o755)
		if err != nil {
			return os.NewSyscallError("openat", err)
		}
		defer unix.Close(fd)
		_, err = unix.Write(fd, []byte("\x7fELF"))
		return err
	})
}

// WritableMount lets /proc/sys of the instance be written.
func WritableMount(t Target) (func(), error) {
	return nothing, t.clear("/proc/sys", unix.MOUNT_ATTR_RDONLY)
}

// clear takes flags off a mount of the instance.
func (t Target) clear(at string, flags uint64) error {
	return t.inMounts(func() error {
		return os.NewSyscallError("mount_setattr", unix.MountSetattr(unix.AT_FDCWD, at, 0, &unix.MountAttr{Attr_clr: flags}))
	})
}

func (t Target) mountTmpfs(at string) error {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mount)
	return t.attach(mount, at)
}

// attach puts a mount on a path of the instance.
func (t Target) attach(mount int, at string) error {
	return t.inMounts(func() error {
		return os.NewSyscallError("move_mount", unix.MoveMount(mount, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH))
	})
}

// inMounts runs act in the instance's mount namespace, with its root.
func (t Target) inMounts(act func() error) error {
	ns, err := unix.Open(t.proc("ns/mnt"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the mounts of %s: %w", t.ID, err)
	}
	defer unix.Close(ns)
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return act()
	})
}

// EditHosts and EditResolver append to files that the instance was given, on the machine.
func EditHosts(t Target) (func(), error)    { return nothing, t.edit("0", "127.0.0.1\tevil\n") }
func EditResolver(t Target) (func(), error) { return nothing, t.edit("1", "nameserver 127.0.0.1\n") }

func (t Target) edit(file, line string) error {
	f, err := os.OpenFile(filepath.Join(t.dir(), "files", file), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(line); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// groups returns the directories of the instance's cgroups: one in each hierarchy that has it.
func (t Target) groups() ([]string, error) {
	b, err := os.ReadFile(t.proc("cgroup"))
	if err != nil {
		return nil, err
	}
	var dirs []string
	for line := range bytes.Lines(b) {
		parts := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		if len(parts) != 3 || !strings.HasSuffix(parts[2], "/"+t.ID) {
			continue
		}
		for _, hierarchy := range append(strings.Split(strings.TrimPrefix(parts[1], "name="), ","), "unified", "") {
			if dir := filepath.Join("/sys/fs/cgroup", hierarchy, parts[2]); exists(filepath.Join(dir, "cgroup.procs")) {
				dirs = append(dirs, dir)
				break
			}
		}
	}
	if len(dirs) == 0 {
		return nil, fmt.Errorf("%s has no cgroup", t.ID)
	}
	return dirs, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
