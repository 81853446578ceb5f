package local

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/kernel"
	"github.com/invarhq/invar/runtime"
)

// mountLine is a line of mountinfo (proc_pid_mountinfo(5)).
type mountLine struct {
	number  uint64
	device  uint64
	root    string // of the mount in its file system
	at      string
	options []string
	kind    string
}

func parseMount(line string) (mountLine, bool) {
	f := strings.Fields(line)
	dash := slices.Index(f, "-")
	if dash < 6 || len(f) < dash+4 {
		return mountLine{}, false
	}
	var major, minor uint32
	number, err := strconv.ParseUint(f[0], 10, 64)
	if _, err2 := fmt.Sscanf(f[2], "%d:%d", &major, &minor); err != nil || err2 != nil {
		return mountLine{}, false
	}
	return mountLine{
		number: number, device: unix.Mkdev(major, minor), root: unescapeMount(f[3]), at: unescapeMount(f[4]), options: strings.Split(f[5], ","),
		kind: f[dash+1],
	}, true
}

// guard tells the flags that keep something from being done.
func (m mountLine) guard() string {
	var out []string
	for _, o := range []string{"ro", "nosuid", "nodev", "noexec"} {
		if slices.Contains(m.options, o) {
			out = append(out, o)
		}
	}
	if len(out) == 0 {
		return "writable"
	}
	return strings.Join(out, ",")
}

// lookAtMounts tells what is mounted in the instance, each by place, kind, source and the flags that guard it. While the kernel lists the
// same, it is not read again.
func (x *inspection) lookAtMounts() error {
	if x.boxed {
		return nil
	}
	b, err := kernel.Read(x.proc("mountinfo"), x.buf)
	if err != nil {
		return fault.As(fault.Conflict, err)
	}
	var run, tree unix.Stat_t
	if err := unix.Stat(x.h.run, &run); err != nil {
		return err
	}
	unix.Stat(x.e.tree, &tree) // 0 when it is gone: then it is another
	if last := x.m.mounts; last.text != string(b) || last.run != run.Dev || last.tree != tree.Dev {
		x.m.mounts = x.readMounts(string(b), run.Dev, tree.Dev)
	}
	x.got = append(x.got, x.m.mounts.facts...)
	return nil
}

func (x *inspection) readMounts(mountinfo string, run, tree uint64) mountsMemory {
	all := mountsMemory{text: mountinfo, run: run, tree: tree}
	for line := range strings.Lines(mountinfo) {
		m, ok := parseMount(line)
		if !ok {
			continue
		}
		is := x.describe(m, run, tree)
		all.facts = append(all.facts, drift.Fact{Kind: drift.Mount, Field: m.at, Value: is})
		switch {
		case strings.HasPrefix(is, theRoot), strings.HasPrefix(is, aVolume):
			all.programs = append(all.programs, m.number)
		case m.kind == "tmpfs" && slices.Contains(x.e.scratches, m.at):
			all.scratches = append(all.scratches, m.device)
		}
	}
	return all
}

// How the facts of mounts begin that programs may lie on.
const (
	theRoot = "the root of the release "
	aVolume = "volume "
)

func (x *inspection) describe(m mountLine, run, tree uint64) string {
	masked := x.e.masked
	if v, ok := x.e.volumes[m.at]; ok && x.isVolume(m.at, v) { // first: it may lie on a file system of any kind
		return aVolume + string(v.Name) + " " + m.guard()
	}
	switch {
	case m.at == "/" && m.root == "/":
		if m.device != tree {
			return "another root " + m.guard()
		}
		return theRoot + m.guard()
	case m.kind == "devtmpfs" && m.root == "/null" && masked[m.at], m.kind == "tmpfs" && masked[m.at] && m.guard() != "writable":
		return "masked"
	case m.kind == "devtmpfs" && m.at == "/dev"+m.root:
		return "the device"
	case m.device == run:
		return "file " + m.root + " " + m.guard()
	case m.kind == "proc":
		return "proc " + m.root + " " + m.guard()
	case m.kind == "tmpfs", m.kind == "devpts":
		return m.kind + " " + m.guard()
	}
	return fmt.Sprintf("%s of device %d:%d %s %s", m.kind, unix.Major(m.device), unix.Minor(m.device), m.root, m.guard())
}

// isVolume reports whether what is mounted there is the directory of the volume, in the version that the instance is to have.
func (x *inspection) isVolume(at string, v runtime.Volume) bool {
	var inside, outside unix.Stat_t
	return unix.Stat(filepath.Join(x.proc("root"), at), &inside) == nil && unix.Stat(x.h.volumeDir(v), &outside) == nil &&
		inside.Dev == outside.Dev && inside.Ino == outside.Ino
}

// givenFiles are the files that a host puts into an instance, in order.
func givenFiles(s runtime.Spec) []runtime.File {
	return append([]runtime.File{
		{Path: "/etc/hosts", Content: hostsFile(s), Mode: 0o444, User: "0:0"},
		{Path: "/etc/resolv.conf", Mode: 0o444, User: "0:0"},
	}, s.Files...)
}
