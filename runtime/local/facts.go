package local

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/kernel"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/local/wire"
)

// An inspection takes what an instance should be from the question alone (expectation), and what it is from the kernel (/proc, cgroups,
// statx) and from the files that the launcher works from. The two are told in the same words.
//
// What the first process makes of its arguments and variables once it runs is its own: a shell script that starts the server in its
// place does, and so does a server that gives itself a title. So these two are compared as the launcher was told them.
type inspection struct {
	h     *Host
	q     runtime.Question
	m     *memory
	e     *expectation
	pid   string
	root  string // where the root is mounted
	want  []drift.Fact
	got   []drift.Fact
	boxed bool // in a sandbox: its processes are not the kernel's to tell of
	buf   []byte
}

// Inspect implements runtime.Host.
func (h *Host) Inspect(_ context.Context, q runtime.Question) (runtime.Inspection, error) {
	id := q.Spec.Identity.ID
	h.mu.Lock()
	i, ok := h.instances[id]
	var seen instance.Observation
	var of incarnation
	if ok {
		seen, of = i.seen, incarnation{i.attempt, i.told, i.seen.PID}
	}
	h.mu.Unlock()
	switch {
	case !ok || seen.State == instance.Absent:
		return runtime.Inspection{}, fault.Errorf(fault.NotFound, "inspecting instance %s: it is not on this host", id)
	case seen.State != instance.Running:
		return runtime.Inspection{}, fault.Errorf(fault.Conflict, "inspecting instance %s: it does not run", id)
	}
	x := &inspection{
		h: h, q: q, m: &i.memory, pid: strconv.Itoa(seen.PID), root: filepath.Join(h.roots.mounts, q.Spec.Root.Hex()), boxed: q.Spec.Isolation != "",
		buf: make([]byte, 16<<10),
	}
	if err := x.look(of); err != nil {
		return runtime.Inspection{}, unavailable(fmt.Errorf("inspecting instance %s: %w", id, err))
	}
	return runtime.Inspection{Want: drift.Of(x.want...), Got: drift.Of(x.got...)}, nil
}

func (x *inspection) find(k drift.Kind, field, value string) {
	x.got = append(x.got, drift.Fact{Kind: k, Field: field, Value: value})
}

// both notes what should be and what is, of the root, whose seal tells the one.
func (x *inspection) both(k drift.Kind, field, want, got string) {
	x.want = append(x.want, drift.Fact{Kind: k, Field: field, Value: want})
	x.find(k, field, got)
}

// yes says what should be so, or else otherwise.
func yes(so, otherwise string, ok bool) string {
	if ok {
		return so
	}
	return otherwise
}

