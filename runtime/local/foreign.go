package local

import (
	"bytes"
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/kernel"
	"github.com/invarhq/invar/runtime/local/wire"
)

// A process is foreign to an instance when it is in one of the instance's own namespaces or in its cgroup, and is not the instance's. The
// instance's are its first process and what descends from it inside its cgroup, and what the launcher started there: sessions,
// checks, and libcontainer's own helpers. Of ours, the server, the gateway and the launcher have threads that enter namespaces for a moment;
// they are known by their PIDs, and by nothing that another process could imitate.
//
// It is found by reading /proc every scanEvery. What comes and goes between two scans is not seen.
const (
	scanEvery    = time.Second
	maxScanEvery = 2500 * time.Millisecond

	idleScanEvery = 2 * time.Second // while no instance runs
)

// maxCommand is how much of a foreign process's arguments is kept.
const maxCommand = 256

// kinds are the namespaces that are compared, as /proc/PID/ns names them. The last is a process's that joined a PID namespace and has
// not forked yet.
var nsKinds = []string{"net", "mnt", "pid", "ipc", "uts", "user", "cgroup", "pid_for_children"}

// threadKinds are those that a thread can have for itself, and that /proc/PID/ns (which tells of the first thread) does not show.
var threadKinds = []string{"net", "mnt", "ipc", "uts", "cgroup", "pid_for_children"}

// scanner finds foreign processes.
type scanner struct {
	host *Host
	own  map[string]bool // links of the namespaces that this process is in, by "kind:link"
	self int
	boot time.Time

	settled map[procKey]instance.ID // processes that were found to be an instance's: they can't leave its namespaces
	firsts  map[procKey]target      // first processes and where they are, for the same reason
	threads map[procKey]time.Time   // when the threads of a process were looked at
	buf     []byte
}

type procKey struct {
	pid   int
	start uint64
}

// target is a running instance.
type target struct {
	id      instance.ID
	first   int    // its first process
	cgroup  []byte // that one's /proc/PID/cgroup
	spaces  []string
	sandbox bool // of a runtime with helpers of its own
}

func newScanner(h *Host) *scanner {
	s := &scanner{host: h, own: map[string]bool{}, self: os.Getpid(), boot: kernel.BootTime(), settled: map[procKey]instance.ID{}, threads: map[procKey]time.Time{}, buf: make([]byte, 4<<10)}
	for _, kind := range nsKinds {
		s.own[nsKey(s.self, "", kind)] = true
	}
	return s
}

// watchForeign scans until ctx ends.
func (h *Host) watchForeign(ctx context.Context) {
	s := newScanner(h)
	for pause := scanEvery; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		began := time.Now()
		foreign, strays := s.scan()
		for id, found := range foreign {
			h.addForeign(id, found)
		}
		pause = min(max(scanEvery, 20*time.Since(began)), maxScanEvery) // a twentieth of a core, unless that would find too late
		switch {
		case h.sighted(strays):
			pause = confirmStrayAfter
		case !h.runs():
			pause = max(pause, idleScanEvery)
		}
	}
}

// addForeign keeps what was found of an instance.
func (h *Host) addForeign(id instance.ID, found []instance.Foreign) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i, ok := h.instances[id]; ok {
		h.keepForeign(i, found)
	}
}

// keepForeign is called with mu held.
func (h *Host) keepForeign(i *inst, found []instance.Foreign) {
	if i.seen.State != instance.Running {
		return
	}
	for _, f := range found {
		known := slices.ContainsFunc(i.seen.Foreign, func(k instance.Foreign) bool { return k.PID == f.PID && k.StartedAt.Equal(f.StartedAt) })
		if known || len(i.seen.Foreign) >= maxForeign {
			continue
		}
		h.log.Warn("a foreign process is in an instance", "instance", i.spec.Identity.ID, "pid", f.PID, "command", f.Command, "uid", f.UID)
		i.seen.Foreign = append(slices.Clip(i.seen.Foreign), f) // who has listed it keeps what it has
		h.note()
	}
}

// strangers are those who had the launcher run something in an instance, but for this process: between two connections to the launcher
// it does not watch either.
func strangers(told []wire.Stranger) []instance.Foreign {
	var found []instance.Foreign
	for _, s := range told {
		if s.PID != os.Getpid() {
			at := s.At.UTC().Truncate(time.Millisecond)
			found = append(found, instance.Foreign{PID: s.PID, Command: s.Command, Asked: s.Asked, StartedAt: at, FoundAt: at})
		}
	}
	return found
}

// maxForeign is how many are kept of one instance, which is to be replaced after the first.
const maxForeign = 64

