package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/kernel"
	"github.com/invarhq/invar/runtime/local/wire"
)

// A stray has the marks of an instance of this host and is none of those that the host made:
//
//	instance NAME    the launcher has it: somebody asked over its socket
//	state NAME       libcontainer's state lies among those of instances: somebody ran runc on our directory
//	directory NAME   files lie where those of instances do
//	cgroup NAME      processes are in a cgroup below ours
//	process PID      its root is one of our roots, mounted again or not
//
// All but the last are in places that are ours alone, so they are ended. A process that only uses a root is told: it may be somebody's
// whom we do not know. What is half made or half removed looks like a stray for a moment, so one counts when two scans after each other
// found it, and whatever the host knows before or after a scan is none.
type stray struct {
	what, name string
	found      string         // for people
	first      kernel.Process // of a state; none: it is not known, or has ended
}

const (
	strayInstance  = "instance"
	strayState     = "state"
	strayDirectory = "directory"
	strayCgroup    = "cgroup"
	strayProcess   = "process"
)

func (s stray) field() string { return s.what + " " + s.name }

func (s stray) response() drift.Response {
	if s.what == strayProcess {
		return drift.Alert
	}
	return drift.End
}

// ownGroup is the launcher's cgroup beside those of its instances, as the launcher names it.
const ownGroup = "_launcher"

// maxStrays bounds what is told of one look.
const maxStrays = 64

// straySight is one look for strays, which goes along with the one for foreign processes.
type straySight struct {
	host    *Host
	known   map[instance.ID]bool // whether it is sandboxed
	devices map[uint64]string    // of our mounts, with what is mounted there
	home    unix.Stat_t          // the machine's root
	found   map[string]stray     // by field
	members map[string][]int     // processes by stray cgroup
}

func (h *Host) newSight() *straySight {
	x := &straySight{host: h, known: map[instance.ID]bool{}, found: map[string]stray{}, members: map[string][]int{}}
	x.learn()
	x.devices = h.rootDevices()
	unix.Stat("/", &x.home) // of what can't be told, nothing is a stray
	return x
}

// learn adds the instances that the host knows now.
func (x *straySight) learn() {
	x.host.mu.Lock()
	defer x.host.mu.Unlock()
	for id, i := range x.host.instances {
		x.known[id] = i.spec.Isolation != ""
	}
}

// Magic numbers of statfs(2), linux/magic.h.
const (
	erofsMagic   = 0xe0f5e1e2
	overlayMagic = 0x794c7630
)

// rootDevices returns the device numbers of the roots that are mounted, and of the trees made of them.
func (h *Host) rootDevices() map[uint64]string {
	out := map[uint64]string{}
	for _, dir := range []string{"roots", "trees"} {
		entries, _ := os.ReadDir(filepath.Join(h.run, dir)) // none is mounted yet
		for _, e := range entries {
			at := filepath.Join(h.run, dir, e.Name())
			var st unix.Stat_t
			var f unix.Statfs_t
			if unix.Stat(at, &st) == nil && unix.Statfs(at, &f) == nil && (uint32(f.Type) == erofsMagic || uint32(f.Type) == overlayMagic) {
				out[st.Dev] = strings.TrimSuffix(dir, "s") + " " + e.Name()[:min(12, len(e.Name()))]
			}
		}
	}
	return out
}

// process looks at a process that is in no instance. groups is its /proc/PID/cgroup.
func (x *straySight) process(p kernel.Process, groups string, ours func() bool) {
	if p.Exiting {
		return
	}
	if group, ok := x.group(groups); ok {
		if group != "" {
			x.members[group] = append(x.members[group], p.PID)
		}
		return
	}
	var st unix.Stat_t
	if unix.Stat("/proc/"+strconv.Itoa(p.PID)+"/root", &st) != nil || st.Dev == x.home.Dev {
		return
	}
	root, ok := x.devices[st.Dev]
	if !ok {
		root, ok = x.host.mountedAgain(p.PID)
	}
	if ok && !ours() {
		x.add(stray{what: strayProcess, name: strconv.Itoa(p.PID), found: describe(p.PID) + ", its root is " + root})
	}
}

// group returns the group that the process is in, below that of this host's, when it is none of an instance; "" for an instance's.
// It reports false for a process that is in none of ours.
func (x *straySight) group(groups string) (string, bool) {
	parent := x.host.cgroupParent()
	within := false
	for line := range strings.Lines(groups) {
		_, path, _ := strings.Cut(strings.TrimSpace(line), ":/")
		path = "/" + path
		if path != parent && !strings.HasPrefix(path, parent+"/") {
			continue
		}
		within = true
		rest := strings.Trim(strings.TrimPrefix(path, parent), "/")
		name, below, nested := strings.Cut(rest, "/")
		sandboxed, known := x.known[instance.ID(name)]
		switch {
		case name == ownGroup && !nested, known && (!nested || sandboxed):
		case rest == "":
			return ".", true
		case known || name == ownGroup:
			return name + "/" + below, true
		default:
			return name, true
		}
	}
	return "", within
}

