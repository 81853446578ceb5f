package local

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	goruntime "runtime"
	"strconv"
	"syscall"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"
)

// mountFile mounts the EROFS image that f holds, and returns the mount, attached nowhere. ENOTBLK: the kernel wants a block device.
func mountFile(f *os.File) (int, error) {
	return mountErofs("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
}

func mountErofs(source string) (int, error) {
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen erofs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return -1, fmt.Errorf("fsconfig source: %w", err)
	}
	return createMount(fs)
}

// createMount makes a read-only mount of a configured file system.
func createMount(fs int) (int, error) {
	if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
		return -1, fmt.Errorf("fsconfig ro: %w", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("fsconfig create: %w%s", err, kernelSays(fs))
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return mount, nil
}

// kernelSays returns what the kernel has to say about a failed fsconfig.
func kernelSays(fs int) string {
	buf := make([]byte, 512)
	n, err := unix.Read(fs, buf)
	if err != nil || n < 3 {
		return ""
	}
	return " (" + string(buf[2:n]) + ")"
}

// mountLoop mounts it through a loop device that goes with the mount.
func mountLoop(f *os.File) (int, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer control.Close()
	for range 16 { // another may take the free one first
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return -1, fmt.Errorf("finding a free loop device: %w", err)
		}
		path := "/dev/loop" + strconv.Itoa(n)
		device, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		config := unix.LoopConfig{Fd: uint32(f.Fd())}
		config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if errors.Is(err, unix.EBUSY) {
			device.Close()
			continue
		}
		if err != nil {
			device.Close()
			return -1, fmt.Errorf("configuring %s: %w", path, err)
		}
		mount, err := mountErofs(path)
		device.Close()
		return mount, err
	}
	return -1, errors.New("no free loop device")
}

// mapOwners makes the owners 0 and up of a mount that is attached nowhere appear as UIDBase and up.
func mapOwners(mount int, userns *os.File) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("id-mapping a mount: %w", err)
	}
	return nil
}

// attach puts a mount on a directory, which is made.
func attach(mount int, dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting on %s: %w", dir, err)
	}
	return nil
}

// tracedUserNamespace is the thread-bound half of userNamespace.
func tracedUserNamespace() (*os.File, error) {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe")
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: UIDBase, Size: UIDSize}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: maps, GidMappings: maps, Ptrace: true, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	killTraced(cmd)
	return ns, err
}

func killTraced(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Process.Wait()
}

func startAndKill(cmd *exec.Cmd) error {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return err
	}
	killTraced(cmd)
	return nil
}

// emptyImage writes an EROFS image without files, in the temporary directory.
func emptyImage() (*os.File, error) {
	f, err := os.CreateTemp("", "invar-probe-*.erofs")
	if err != nil {
		return nil, err
	}
	w := erofs.Create(f, erofs.WithBuildTime(0, 0))
	if err := w.Close(); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return f, nil
}