// targets returns the running instances, and which of them has each namespace and cgroup.
func (s *scanner) targets(procs map[int]kernel.Process) (list []target, byNamespace map[string]int, byCgroup map[string]int) {
	s.host.mu.Lock()
	for id, i := range s.host.instances {
		if i.seen.State == instance.Running && i.seen.PID > 0 {
			list = append(list, target{id: id, first: i.seen.PID, sandbox: i.spec.Isolation != ""})
		}
	}
	s.host.mu.Unlock()
	byNamespace, byCgroup = map[string]int{}, map[string]int{}
	firsts := make(map[procKey]target, len(list))
	for n, t := range list {
		key := procKey{t.first, procs[t.first].Start}
		known, ok := s.firsts[key]
		if !ok || known.id != t.id {
			known, ok = s.place(t)
		}
		if !ok {
			continue // it ends, and its PID may be another's by now
		}
		list[n], firsts[key] = known, known
		byCgroup[s.host.group(t.id)] = n
		for _, space := range known.spaces {
			byNamespace[space] = n
		}
	}
	s.firsts = firsts
	return list, byNamespace, byCgroup
}

// place looks where an instance's first process is; false when it is not in the instance's cgroup.
func (s *scanner) place(t target) (target, bool) {
	t.cgroup, _ = os.ReadFile(filepath.Join("/proc", strconv.Itoa(t.first), "cgroup"))
	if !bytes.Contains(t.cgroup, []byte(s.host.group(t.id))) {
		return t, false
	}
	for _, kind := range nsKinds {
		if key := nsKey(t.first, "", kind); key != "" && !s.own[key] {
			t.spaces = append(t.spaces, key)
		}
	}
	return t, true
}

// scan looks at every process once.
func (s *scanner) scan() (map[instance.ID][]instance.Foreign, map[string]stray) {
	sight := s.host.newSight()
	procs := kernel.Processes(s.buf)
	list, byNamespace, byCgroup := s.targets(procs)
	found := map[instance.ID][]instance.Foreign{}
	settled := make(map[procKey]instance.ID, len(s.settled))
	s.forgetThreads(procs)
	ours := s.ours(procs)
	for _, p := range procs {
		key := procKey{p.PID, p.Start}
		if p.Kernel || ours[p.PID] {
			continue
		}
		if id, ok := s.settled[key]; ok {
			settled[key] = id
			continue
		}
		at, groups := s.whereIs(p, byNamespace, byCgroup)
		if len(at) == 0 {
			sight.process(p, groups, func() bool { return s.launched(p, procs) })
		}
		for n, place := range at {
			if s.belongs(p, procs, list[n], place) {
				if p.PID == list[n].first || len(place.Namespaces) >= len(nsKinds)-2 && place.Cgroup { // inside for good: it has no rights to leave
					settled[key] = list[n].id
				}
				continue
			}
			if ending(p) {
				continue
			}
			found[list[n].id] = append(found[list[n].id], s.measure(p, place))
		}
	}
	s.settled = settled
	return found, sight.end()
}

// threadsEvery is how often the threads of a process are looked at, beside when it is new: a machine has many, and of one that joins, the
// process is there before, as that of a command that joins is not.
const threadsEvery = 2500 * time.Millisecond

// dueThreads reports whether it is time to look at a process's threads, and notes that they are.
func (s *scanner) dueThreads(p kernel.Process) bool {
	key, now := procKey{p.PID, p.Start}, time.Now()
	if last, known := s.threads[key]; known && now.Sub(last) < threadsEvery {
		return false
	}
	s.threads[key] = now
	return true
}

// forgetThreads drops what is known of processes that have ended.
func (s *scanner) forgetThreads(procs map[int]kernel.Process) {
	maps.DeleteFunc(s.threads, func(key procKey, _ time.Time) bool { return procs[key.pid].Start != key.start })
}

// launched reports whether the process descends from the launcher: what the launcher is making.
func (s *scanner) launched(p kernel.Process, procs map[int]kernel.Process) bool {
	launcher := int(s.host.launcherPID.Load())
	for at, steps := p, 0; steps < 1000; steps++ {
		if at.Parent == launcher {
			return true
		}
		next, ok := procs[at.Parent]
		if !ok || next.PID <= 1 {
			return false
		}
		at = next
	}
	return false
}

// runs reports whether any instance does.
func (h *Host) runs() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, i := range h.instances {
		if i.seen.State == instance.Running {
			return true
		}
	}
	return false
}

