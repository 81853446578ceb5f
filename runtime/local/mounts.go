package local

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime"
)

// mountLine is a line of mountinfo (proc_pid_mountinfo(5)).
type mountLine struct {
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
	if _, err := fmt.Sscanf(f[2], "%d:%d", &major, &minor); err != nil {
		return mountLine{}, false
	}
	return mountLine{
		device: unix.Mkdev(major, minor), root: unescapeMount(f[3]), at: unescapeMount(f[4]), options: strings.Split(f[5], ","),
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

// lookAtMounts compares what is mounted in the instance with what should be: each by place, kind, source and the flags that guard it.
func (x *inspection) lookAtMounts() error {
	if x.boxed {
		return nil
	}
	b, err := os.ReadFile(x.proc("mountinfo"))
	if err != nil {
		return fault.As(fault.Conflict, err)
	}
	if err := x.expectMounts(); err != nil {
		return err
	}
	var own, tree unix.Stat_t
	if err := unix.Stat(x.h.run, &own); err != nil {
		return err
	}
	unix.Stat(x.tree, &tree) // 0 when it is gone: then it is another
	masked := map[string]bool{}
	for _, p := range x.masked() {
		masked[p] = true
	}
	for line := range strings.Lines(string(b)) {
		m, ok := parseMount(line)
		if !ok {
			continue
		}
		x.find(drift.Mount, m.at, x.describe(m, own.Dev, tree.Dev, masked))
	}
	return nil
}

func (x *inspection) describe(m mountLine, own, tree uint64, masked map[string]bool) string {
	switch {
	case m.at == "/" && m.root == "/":
		which := "the root of the release"
		if m.device != tree {
			which = "another root"
		}
		return which + " " + m.guard()
	case m.kind == "devtmpfs" && m.root == "/null" && masked[m.at], m.kind == "tmpfs" && masked[m.at] && m.guard() != "writable":
		return "masked"
	case m.kind == "devtmpfs" && m.at == "/dev"+m.root:
		return "the device"
	case m.device == own:
		return "file " + m.root + " " + m.guard()
	case m.kind == "proc":
		return "proc " + m.root + " " + m.guard()
	case m.kind == "tmpfs", m.kind == "devpts":
		return m.kind + " " + m.guard()
	}
	if v, ok := x.volumeAt(m.at); ok {
		var inside, outside unix.Stat_t
		if unix.Stat(filepath.Join(x.proc("root"), m.at), &inside) == nil && unix.Stat(x.h.volumeDir(v), &outside) == nil &&
			inside.Dev == outside.Dev && inside.Ino == outside.Ino {
			return "volume " + string(v.Name) + " " + m.guard()
		}
	}
	return fmt.Sprintf("%s of device %d:%d %s %s", m.kind, unix.Major(m.device), unix.Minor(m.device), m.root, m.guard())
}

func (x *inspection) volumeAt(at string) (runtime.Volume, bool) {
	for _, v := range x.q.Spec.Volumes {
		if x.place(v.Path) == at {
			return v, true
		}
	}
	return runtime.Volume{}, false
}

// place is where something that the spec puts at a path is mounted: links are followed.
func (x *inspection) place(p string) string {
	real, _, err := locate(x.tree, p)
	if err != nil {
		return p
	}
	return real
}

// expectMounts notes what should be mounted.
func (x *inspection) expectMounts() error {
	s := x.q.Spec
	at := func(place, value string) { x.expect(drift.Mount, place, value) }
	root := "the root of the release ro"
	if x.h.features.userNamespaces() { // there, what the mount forbids stays forbidden
		root += ",nosuid,nodev"
	}
	at("/", root)
	at("/proc", "proc / nosuid,nodev,noexec")
	at("/dev", "tmpfs ro,nosuid,noexec")
	at("/dev/pts", "devpts nosuid,noexec")
	if x.h.features.userNamespaces() { // else they are made, not mounted
		for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
			at("/dev/"+d, "the device")
		}
	}
	for n, f := range givenFiles(s) {
		at(x.place(f.Path), fmt.Sprintf("file /instances/%s/files/%d ro,nosuid,nodev,noexec", s.Identity.ID, n))
	}
	for _, t := range s.Scratches {
		at(x.place(t.Path), "tmpfs nosuid,nodev,noexec")
	}
	for _, v := range s.Volumes {
		at(x.place(v.Path), "volume "+string(v.Name)+" nosuid,nodev")
	}
	l := x.h.ociLinux(s, "")
	for _, p := range l.ReadonlyPaths {
		if _, err := os.Stat(p); err == nil {
			at(p, "proc "+strings.TrimPrefix(p, "/proc")+" ro,nosuid,nodev,noexec")
		}
	}
	for _, p := range x.masked() {
		at(p, "masked")
	}
	return nil
}

// masked are the paths that this kernel has and an instance does not see.
func (x *inspection) masked() []string {
	var out []string
	for _, p := range x.h.ociLinux(x.q.Spec, "").MaskedPaths {
		if _, err := os.Stat(p); err == nil && strings.HasPrefix(p, "/proc/") { // there is no /sys
			out = append(out, p)
		}
	}
	return out
}

// givenFiles are the files that a host puts into an instance, in order.
func givenFiles(s runtime.Spec) []runtime.File {
	return append([]runtime.File{
		{Path: "/etc/hosts", Content: hostsFile(s), Mode: 0o444, User: "0:0"},
		{Path: "/etc/resolv.conf", Mode: 0o444, User: "0:0"},
	}, s.Files...)
}

// listener reads a line of /proc/net/tcp or tcp6: where something listens.
func listener(line string) (at string, port int, ok bool) {
	f := strings.Fields(line)
	if len(f) < 4 || f[3] != "0A" {
		return "", 0, false
	}
	address, number, found := strings.Cut(f[1], ":")
	raw, err := hex.DecodeString(address)
	n, err2 := strconv.ParseUint(number, 16, 16)
	if !found || err != nil || err2 != nil || len(raw)%4 != 0 {
		return "", 0, false
	}
	for word := range slices.Chunk(raw, 4) { // each in the machine's order, which is little-endian on all of ours
		slices.Reverse(word)
	}
	ip, valid := netip.AddrFromSlice(raw)
	if !valid {
		return "", 0, false
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(n)).String(), int(n), true
}