// mountedAgain reports whether the root of the process is another mount of one of our roots' files.
func (h *Host) mountedAgain(pid int) (string, bool) {
	var f unix.Statfs_t
	if unix.Statfs("/proc/"+strconv.Itoa(pid)+"/root", &f) != nil || uint32(f.Type) != erofsMagic {
		return "", false
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/mountinfo")
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		end := slices.Index(fields, "-")
		if len(fields) < 5 || end < 0 || end+2 >= len(fields) || fields[4] != "/" || fields[end+1] != "erofs" {
			continue
		}
		source := unescapeMount(fields[end+2])
		if name, ok := strings.CutPrefix(source, "/dev/loop"); ok {
			backing, _ := os.ReadFile("/sys/block/loop" + name + "/loop/backing_file") // "" names no file
			source = strings.TrimSpace(string(backing))
		}
		var is unix.Stat_t
		if unix.Stat(source, &is) != nil {
			continue
		}
		if name, ok := h.rootFileOf(is); ok {
			return name, true
		}
	}
	return "", false
}

// rootFileOf returns which of our roots' files it is.
func (h *Host) rootFileOf(is unix.Stat_t) (string, bool) {
	files, _ := filepath.Glob(filepath.Join(h.config.Dir, "roots", "*.erofs")) // the pattern is well-formed
	for _, f := range files {
		var st unix.Stat_t
		if unix.Stat(f, &st) == nil && st.Dev == is.Dev && st.Ino == is.Ino {
			return "a mount of root " + filepath.Base(f)[:12], true
		}
	}
	return "", false
}

func (x *straySight) add(s stray) {
	if len(x.found) < maxStrays {
		x.found[s.field()] = s
	}
}

// end ends the look at processes, looks at the rest, and returns what was found.
func (x *straySight) end() map[string]stray {
	for id, s := range x.host.unknownToHost() {
		found := string(s.State)
		if s.PID > 0 {
			found += ", " + describe(s.PID)
		}
		x.add(stray{what: strayInstance, name: id, found: found})
	}
	for group, pids := range x.members {
		found := describe(pids[0])
		if n := len(pids); n > 1 {
			found += fmt.Sprintf(" and %d more", n-1)
		}
		x.add(stray{what: strayCgroup, name: group, found: found})
	}
	for _, name := range x.strangers(x.host.stateDir()) {
		x.add(x.host.strayState(name))
	}
	for _, name := range x.strangers(filepath.Join(x.host.run, "instances")) {
		x.add(stray{what: strayDirectory, name: name, found: "files of no instance"})
	}
	x.learn() // what has been made meanwhile
	for field, s := range x.found {
		if _, known := x.known[instance.ID(s.name)]; known && s.what != strayProcess {
			delete(x.found, field)
		}
		if _, whole := x.found[strayInstance+" "+s.name]; whole && s.what != strayInstance && s.what != strayProcess {
			delete(x.found, field) // a part of it
		}
	}
	return x.found
}

// strangers returns the names in a directory that no instance has.
func (x *straySight) strangers(dir string) []string {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer d.Close()
	list, _ := d.Readdirnames(-1) // what could be read
	return slices.DeleteFunc(list, func(name string) bool {
		_, known := x.known[instance.ID(name)]
		return known
	})
}

// stateDir is where the launcher has libcontainer keep its state.
func (h *Host) stateDir() string { return filepath.Join(h.run, "state") }

// strayState looks at a state of libcontainer's.
func (h *Host) strayState(name string) stray {
	var state struct {
		PID   int    `json:"init_process_pid"`
		Start uint64 `json:"init_process_start"`
	}
	s := stray{what: strayState, name: name, found: "a container's state"}
	b, err := os.ReadFile(filepath.Join(h.stateDir(), name, "state.json"))
	if err == nil && json.Unmarshal(b, &state) == nil && state.PID > 1 {
		if p, err := kernel.ReadProcess(state.PID, make([]byte, 1<<10)); err == nil && p.Start == state.Start {
			s.first = p
			s.found += " of " + describe(state.PID)
		}
	}
	return s
}

// describe says what a process is, for people.
func describe(pid int) string {
	var st unix.Stat_t
	if unix.Stat("/proc/"+strconv.Itoa(pid), &st) != nil {
		return fmt.Sprintf("process %d (gone)", pid)
	}
	return fmt.Sprintf("process %d (%s, user %d)", pid, kernel.Command(pid, maxCommand/2), st.Uid)
}

// unknownToHost returns what the launcher has and this host did not ask for.
func (h *Host) unknownToHost() map[string]wire.Status {
	h.mu.Lock()
	suspected := len(h.alien) > 0
	h.mu.Unlock()
	if !suspected {
		return nil
	}
	ctx, cancel := context.WithTimeout(h.closing, scanEvery)
	defer cancel()
	response, err := h.launcher.call(ctx, wire.Request{Op: wire.OpList})
	if err != nil {
		return nil // the next look tells
	}
	out := map[string]wire.Status{}
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.alien)
	for _, s := range response.Instances {
		if _, ok := h.instances[instance.ID(s.ID)]; !ok {
			out[s.ID] = s
			h.alien[s.ID] = true
		}
	}
	return out
}

