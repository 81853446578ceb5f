package local

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
)

// An inspection takes what an instance should be from the question alone, and what it is from the kernel (/proc, cgroups, statx) and from
// the files that the launcher works from. The two are told in the same words, and the words here are the only place where they are.
//
// What the first process makes of its arguments and variables once it runs is its own: a shell script that starts the server in its
// place does, and so does a server that gives itself a title. So these two are compared as the launcher was told them.
type inspection struct {
	h     *Host
	q     runtime.Question
	pid   int
	root  string // where the root is mounted
	tree  string // and what the instance has as its root
	who   user
	want  []drift.Fact
	got   []drift.Fact
	boxed bool // in a sandbox: its processes are not the kernel's to tell of
}

// Inspect implements runtime.Host.
func (h *Host) Inspect(_ context.Context, q runtime.Question) (runtime.Inspection, error) {
	id := q.Spec.Identity.ID
	h.mu.Lock()
	i, ok := h.instances[id]
	var seen instance.Observation
	if ok {
		seen = i.seen
	}
	h.mu.Unlock()
	switch {
	case !ok || seen.State == instance.Absent:
		return runtime.Inspection{}, fault.Errorf(fault.NotFound, "inspecting instance %s: it is not on this host", id)
	case seen.State != instance.Running:
		return runtime.Inspection{}, fault.Errorf(fault.Conflict, "inspecting instance %s: it does not run", id)
	}
	x := &inspection{h: h, q: q, pid: seen.PID, boxed: q.Spec.Isolation != ""}
	if err := x.look(); err != nil {
		return runtime.Inspection{}, unavailable(fmt.Errorf("inspecting instance %s: %w", id, err))
	}
	return runtime.Inspection{Want: drift.Of(x.want...), Got: drift.Of(x.got...)}, nil
}

// expect and find note a fact. With one value for both, nothing differs.
func (x *inspection) expect(k drift.Kind, field, value string) {
	x.want = append(x.want, drift.Fact{Kind: k, Field: field, Value: value})
}

func (x *inspection) find(k drift.Kind, field, value string) {
	x.got = append(x.got, drift.Fact{Kind: k, Field: field, Value: value})
}

func (x *inspection) both(k drift.Kind, field, want, got string) {
	x.expect(k, field, want)
	x.find(k, field, got)
}

// yes notes something that should be so.
func (x *inspection) yes(k drift.Kind, field, so, otherwise string, ok bool) {
	if ok {
		otherwise = so
	}
	x.both(k, field, so, otherwise)
}

func (x *inspection) look() error {
	s := x.q.Spec
	x.root = filepath.Join(x.h.roots.mounts, s.Root.Hex())
	if mounted := x.lookAtRoot(); !mounted {
		return nil // what the root says of users can't be believed
	}
	var err error
	if x.who, err = lookupUser(x.root, s.User); err != nil {
		return err
	}
	if missing, err := lacking(x.root, points(s)); err != nil {
		return err
	} else if x.tree = x.root; len(missing) > 0 {
		x.tree = filepath.Join(x.h.trees.dir, keyOf(s.Root, points(s)), "root")
	}
	if err := x.lookAtRecord(); err != nil {
		return err
	}
	if err := x.lookAtFiles(); err != nil {
		return err
	}
	if alive := x.lookAtProcess(); !alive {
		return nil
	}
	for _, look := range []func() error{x.lookAtLimits, x.lookAtStatus, x.lookAtNamespaces, x.lookAtMounts, x.lookAtPorts} {
		if err := look(); err != nil {
			return err
		}
	}
	return nil
}

// lookAtRoot looks at the root's file and mount, and reads the file when it was touched since it was sealed.
func (x *inspection) lookAtRoot() (mounted bool) {
	r, d := x.h.roots, x.q.Spec.Root
	t := r.touched(d)
	x.yes(drift.Root, "mount", "as mounted by this server", t.mount, t.mount == "")
	x.both(drift.Root, "file", t.seal.File.String(), cmp.Or(t.file, t.seal.File.String()))
	if t.seal.Immutable {
		x.yes(drift.Root, "attribute", "immutable", "not immutable", !t.mutable)
	}
	mounted = t.mount == ""
	if !x.q.Content && t.file == "" {
		return mounted
	}
	read := r.reread
	if x.q.Content {
		read = r.hash
	}
	got, err := read(d)
	if err != nil {
		got = digest.Digest("not readable: " + err.Error())
	}
	x.both(drift.Root, "content", string(d), string(got))
	return mounted
}

