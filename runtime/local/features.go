package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
)

// Feature is one thing that a machine has or lacks. Detail says for people what that means.
type Feature struct {
	OK     bool
	Detail string
	Path   string // of a program, where there is one
}

// Features is what this machine can do, found by trying, not by version numbers.
type Features struct {
	Kernel         string
	Namespaces     Feature // without: no instance can run
	EROFS          Feature // any way of mounting it
	FileBacked     Feature // EROFS without a loop device (Linux 6.12)
	UserNamespaces Feature
	IDMapped       Feature // the shared root shows its true owners inside user namespaces
	Overlay        Feature // mount points that a root lacks
	CgroupVersion  int     // 1, 2, or 0: none
	Limits         Feature // cpu, memory and process limits
	Swap           Feature // whether a memory limit covers swap
	Freezer        Feature // stopping all processes of an instance where they are
	Seccomp        Feature
	ExitCodes      Feature // of instances that outlived their launcher (Linux 6.15)
	GVisor         Feature
	Verity         Feature // of the files of roots; found by Open, since it depends on where they lie
}

// Usable returns fault.Unavailable when no instance could run.
func (f Features) Usable() error {
	if !f.Namespaces.OK {
		return fault.Errorf(fault.Unavailable, "this machine can't run instances: %s", f.Namespaces.Detail)
	}
	return nil
}

// Warnings returns a sentence for each thing that this machine lacks.
func (f Features) Warnings() []string {
	var out []string
	for _, x := range []Feature{f.Namespaces, f.EROFS, f.FileBacked, f.UserNamespaces, f.IDMapped, f.Overlay, f.Limits, f.Swap, f.Freezer, f.Seccomp, f.ExitCodes} {
		if !x.OK {
			out = append(out, x.Detail)
		}
	}
	return out
}

// Probe tries what this machine can do. It needs root.
func Probe(ctx context.Context, withoutUserNamespaces bool) Features {
	f := Features{Kernel: kernelRelease()}
	f.Namespaces = probeNamespaces()
	f.UserNamespaces = probeUserNamespaces(withoutUserNamespaces)
	probeEROFS(&f)
	f.Overlay = hasFilesystem("overlay", "overlayfs: mount points that a root lacks can't be added")
	f.CgroupVersion, f.Limits, f.Swap = probeCgroups("/sys/fs/cgroup")
	f.Freezer = probeFreezer(f.CgroupVersion)
	f.Seccomp = probeSeccomp()
	f.ExitCodes = probeExitCodes()
	f.GVisor = probeGVisor(ctx)
	return f
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func probeNamespaces() Feature {
	for _, ns := range []string{"pid", "mnt", "net", "uts", "ipc", "cgroup"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			return Feature{Detail: fmt.Sprintf("the kernel has no %s namespaces", ns)}
		}
	}
	return Feature{OK: true, Detail: "pid, mount, net, uts, ipc and cgroup namespaces"}
}

func probeUserNamespaces(without bool) Feature {
	if without {
		return Feature{Detail: "user namespaces are switched off by configuration: user 0 of an instance is root of the machine, without capabilities"}
	}
	ns, err := userNamespace()
	if err != nil {
		return Feature{Detail: fmt.Sprintf("user namespaces can't be made (%v): user 0 of an instance is root of the machine, without capabilities", err)}
	}
	ns.Close()
	return Feature{OK: true, Detail: fmt.Sprintf("users 0 to %d of instances are %d and up on the machine", UIDSize-1, UIDBase)}
}

// userNamespace returns a user namespace with the mapping of instances. The process that it is made with is
// stopped before its first instruction and killed; the descriptor keeps the namespace.
func userNamespace() (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result)
	go func() { // ptrace belongs to a thread
		f, err := tracedUserNamespace()
		done <- result{f, err}
	}()
	r := <-done
	return r.f, r.err
}

func hasFilesystem(name, lack string) Feature {
	b, err := os.ReadFile("/proc/filesystems")
	if err == nil {
		for line := range strings.Lines(string(b)) {
			if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == name {
				return Feature{OK: true, Detail: name}
			}
		}
	}
	if exec.Command("modprobe", name).Run() == nil {
		return Feature{OK: true, Detail: name + " (module loaded)"}
	}
	return Feature{Detail: "the kernel has no " + lack}
}

