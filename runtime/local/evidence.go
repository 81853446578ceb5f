package local

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/kernel"
	"github.com/invarhq/invar/runtime"
)

// Bounds of evidence: a few megabytes at most, taken in a second or two.
const (
	maxListed    = 256
	maxPerList   = 256     // files that a process has open, and that it has mapped
	maxArgBytes  = 4 << 10 // of one process
	maxSockets   = 1024
	maxMounts    = 512
	maxScratched = 1024     // files of all scratches
	maxHashed    = 64 << 20 // bytes of them that are read
	maxLogLines  = 200
	maxLogBytes  = 64 << 10
	maxText      = 4 << 10 // of one path or line
)

// taker takes evidence of one instance.
type taker struct {
	h     *Host
	q     runtime.Question
	first string // PID
	e     runtime.Evidence
}

// Evidence implements runtime.Host.
func (h *Host) Evidence(ctx context.Context, q runtime.Question) (runtime.Evidence, error) {
	id := q.Spec.Identity.ID
	looked, err := h.Inspect(ctx, q)
	if err != nil {
		return runtime.Evidence{}, err
	}
	i, err := h.running(id)
	if err != nil {
		return runtime.Evidence{}, fmt.Errorf("taking evidence of instance %s: %w", id, err)
	}
	h.mu.Lock()
	seen := i.seen
	h.mu.Unlock()
	still, _ := h.freezer(id).still()
	t := &taker{h: h, q: q, first: strconv.Itoa(seen.PID), e: runtime.Evidence{
		V: 1, Instance: q.Spec.Identity, Frozen: still, Want: looked.Want, Got: looked.Got, Findings: drift.Compare(looked.Want, looked.Got),
		Processes: []runtime.Process{}, Foreign: seen.Foreign, Cgroup: map[string]string{},
	}}
	t.processes()
	t.sockets()
	t.mounts()
	t.cgroup()
	t.scratches()
	t.files()
	t.log(ctx)
	t.e.At = time.Now().UTC().Truncate(time.Millisecond)
	return t.e, nil
}

// cut notes that a list has more than is kept, and bounds it.
func cut[T any](t *taker, what string, list []T, most int) []T {
	if len(list) <= most {
		return list
	}
	if !slices.Contains(t.e.Truncated, what) {
		t.e.Truncated = append(t.e.Truncated, what)
	}
	return list[:most]
}

// text makes what the kernel told valid, and not too long.
func text(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxText)], "?") }

func (t *taker) lack(what string, err error) {
	t.e.Missing = append(t.e.Missing, text(what+": "+err.Error()))
}

// processes takes those in the instance's cgroup, or in a namespace that is the instance's own.
func (t *taker) processes() {
	group := []byte(t.h.group(t.q.Spec.Identity.ID))
	own := map[string]string{}
	for _, kind := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		pid, _ := strconv.Atoi(t.first)
		if here := nsKey(pid, "", kind); here != "" && here != nsKey(os.Getpid(), "", kind) {
			own[kind] = here
		}
	}
	var found []runtime.Process
	all, boot := kernel.Processes(make([]byte, 4<<10)), kernel.BootTime()
	for _, pid := range slices.Sorted(maps.Keys(all)) {
		groups, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
		inside := slices.ContainsFunc(bytes.Split(groups, []byte("\n")), func(line []byte) bool {
			return bytes.HasSuffix(line, group) || bytes.Contains(line, append(slices.Clone(group), '/'))
		})
		for kind, here := range own {
			inside = inside || nsKey(pid, "", kind) == here
		}
		if inside && !all[pid].Kernel {
			found = append(found, runtime.Process{PID: pid, Parent: all[pid].Parent, Threads: all[pid].Threads, InCgroup: bytes.Contains(groups, group),
				StartedAt: all[pid].StartedAt(boot)})
		}
	}
	for _, p := range cut(t, "processes", found, maxListed) {
		t.describe(&p)
		t.e.Processes = append(t.e.Processes, p)
	}
}