// lookAtRecord compares what the launcher was told with what it should have been told.
func (x *inspection) lookAtRecord() error {
	b, err := os.ReadFile(filepath.Join(x.h.dir(x.q.Spec.Identity.ID), "oci", "config.json"))
	var told specs.Spec
	if err == nil {
		err = json.Unmarshal(b, &told)
	}
	if err != nil || told.Process == nil || told.Root == nil {
		x.both(drift.Process, "record", "the launcher's", "none that can be read")
		return nil
	}
	want := ociProcess(x.q.Spec, x.who)
	x.both(drift.Process, "arguments", quoted(want.Args), quoted(told.Process.Args))
	x.both(drift.Process, "working directory", want.Cwd, told.Process.Cwd)
	for _, kv := range want.Env {
		key, value, _ := strings.Cut(kv, "=")
		x.expect(drift.Variable, key, strconv.Quote(value))
	}
	for _, kv := range told.Process.Env {
		key, value, _ := strings.Cut(kv, "=")
		x.find(drift.Variable, key, strconv.Quote(value))
	}
	x.both(drift.User, "asked for", fmt.Sprint(want.User.UID, ":", want.User.GID, want.User.AdditionalGids), fmt.Sprint(told.Process.User.UID, ":", told.Process.User.GID, told.Process.User.AdditionalGids))
	x.both(drift.Capability, "asked for", capabilitiesOf(want.Capabilities), capabilitiesOf(told.Process.Capabilities))
	x.yes(drift.Confine, "no_new_privs asked for", "yes", "no", told.Process.NoNewPrivileges)
	x.both(drift.Root, "directory", x.tree, told.Root.Path)
	return nil
}

func capabilitiesOf(c *specs.LinuxCapabilities) string {
	if c == nil {
		return "none"
	}
	all := slices.Concat(c.Bounding, c.Effective, c.Inheritable, c.Permitted, c.Ambient)
	slices.Sort(all)
	if all = slices.Compact(all); len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ",")
}

func quoted(args []string) string {
	out := make([]string, len(args))
	for n, a := range args {
		out[n] = strconv.Quote(a)
	}
	return strings.Join(out, " ")
}

// lookAtFiles compares the files that the instance was given. Of those that hold secrets only the owner and mode are told.
func (x *inspection) lookAtFiles() error {
	s := x.q.Spec
	for n, f := range givenFiles(s) {
		owner := x.who
		if f.User != "" {
			var err error
			if owner, err = lookupUser(x.root, f.User); err != nil {
				return err
			}
		}
		mode := f.Mode & 0o777
		if mode == 0 {
			mode = 0o444
		}
		want := fmt.Sprintf("%s, mode %o, owner %d:%d", sum(f, f.Content), mode, x.h.features.hostID(owner.uid), x.h.features.hostID(owner.gid))
		at := filepath.Join(x.h.dir(s.Identity.ID), "files", strconv.Itoa(n))
		x.both(drift.File, f.Path, want, fileNow(at, f))
	}
	return nil
}

func sum(f runtime.File, content []byte) string {
	if f.Secret != "" {
		return "a secret"
	}
	return string(digest.Of(content))
}

func fileNow(at string, f runtime.File) string {
	var st unix.Stat_t
	if err := unix.Lstat(at, &st); err != nil {
		return err.Error()
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "no regular file"
	}
	var content []byte
	if f.Secret == "" {
		var err error
		if content, err = os.ReadFile(at); err != nil {
			return err.Error()
		}
	}
	return fmt.Sprintf("%s, mode %o, owner %d:%d", sum(f, content), st.Mode&0o777, st.Uid, st.Gid)
}

// lookAtProcess makes sure that the first process is there, and is the one that was started.
func (x *inspection) lookAtProcess() bool {
	x.expect(drift.Process, "first", "running, child of the launcher's container")
	groups, err := os.ReadFile(x.proc("cgroup"))
	if err != nil || !bytes.Contains(groups, []byte(x.group())) {
		x.find(drift.Process, "first", fmt.Sprintf("process %d is gone, or out of the instance's cgroup", x.pid))
		return false
	}
	x.find(drift.Process, "first", "running, child of the launcher's container")
	return true
}

func (x *inspection) proc(name string) string {
	return filepath.Join("/proc", strconv.Itoa(x.pid), name)
}
func (x *inspection) group() string {
	return x.h.cgroupParent() + "/" + string(x.q.Spec.Identity.ID)
}