// probeCgroups finds the version under root, and whether limits can be set: on a hybrid machine the controllers are
// bound to version 1, and a view of version 2 has none.
func probeCgroups(root string) (version int, limits, swap Feature) {
	if b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err == nil {
		have := strings.Fields(string(b))
		limits = Feature{OK: true, Detail: "cgroup v2"}
		for _, want := range []string{"cpu", "memory", "pids"} {
			if !contains(have, want) {
				limits = Feature{Detail: fmt.Sprintf("cgroup v2 has no %s controller here (bound to v1?): that limit does not apply", want)}
			}
		}
		return 2, limits, limits
	}
	for _, want := range []string{"cpu", "memory", "pids", "devices"} {
		if ok, err := isMountPoint(filepath.Join(root, want)); err != nil || !ok {
			return 0, Feature{Detail: fmt.Sprintf("no cgroup v2, and no v1 %s controller: limits do not apply", want)}, Feature{}
		}
	}
	limits = Feature{OK: true, Detail: "cgroup v1"}
	swap = Feature{OK: true, Detail: "memory limits cover swap"}
	if _, err := os.Stat(filepath.Join(root, "memory/memory.memsw.limit_in_bytes")); err != nil {
		swap = Feature{Detail: "memory limits don't cover swap (no swap accounting in cgroup v1)"}
	}
	return 1, limits, swap
}

func contains(list []string, want string) bool {
	for _, s := range list {
		if s == want {
			return true
		}
	}
	return false
}

func probeSeccomp() Feature {
	if _, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail"); err != nil {
		return Feature{Detail: "the kernel has no seccomp filters: system calls are not restricted"}
	}
	return Feature{OK: true, Detail: "the default profile, native architecture"}
}

// probeExitCodes asks for the exit of a process that was reaped.
func probeExitCodes() Feature {
	lack := Feature{Detail: "the kernel tells no exit codes of other processes' children (before Linux 6.15): an instance that exits after its launcher died has none"}
	pidfd := -1
	cmd := exec.Command("/proc/self/exe")
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd, Ptrace: true}
	done := make(chan error, 1)
	go func() { done <- startAndKill(cmd) }()
	if err := <-done; err != nil || pidfd < 0 {
		return lack
	}
	defer unix.Close(pidfd)
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if unix.IoctlPidfdInfo(pidfd, &info) != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return lack
	}
	return Feature{OK: true, Detail: "exit codes are known after a launcher's death"}
}

func probeGVisor(ctx context.Context) Feature {
	path, err := exec.LookPath("runsc")
	if err != nil {
		return Feature{Detail: "runsc is not on this machine's PATH"}
	}
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return Feature{Detail: fmt.Sprintf("%s does not run: %v", path, err)}
	}
	first, _, _ := bytes.Cut(out, []byte("\n"))
	return Feature{OK: true, Detail: string(first), Path: path}
}

// probeEROFS mounts an empty image both ways and maps its owners.
func probeEROFS(f *Features) {
	f.EROFS = hasFilesystem("erofs", "EROFS: roots are unpacked and bound read-only, so their files are not covered by one hash while they run")
	f.FileBacked = Feature{Detail: "EROFS can't be mounted from a file (before Linux 6.12): roots need a loop device each"}
	f.IDMapped = Feature{Detail: "EROFS mounts can't be id-mapped: user namespaces are not used"}
	if !f.EROFS.OK {
		f.FileBacked.Detail, f.IDMapped.Detail = f.EROFS.Detail, f.EROFS.Detail
		return
	}
	image, err := emptyImage()
	if err != nil {
		f.EROFS = Feature{Detail: fmt.Sprintf("EROFS can't be tried: %v", err)}
		return
	}
	defer os.Remove(image.Name())
	defer image.Close()
	mount, err := mountFile(image)
	switch {
	case err == nil:
		f.FileBacked = Feature{OK: true, Detail: "EROFS mounts from files"}
	case errors.Is(err, unix.ENOTBLK):
		if mount, err = mountLoop(image); err != nil {
			f.EROFS = Feature{Detail: fmt.Sprintf("EROFS can't be mounted from a file, nor by a loop device (%v): roots are unpacked", err)}
			return
		}
	default:
		f.EROFS = Feature{Detail: fmt.Sprintf("EROFS can't be mounted (%v): roots are unpacked", err)}
		return
	}
	defer unix.Close(mount)
	f.IDMapped = probeIDMap(*f, mount)
}

func probeIDMap(f Features, mount int) Feature {
	if !f.UserNamespaces.OK {
		return Feature{OK: true, Detail: "not needed without user namespaces"}
	}
	ns, err := userNamespace()
	if err == nil {
		defer ns.Close()
		err = mapOwners(mount, ns)
	}
	if err != nil {
		return Feature{Detail: fmt.Sprintf("EROFS mounts can't be id-mapped (%v): user namespaces are not used", err)}
	}
	return Feature{OK: true, Detail: "roots are shared between user namespaces"}
}

// userNamespaces tells whether instances have user namespaces: only together with roots that can be shared between them.
func (f Features) userNamespaces() bool { return f.UserNamespaces.OK && f.IDMapped.OK }

// hostID returns the host's number of an instance's user or group.
func (f Features) hostID(id int) int {
	if f.userNamespaces() {
		return UIDBase + id
	}
	return id
}