// ours returns the processes of invar itself: the server with its gateway, and the launcher.
func (s *scanner) ours(procs map[int]kernel.Process) map[int]bool {
	ours := map[int]bool{s.self: true, int(s.host.launcherPID.Load()): true}
	for _, pid := range s.host.companions() {
		ours[pid] = true
	}
	for _, p := range procs { // what this server starts: the gateway, before it says so
		if p.Parent == s.self && kernel.SameProgram(strconv.Itoa(p.PID), "self") {
			ours[p.PID] = true
		}
	}
	return ours
}

// whereIs returns the instances that the process or one of its threads is in, by index, and its cgroups as /proc tells them.
func (s *scanner) whereIs(p kernel.Process, byNamespace, byCgroup map[string]int) (at map[int]instance.Foreign, cgroups string) {
	note := func(n int, change func(*instance.Foreign)) {
		if at == nil {
			at = map[int]instance.Foreign{}
		}
		place := at[n]
		change(&place)
		at[n] = place
	}
	look := func(thread string, kinds []string) {
		for _, kind := range kinds {
			n, ok := byNamespace[nsKey(p.PID, thread, kind)]
			if !ok {
				continue
			}
			note(n, func(f *instance.Foreign) {
				if !slices.Contains(f.Namespaces, kind) {
					f.Namespaces = append(f.Namespaces, kind)
				}
				if thread != "" && f.TID == 0 && len(f.Namespaces) == 1 {
					f.TID, _ = strconv.Atoi(thread)
				}
			})
		}
	}
	if len(byNamespace) > 0 {
		look("", nsKinds)
	}
	if p.Threads > 1 && len(byNamespace) > 0 && s.dueThreads(p) {
		tasks, _ := os.ReadDir(filepath.Join("/proc", strconv.Itoa(p.PID), "task"))
		for _, task := range tasks {
			if task.Name() != strconv.Itoa(p.PID) {
				look(task.Name(), threadKinds)
			}
		}
	}
	groups, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.PID), "cgroup"))
	if !bytes.Contains(groups, []byte(s.host.cgroupParent()+"/")) {
		return at, string(groups)
	}
	for line := range strings.Lines(string(groups)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if n, ok := byCgroup[fields[len(fields)-1]]; ok {
			note(n, func(f *instance.Foreign) { f.Cgroup = true })
		}
	}
	return at, string(groups)
}

// belongs reports whether the process is the instance's.
func (s *scanner) belongs(p kernel.Process, procs map[int]kernel.Process, t target, place instance.Foreign) bool {
	if p.PID == t.first {
		return true
	}
	groups, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.PID), "cgroup"))
	inside := bytes.Equal(groups, t.cgroup)
	if t.sandbox && inside {
		return true // the runtime's helpers
	}
	launcher := int(s.host.launcherPID.Load())
	for at, steps := p, 0; steps < 1000; steps++ {
		switch at.Parent {
		case launcher:
			return true
		case t.first:
			return inside
		}
		next, ok := procs[at.Parent]
		if !ok || next.PID <= 1 {
			break
		}
		at = next
	}
	return inside && s.orphaned(p, procs, launcher)
}

// orphaned reports whether an earlier launcher may have started the process: it lost its parent, and is older than this launcher.
func (s *scanner) orphaned(p kernel.Process, procs map[int]kernel.Process, launcher int) bool {
	l, ok := procs[launcher]
	return ok && p.Start < l.Start && p.Parent <= 1
}

// measure takes down what can be told of a foreign process now: it may be gone in a moment.
func (s *scanner) measure(p kernel.Process, place instance.Foreign) instance.Foreign {
	place.PID, place.Parent, place.FoundAt = p.PID, p.Parent, time.Now().UTC().Truncate(time.Millisecond)
	place.StartedAt = p.StartedAt(s.boot)
	dir := filepath.Join("/proc", strconv.Itoa(p.PID))
	place.Program, _ = os.Readlink(filepath.Join(dir, "exe"))
	place.Command = kernel.Command(p.PID, maxCommand)
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil {
		place.UID = int(st.Uid)
	}
	place.Program = place.Program[:min(len(place.Program), maxCommand)]
	return place
}

// nsKey names the namespace that a process or thread is in, "" when it is gone.
func nsKey(pid int, thread, kind string) string {
	path := "/proc/" + strconv.Itoa(pid)
	if thread != "" {
		path += "/task/" + thread
	}
	link, err := os.Readlink(path + "/ns/" + kind)
	if err != nil {
		return ""
	}
	return link // "net:[4026531840]"; pid_for_children's has the kind pid, as it should
}

// ending reports whether the process is about to end or has: then the kernel no longer tells of its cgroup as it was, and a short-lived
// child of the instance would look like somebody else.
func ending(p kernel.Process) bool {
	now, err := kernel.ReadProcess(p.PID, make([]byte, 1<<10))
	return err != nil || now.Start != p.Start || now.Exiting
}