// describe tells of a process what /proc does.
func (t *taker) describe(p *runtime.Process) {
	dir := "/proc/" + strconv.Itoa(p.PID)
	link := func(name string) string {
		target, _ := os.Readlink(dir + "/" + name)
		return text(target)
	}
	p.Program, p.WorkDir = link("exe"), link("cwd")
	if b, err := os.ReadFile(dir + "/cmdline"); err == nil && len(b) > 0 {
		b = cut(t, "arguments", b, maxArgBytes)
		for arg := range strings.SplitSeq(strings.TrimSuffix(string(b), "\x00"), "\x00") {
			p.Args = append(p.Args, text(arg))
		}
	}
	if status, err := kernel.Status(strconv.Itoa(p.PID), make([]byte, 4<<10), "Uid", "Gid"); err == nil {
		p.User, p.Group = status["Uid"], status["Gid"]
	}
	p.Namespaces = map[string]string{}
	for _, kind := range nsKinds {
		if here := nsKey(p.PID, "", kind); here != "" {
			p.Namespaces[kind] = here
		}
	}
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		t.lack(fmt.Sprintf("open files of process %d", p.PID), err)
	}
	for _, fd := range cut(t, "open files", fds, maxPerList) {
		p.Open = append(p.Open, fd.Name()+" "+link("fd/"+fd.Name()))
	}
	b, err := os.ReadFile(dir + "/maps")
	if err != nil {
		t.lack(fmt.Sprintf("mapped files of process %d", p.PID), err)
	}
	files := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if at := strings.IndexByte(line, '/'); at >= 0 {
			files[text(strings.TrimSpace(line[at:]))] = true
		}
	}
	p.Mapped = cut(t, "mapped files", slices.Sorted(maps.Keys(files)), maxPerList)
}

// states are the names of socket states in /proc/net, by their number.
var states = map[string]string{"01": "established", "02": "syn sent", "03": "syn received", "04": "fin wait 1", "05": "fin wait 2", "06": "time wait",
	"07": "unconnected", "08": "close wait", "09": "last ack", "0A": "listening", "0B": "closing"}

func (t *taker) sockets() {
	var list []runtime.Socket
	for _, network := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := os.ReadFile("/proc/" + t.first + "/net/" + network)
		if err != nil {
			continue // no IPv6
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 10 || !strings.HasSuffix(f[0], ":") {
				continue
			}
			uid, _ := strconv.Atoi(f[7])
			inode, _ := strconv.ParseUint(f[9], 10, 64)
			s := runtime.Socket{Network: network, State: cmp.Or(states[f[3]], f[3]), Local: endpoint(f[1]), Remote: endpoint(f[2]), UID: uid, Inode: inode}
			if strings.HasSuffix(s.Remote, ":0") {
				s.Remote = ""
			}
			list = append(list, s)
		}
	}
	t.e.Sockets = cut(t, "sockets", list, maxSockets)
}

// endpoint tells an address of /proc/net as people do.
func endpoint(s string) string {
	if at, ok := kernel.ParseEndpoint(s); ok {
		return at.String()
	}
	return s
}

func (t *taker) mounts() {
	b, err := os.ReadFile("/proc/" + t.first + "/mountinfo")
	if err != nil {
		t.lack("mounts", err)
		return
	}
	var list []string
	for line := range strings.Lines(string(b)) {
		list = append(list, text(strings.TrimSpace(line)))
	}
	t.e.Mounts = cut(t, "mounts", list, maxMounts)
}