// lookAtLimits reads the cgroup's limits.
func (x *inspection) lookAtLimits() error {
	if !x.h.features.Limits.OK {
		return nil
	}
	s := x.q.Spec
	page := int64(os.Getpagesize())
	limit := func(n int64) string {
		if n <= 0 {
			return "none"
		}
		return strconv.FormatInt(n, 10)
	}
	pids := s.PIDs
	if pids == 0 {
		pids = defaultPIDs
	}
	x.both(drift.Limit, "processes", limit(pids), x.limit("pids", "pids.max", "pids.max"))
	memory := s.MemoryBytes / page * page
	x.both(drift.Limit, "memory bytes", limit(memory), x.limit("memory", "memory.limit_in_bytes", "memory.max"))
	if s.MemoryBytes > 0 && x.h.features.Swap.OK {
		swap := x.limit("memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
		want := limit(memory)
		if x.h.features.CgroupVersion == 2 {
			want = "0"
		}
		x.both(drift.Limit, "memory and swap bytes", want, swap)
	}
	x.both(drift.Limit, "cpu thousandths", limit(s.CPUMillis), x.cpu())
	return nil
}

// limit reads a limit in the instance's group: "none" where there is none.
func (x *inspection) limit(controller, v1, v2 string) string {
	text, err := x.control(controller, v1, v2)
	switch n, numErr := strconv.ParseInt(text, 10, 64); {
	case err != nil:
		return err.Error()
	case text == "max" || numErr == nil && (n < 0 || n >= 1<<62):
		return "none"
	}
	return text
}

func (x *inspection) control(controller, v1, v2 string) (string, error) {
	path := filepath.Join("/sys/fs/cgroup", x.group(), v2)
	if x.h.features.CgroupVersion == 1 {
		path = filepath.Join("/sys/fs/cgroup", controller, x.group(), v1)
	}
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

func (x *inspection) cpu() string {
	var quota, period string
	if x.h.features.CgroupVersion == 1 {
		q, err := x.control("cpu", "cpu.cfs_quota_us", "")
		p, err2 := x.control("cpu", "cpu.cfs_period_us", "")
		if err != nil || err2 != nil {
			return "not readable"
		}
		quota, period = q, p
	} else {
		both, err := x.control("", "", "cpu.max")
		if err != nil {
			return err.Error()
		}
		quota, period, _ = strings.Cut(both, " ")
	}
	q, err := strconv.ParseInt(quota, 10, 64)
	p, err2 := strconv.ParseInt(period, 10, 64)
	if quota == "max" || err == nil && q < 0 {
		return "none"
	}
	if err != nil || err2 != nil || p <= 0 {
		return quota + " of " + period
	}
	return strconv.FormatInt(q*1000/p, 10)
}

// lookAtStatus reads what the kernel says of the first process's rights.
func (x *inspection) lookAtStatus() error {
	if x.boxed {
		return nil
	}
	b, err := os.ReadFile(x.proc("status"))
	if err != nil {
		return fault.As(fault.Conflict, err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.Join(strings.Fields(value), " ")
	}
	f := x.h.features
	four := func(id int) string { return strings.TrimSpace(strings.Repeat(strconv.Itoa(f.hostID(id))+" ", 4)) }
	groups := make([]string, len(x.who.groups))
	for n, g := range x.who.groups {
		groups[n] = strconv.Itoa(f.hostID(g))
	}
	now := strings.Fields(status["Groups"])
	slices.Sort(groups)
	slices.Sort(now)
	x.both(drift.User, "uids", four(x.who.uid), status["Uid"])
	x.both(drift.User, "gids", four(x.who.gid), status["Gid"])
	x.both(drift.User, "groups", "["+strings.Join(groups, " ")+"]", "["+strings.Join(now, " ")+"]")
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		x.both(drift.Capability, set, "0000000000000000", status[set])
	}
	x.both(drift.Confine, "no_new_privs", "1", status["NoNewPrivs"])
	if f.Seccomp.OK {
		x.both(drift.Confine, "seccomp mode", "2", status["Seccomp"])
	}
	x.both(drift.Process, "traced by", "0", status["TracerPid"])
	return nil
}

// lookAtNamespaces makes sure that the process is in namespaces of its own, and in the network that was made for it.
func (x *inspection) lookAtNamespaces() error {
	if x.boxed {
		return nil
	}
	for _, kind := range []string{"cgroup", "ipc", "mnt", "pid", "user", "uts"} {
		if kind == "user" && !x.h.features.userNamespaces() {
			continue
		}
		link, err := os.Readlink(x.proc("ns/" + kind))
		if err != nil {
			return fault.As(fault.Conflict, err)
		}
		ours, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			return err
		}
		x.yes(drift.Namespace, kind, "of its own", "the machine's", link != ours)
	}
	var has, made unix.Stat_t
	if err := unix.Stat(x.proc("ns/net"), &has); err != nil {
		return fault.As(fault.Conflict, err)
	}
	err := unix.Stat(x.h.nets.path(string(x.q.Spec.Identity.ID)), &made)
	x.yes(drift.Namespace, "net", "the one that was made for it", "another", err == nil && has.Dev == made.Dev && has.Ino == made.Ino)
	if x.h.features.userNamespaces() {
		want := fmt.Sprintf("0 %d %d", UIDBase, UIDSize)
		for _, file := range []string{"uid_map", "gid_map"} {
			b, err := os.ReadFile(x.proc(file))
			if err != nil {
				return fault.As(fault.Conflict, err)
			}
			x.both(drift.Namespace, file, want, strings.Join(strings.Fields(string(b)), " "))
		}
	}
	return nil
}

// lookAtPorts finds listeners where nothing should listen. What is declared need not listen: its health check says that.
func (x *inspection) lookAtPorts() error {
	allowed := map[string]bool{}
	for _, l := range x.q.Listeners {
		allowed[l] = true
	}
	found := map[string]bool{}
	for _, file := range []string{"net/tcp", "net/tcp6"} {
		b, err := os.ReadFile(x.proc(file))
		if err != nil {
			continue // no IPv6, or the process ends
		}
		for line := range strings.Lines(string(b)) {
			if at, port, ok := listener(line); ok && !slices.Contains(x.q.Spec.Ports, port) && !allowed[at] {
				found[at] = true
			}
		}
	}
	for _, at := range slices.Sorted(maps.Keys(found)) {
		x.find(drift.Port, "tcp "+at, "listening")
	}
	return nil
}