func (x *inspection) look(of incarnation) error {
	if mounted := x.lookAtRoot(); !mounted {
		return nil // what the root says of users can't be believed
	}
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	x.m.begin(of, x.q, time.Now())
	if x.m.expected == nil {
		var err error
		if x.m.expected, err = x.h.expect(x.q, x.root); err != nil {
			return err
		}
	}
	x.e = x.m.expected
	x.lookAtRecord()
	x.lookAtFiles()
	if alive := x.lookAtProcess(); !alive {
		return nil
	}
	x.want = append(x.want, x.e.running...)
	for _, look := range []func() error{x.lookAtLimits, x.lookAtStatus, x.lookAtNamespaces, x.lookAtMounts, x.lookAtProcesses, x.lookAtScratches, x.lookAtSockets} {
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
	x.both(drift.Root, "mount", "as mounted by this server", yes("as mounted by this server", t.mount, t.mount == ""))
	x.both(drift.Root, "file", t.seal.File.String(), cmp.Or(t.file, t.seal.File.String()))
	if t.seal.Immutable {
		x.both(drift.Root, "attribute", "immutable", yes("immutable", "not immutable", !t.mutable))
	}
	if t.seal.Verity != "" {
		x.both(drift.Root, "fs-verity", t.seal.Verity, t.verity)
	}
	if got, ok := x.content(t); ok {
		x.both(drift.Root, "content", string(d), string(got))
	}
	return t.mount == ""
}

// content reads the root's file, if it is to be read. Else it tells what was found when it was read last, if that was after it was mounted.
func (x *inspection) content(t touch) (digest.Digest, bool) {
	r, d := x.h.roots, x.q.Spec.Root
	read := r.reread
	switch {
	case x.q.Content:
		read = r.hash
	case t.file == "":
		return r.lastRead(d, t.seal.File)
	}
	got, err := read(d)
	if err != nil {
		got = digest.Digest("not readable: " + err.Error())
	}
	return got, true
}

// lookAtRecord reads what the launcher was told.
func (x *inspection) lookAtRecord() {
	at := filepath.Join(x.h.dir(x.q.Spec.Identity.ID), "oci", "config.json")
	x.want, x.got = append(x.want, x.e.told...), append(x.got, x.m.file(at, false, x.buf, x.tellRecord)...)
}

func (x *inspection) tellRecord(_ unix.Stat_t, content []byte, err error) []drift.Fact {
	var told specs.Spec
	if err == nil {
		err = json.Unmarshal(content, &told)
	}
	if err != nil || told.Process == nil || told.Root == nil {
		return []drift.Fact{{Kind: drift.Process, Field: "record", Value: "none that can be read"}}
	}
	facts := recordFacts(told.Process, told.Root.Path)
	if said := x.m.of.told; said != "" && said != wire.Told(content) { // "": the record of an earlier version
		facts[0].Value = "not what the launcher says that it was told"
	}
	return facts
}

// recordFacts tells a record that can be read.
func recordFacts(p *specs.Process, root string) []drift.Fact {
	facts := []drift.Fact{
		{Kind: drift.Process, Field: "record", Value: "the launcher's"},
		{Kind: drift.Process, Field: "arguments", Value: quoted(p.Args)},
		{Kind: drift.Process, Field: "working directory", Value: p.Cwd},
		{Kind: drift.User, Field: "asked for", Value: fmt.Sprint(p.User.UID, ":", p.User.GID, p.User.AdditionalGids)},
		{Kind: drift.Capability, Field: "asked for", Value: capabilitiesOf(p.Capabilities)},
		{Kind: drift.Confine, Field: "no_new_privs asked for", Value: yes("yes", "no", p.NoNewPrivileges)},
		{Kind: drift.Root, Field: "directory", Value: root},
	}
	for _, kv := range p.Env {
		key, value, _ := strings.Cut(kv, "=")
		facts = append(facts, drift.Fact{Kind: drift.Variable, Field: key, Value: strconv.Quote(value)})
	}
	return facts
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

// lookAtFiles reads the files that the instance was given. Of those that hold secrets only the owner and mode are told.
func (x *inspection) lookAtFiles() {
	x.want = append(x.want, x.e.files...)
	for n, f := range x.e.given {
		at := filepath.Join(x.h.dir(x.q.Spec.Identity.ID), "files", strconv.Itoa(n))
		x.got = append(x.got, x.m.file(at, f.Secret != "", x.buf, func(st unix.Stat_t, content []byte, err error) []drift.Fact {
			return []drift.Fact{{Kind: drift.File, Field: f.Path, Value: tellFile(f, st, content, err)}}
		})...)
	}
}

func sum(f runtime.File, content []byte) string {
	if f.Secret != "" {
		return "a secret"
	}
	return string(digest.Of(content))
}

func tellFile(f runtime.File, st unix.Stat_t, content []byte, err error) string {
	switch {
	case err != nil:
		return err.Error()
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return "no regular file"
	}
	return fmt.Sprintf("%s, mode %o, owner %d:%d", sum(f, content), st.Mode&0o777, st.Uid, st.Gid)
}

// firstProcess is what should be said of it.
const firstProcess = "running, child of the launcher's container"

// lookAtProcess makes sure that the first process is there, and is the one that was started.
func (x *inspection) lookAtProcess() bool {
	x.want = append(x.want, drift.Fact{Kind: drift.Process, Field: "first", Value: firstProcess})
	groups, err := kernel.Read(x.proc("cgroup"), x.buf)
	if err != nil || !bytes.Contains(groups, []byte(x.group())) {
		x.find(drift.Process, "first", fmt.Sprintf("process %s is gone, or out of the instance's cgroup", x.pid))
		return false
	}
	x.find(drift.Process, "first", firstProcess)
	return true
}

func (x *inspection) proc(name string) string { return "/proc/" + x.pid + "/" + name }
func (x *inspection) group() string           { return x.h.group(x.q.Spec.Identity.ID) }

// lookAtLimits reads the cgroup's limits.
func (x *inspection) lookAtLimits() error {
	if !x.h.features.Limits.OK {
		return nil
	}
	x.find(drift.Limit, "processes", x.limit("pids", "pids.max", "pids.max"))
	x.find(drift.Limit, "memory bytes", x.limit("memory", "memory.limit_in_bytes", "memory.max"))
	if x.q.Spec.MemoryBytes > 0 && x.h.features.Swap.OK {
		x.find(drift.Limit, "memory and swap bytes", x.limit("memory", "memory.memsw.limit_in_bytes", "memory.swap.max"))
	}
	x.find(drift.Limit, "cpu thousandths", x.cpu())
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
	b, err := kernel.Read(path, x.buf)
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
	status, err := kernel.Status(x.pid, x.buf, statusFields...)
	if err != nil {
		return fault.As(fault.Conflict, err)
	}
	groups := strings.Fields(status["Groups"])
	slices.Sort(groups)
	x.find(drift.User, "uids", status["Uid"])
	x.find(drift.User, "gids", status["Gid"])
	x.find(drift.User, "groups", "["+strings.Join(groups, " ")+"]")
	for _, set := range capabilitySets {
		x.find(drift.Capability, set, status[set])
	}
	x.find(drift.Confine, "no_new_privs", status["NoNewPrivs"])
	if x.h.features.Seccomp.OK {
		x.find(drift.Confine, "seccomp mode", status["Seccomp"])
	}
	x.find(drift.Process, "traced by", status["TracerPid"])
	return nil
}

// capabilitySets are all that a process has, as /proc/PID/status names them.
var capabilitySets = []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}

// statusFields are the lines of /proc/PID/status that a look reads.
var statusFields = append([]string{"Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "TracerPid"}, capabilitySets...)

// namespaceKinds are those that are an instance's own, but for the network, which is made before it.
func (h *Host) namespaceKinds() []string {
	kinds := []string{"cgroup", "ipc", "mnt", "pid", "uts"}
	if h.features.userNamespaces() {
		kinds = append(kinds, "user")
	}
	return kinds
}

// lookAtNamespaces makes sure that the process is in namespaces of its own, and in the network that was made for it.
func (x *inspection) lookAtNamespaces() error {
	if x.boxed {
		return nil
	}
	for _, kind := range x.h.namespaceKinds() {
		link, err := os.Readlink(x.proc("ns/" + kind))
		if err != nil {
			return fault.As(fault.Conflict, err)
		}
		x.find(drift.Namespace, kind, yes("of its own", "the machine's", link != x.e.machine[kind]))
		if kind != "user" {
			continue
		}
		if err := x.lookAtOwners(link); err != nil {
			return err
		}
	}
	var has, made unix.Stat_t
	if err := unix.Stat(x.proc("ns/net"), &has); err != nil {
		return fault.As(fault.Conflict, err)
	}
	err := unix.Stat(x.h.nets.path(string(x.q.Spec.Identity.ID)), &made)
	x.find(drift.Namespace, "net", yes("the one that was made for it", "another", err == nil && has.Dev == made.Dev && has.Ino == made.Ino))
	b, err := kernel.Read(x.proc("net/dev"), x.buf)
	if err != nil {
		return fault.As(fault.Conflict, err)
	}
	x.find(drift.Namespace, "interfaces", interfaces(b))
	return nil
}

// fallbacks are the interfaces that the kernel puts, down, into every network when the module of such tunnels is loaded.
var fallbacks = []string{"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}

// interfaces reads the names in a /proc/PID/net/dev, whose first two lines are a heading.
func interfaces(dev []byte) string {
	var names []string
	for line := range bytes.Lines(dev) {
		name, _, ok := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
		if ok && !slices.Contains(fallbacks, string(name)) {
			names = append(names, string(name))
		}
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

// lookAtOwners reads the maps of users and groups of a user namespace. The kernel lets each be written once, so it does not change.
func (x *inspection) lookAtOwners(namespace string) error {
	if x.m.owners.namespace != namespace {
		var facts []drift.Fact
		for _, file := range []string{"uid_map", "gid_map"} {
			b, err := kernel.Read(x.proc(file), x.buf)
			if err != nil {
				return fault.As(fault.Conflict, err)
			}
			facts = append(facts, drift.Fact{Kind: drift.Namespace, Field: file, Value: strings.Join(strings.Fields(string(b)), " ")})
		}
		x.m.owners = ownersMemory{namespace, facts}
	}
	x.got = append(x.got, x.m.owners.facts...)
	return nil
}

// byGateway is what should be said of a listener that the gateway has in an instance.
const byGateway = "listening, by the gateway"

// lookAtSockets finds sockets that wait where nothing should, and misses those of the gateway. What is declared need not wait: its health
// check says that.
func (x *inspection) lookAtSockets() error {
	list, err := x.sockets()
	if err != nil {
		return err
	}
	ours := map[string]bool{}
	for _, at := range x.q.Listeners {
		ours["tcp "+at] = true
		if x.q.Opened {
			x.want = append(x.want, drift.Fact{Kind: drift.Port, Field: "tcp " + at, Value: byGateway})
		}
	}
	found := map[string]string{}
	for _, w := range list {
		at := w.String()
		switch {
		case ours[at]:
			if by := x.holder(w); x.q.Opened || by != byGateway {
				found[at] = by
			}
		case x.q.Spec.DynamicPorts, slices.Contains(x.q.Spec.Ports, int(w.At.Port())), w.Network == "udp" && ephemeral(w.At.Port()):
		default:
			found[at] = "listening"
		}
	}
	for at, by := range found {
		x.find(drift.Port, at, by)
	}
	return nil
}

// holder tells who listens where the gateway should. Whether the gateway has the socket is asked once for each: it does not give one away.
func (x *inspection) holder(w kernel.Waiting) string {
	if x.m.gateways[w.Cookie] && w.Cookie != 0 {
		return byGateway
	}
	if w.UID != uint32(os.Getuid()) {
		return fmt.Sprintf("listening, by user %d", w.UID)
	}
	pids := x.h.companions()
	if len(pids) == 0 {
		return byGateway // nobody says who the gateway is
	}
	for _, pid := range pids {
		if kernel.HoldsSocket(pid, w.Inode) {
			x.m.gateways[w.Cookie] = true
			return byGateway
		}
	}
	return "listening, by another process than the gateway"
}

// ephemeral are the ports that Linux gives to sockets that ask for none, as it is in every new network (ip(7)). A UDP socket there may be
// that of a client that does not connect it, as musl's resolver does.
func ephemeral(port uint16) bool { return port >= 32768 && port <= 60999 }

func (x *inspection) sockets() ([]kernel.Waiting, error) {
	d, err := x.m.network(x.pid)
	if err != nil {
		return nil, fault.As(fault.Conflict, err)
	}
	list, err := d.Waiting()
	if errors.Is(err, unix.ENOENT) { // no sock_diag in this kernel
		return kernel.WaitingIn(x.pid), nil
	}
	return list, err
}