func (t *taker) cgroup() {
	group := t.h.group(t.q.Spec.Identity.ID)
	names := []string{"pids/pids.max", "pids/pids.current", "memory/memory.limit_in_bytes", "memory/memory.memsw.limit_in_bytes", "memory/memory.usage_in_bytes",
		"memory/memory.max_usage_in_bytes", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us", "cpuacct/cpuacct.usage", "freezer/freezer.state"}
	at := func(name string) string {
		controller, file, _ := strings.Cut(name, "/")
		return filepath.Join("/sys/fs/cgroup", controller, group, file)
	}
	if t.h.features.CgroupVersion == 2 {
		names = []string{"pids.max", "pids.current", "memory.max", "memory.swap.max", "memory.current", "memory.peak", "cpu.max", "cpu.stat", "cgroup.freeze", "cgroup.events"}
		at = func(name string) string { return filepath.Join("/sys/fs/cgroup", group, name) }
	}
	for _, name := range names {
		if b, err := os.ReadFile(at(name)); err == nil {
			t.e.Cgroup[name] = text(strings.TrimSpace(string(b)))
		}
	}
}

// scratches takes what lies in the scratches. They are reached through the instance's root, and no link in it leads out of that.
func (t *taker) scratches() {
	if len(t.q.Spec.Scratches) == 0 {
		return
	}
	if t.q.Spec.Isolation != "" {
		t.e.Missing = append(t.e.Missing, "scratches: a sandbox keeps them to itself")
		return
	}
	root, err := os.OpenRoot("/proc/" + t.first + "/root")
	if err != nil {
		t.lack("scratches", err)
		return
	}
	defer root.Close()
	w := &walker{root: root, left: maxHashed}
	for _, s := range t.q.Spec.Scratches {
		if err := fs.WalkDir(root.FS(), strings.TrimPrefix(s.Path, "/"), w.visit); err != nil {
			t.lack("scratch "+s.Path, err)
		}
	}
	t.e.Scratches = cut(t, "scratches", w.found, maxScratched)
	if w.unread {
		t.e.Truncated = append(t.e.Truncated, "digests of scratches")
	}
}

// walker lists files.
type walker struct {
	root   *os.Root
	found  []runtime.FileFact
	left   int64 // bytes that may still be read
	unread bool
}

func (w *walker) visit(path string, d fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if len(w.found) > maxScratched {
		return fs.SkipAll
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	f := fileFact("/"+path, info)
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		f.Target, _ = w.root.Readlink(path)
		f.Target = text(f.Target)
	case info.Mode().IsRegular() && info.Size() > w.left:
		w.unread = true
	case info.Mode().IsRegular():
		f.SHA256 = w.hash(path)
	}
	w.found = append(w.found, f)
	return nil
}

// hash reads a file that is no pipe, whatever it becomes meanwhile.
func (w *walker) hash(path string) digest.Digest {
	f, err := w.root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	got, n, err := digest.OfReader(io.LimitReader(f, w.left))
	w.left -= n
	if err != nil {
		return ""
	}
	return got
}

func fileFact(path string, info fs.FileInfo) runtime.FileFact {
	f := runtime.FileFact{Path: text(path), Mode: info.Mode().String(), Size: info.Size()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		f.User, f.Group = int(st.Uid), int(st.Gid)
	}
	return f
}

// files takes what was put into the instance: of secrets neither content nor digest.
func (t *taker) files() {
	for n, f := range givenFiles(t.q.Spec) {
		at := filepath.Join(t.h.dir(t.q.Spec.Identity.ID), "files", strconv.Itoa(n))
		info, err := os.Lstat(at)
		if err != nil {
			t.lack("file "+f.Path, err)
			continue
		}
		fact := fileFact(f.Path, info)
		fact.Secret = f.Secret != ""
		if !fact.Secret && info.Mode().IsRegular() {
			if b, err := os.ReadFile(at); err == nil {
				fact.SHA256 = digest.Of(b)
			}
		}
		t.e.Files = append(t.e.Files, fact)
	}
}

func (t *taker) log(ctx context.Context) {
	var b bytes.Buffer
	if err := t.h.Logs(ctx, instance.ID(t.q.Spec.Identity.ID), &b, maxLogLines, false); err != nil {
		t.lack("log", err)
		return
	}
	content := b.Bytes()
	if len(content) > maxLogBytes {
		content = content[len(content)-maxLogBytes:]
		t.e.Truncated = append(t.e.Truncated, "log")
	}
	for line := range strings.Lines(string(content)) {
		t.e.Log = append(t.e.Log, text(strings.TrimRight(line, "\n")))
	}
}