// sighted takes what a look found, and reports whether something new is to be looked at again soon.
func (h *Host) sighted(found map[string]stray) (again bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.strays = map[string]stray{}
	for field, s := range found {
		if h.suspects[field] {
			h.strays[field] = s
		} else {
			again = true
		}
	}
	clear(h.suspects)
	for field := range found {
		h.suspects[field] = true
	}
	return again
}

// Kinds implements reconcile.Surrounding.
func (h *Host) Kinds() []drift.Kind { return []drift.Kind{drift.Stray} }

// Look implements reconcile.Surrounding: it tells what the last scan found.
func (h *Host) Look(context.Context) ([]drift.Oddity, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []drift.Oddity
	for _, s := range h.strays {
		fact := drift.Of(drift.Fact{Kind: drift.Stray, Field: s.field(), Value: s.found})
		out = append(out, drift.Odd(s.response(), drift.Compare(drift.Facts{}, fact))...)
	}
	return out, nil
}

// Heal implements reconcile.Surrounding: it ends strays in places that are the host's alone.
func (h *Host) Heal(ctx context.Context, found []drift.Oddity) (string, error) {
	var errs []error
	for _, o := range found {
		h.mu.Lock()
		s, ok := h.strays[o.Field]
		delete(h.strays, o.Field)
		_, known := h.instances[instance.ID(s.name)]
		h.mu.Unlock()
		if !ok || known {
			continue
		}
		h.log.Warn("ending a stray", "what", s.what, "name", s.name, "found", s.found)
		if err := h.endStray(ctx, s); err != nil {
			errs = append(errs, fmt.Errorf("ending stray %s: %w", o.Field, err))
		}
	}
	return "it was ended", errors.Join(errs...)
}

func (h *Host) endStray(ctx context.Context, s stray) error {
	switch s.what {
	case strayInstance:
		if _, err := h.launcher.callRepeated(ctx, wire.Request{Op: wire.OpRemove, ID: s.name}); err != nil {
			return err
		}
		return h.removeStrayFiles(s.name)
	case strayState:
		if s.first.PID > 1 {
			if err := s.first.Signal(unix.SIGKILL); err != nil {
				return err
			}
		}
		return os.RemoveAll(filepath.Join(h.stateDir(), s.name))
	case strayDirectory:
		return h.removeStrayFiles(s.name)
	case strayCgroup:
		return h.endGroup(s.name)
	}
	return nil
}

// removeStrayFiles deletes a directory among those of instances, unless something is mounted below it, which is not ours to delete.
func (h *Host) removeStrayFiles(name string) error {
	dir := h.dir(instance.ID(name))
	mounts, err := mountsBelow(dir)
	if err == nil && len(mounts) > 0 {
		err = fmt.Errorf("%s is mounted there", mounts[0])
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// endGroup kills all that is in a cgroup below this host's, and deletes the group, in every hierarchy.
func (h *Host) endGroup(name string) error {
	groups, err := filepath.Glob("/sys/fs/cgroup/*" + filepath.Join(h.cgroupParent(), name))
	if err != nil {
		return err
	}
	groups = append(groups, filepath.Join("/sys/fs/cgroup", h.cgroupParent(), name))
	var errs []error
	for _, g := range groups {
		if name == "." {
			errs = append(errs, h.killGroup(g))
			continue
		}
		filepath.WalkDir(g, func(p string, e fs.DirEntry, err error) error { // what is gone is fine
			if err == nil && e.IsDir() {
				errs = append(errs, h.killGroup(p))
			}
			return nil
		})
		errs = append(errs, removeTree(g))
	}
	return errors.Join(errs...)
}

// killGroup kills the processes of one cgroup, but for this host's own.
func (h *Host) killGroup(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // gone, or threaded: then its threads' processes are in the group above
	}
	if err != nil {
		return err
	}
	own := append(h.companions(), os.Getpid(), int(h.launcherPID.Load()), 1, 0)
	var errs []error
	for text := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(text)
		if err != nil || slices.Contains(own, pid) {
			continue
		}
		if p, err := kernel.ReadProcess(pid, make([]byte, 1<<10)); err == nil {
			errs = append(errs, p.Signal(unix.SIGKILL))
		}
	}
	return errors.Join(errs...)
}

// removeTree deletes a cgroup and those below it, while their processes end.
func removeTree(dir string) error {
	var groups []string
	filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error { // what is gone is fine
		if err == nil && e.IsDir() {
			groups = append(groups, p)
		}
		return nil
	})
	var errs []error
	for _, g := range slices.Backward(groups) {
		errs = append(errs, removeGroup(g))
	}
	return errors.Join(errs...)
}

// confirmStrayAfter is how soon something new is looked at again.
const confirmStrayAfter = 300 * time.Millisecond
