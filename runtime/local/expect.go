package local

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/runtime"
)

// expectation is what an instance should be, as follows from a question and the content of the root.
type expectation struct {
	who   user
	tree  string         // what the instance has as its root
	given []runtime.File // in order

	told    []drift.Fact // of the launcher's record
	files   []drift.Fact // of the given files
	rights  []drift.Fact // of every process, by lines of /proc/PID/status
	running []drift.Fact // of the first process, its limits, rights, namespaces, mounts and sockets

	machine map[string]string         // the namespaces that it should not be in, by kind
	volumes map[string]runtime.Volume // by where they are mounted
	masked  map[string]bool           // paths that it does not see

	scratches []string // where they are mounted
}

// expect works out what an instance should be. The root is mounted at a directory.
func (h *Host) expect(q runtime.Question, root string) (*expectation, error) {
	s := q.Spec
	e := &expectation{given: givenFiles(s), tree: root, machine: map[string]string{}, volumes: map[string]runtime.Volume{}, masked: map[string]bool{}}
	var err error
	if e.who, err = lookupUser(root, s.User); err != nil {
		return nil, err
	}
	missing, err := lacking(root, points(s))
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		e.tree = filepath.Join(h.trees.dir, keyOf(s.Root, points(s)), "root")
	}
	e.told = recordFacts(ociProcess(s, e.who), e.tree)
	if err := e.expectFiles(h, root); err != nil {
		return nil, err
	}
	e.expectLimits(h, s)
	if s.Isolation != "" {
		return e, nil
	}
	e.expectStatus(h)
	if err := e.expectNamespaces(h); err != nil {
		return nil, err
	}
	e.expectMounts(h, s)
	return e, nil
}

func (e *expectation) add(k drift.Kind, field, value string) {
	e.running = append(e.running, drift.Fact{Kind: k, Field: field, Value: value})
}

func (e *expectation) expectFiles(h *Host, root string) error {
	for _, f := range e.given {
		owner := e.who
		if f.User != "" {
			var err error
			if owner, err = lookupUser(root, f.User); err != nil {
				return err
			}
		}
		mode := f.Mode & 0o777
		if mode == 0 {
			mode = 0o444
		}
		value := fmt.Sprintf("%s, mode %o, owner %d:%d", sum(f, f.Content), mode, h.features.hostID(owner.uid), h.features.hostID(owner.gid))
		e.files = append(e.files, drift.Fact{Kind: drift.File, Field: f.Path, Value: value})
	}
	return nil
}

func (e *expectation) expectLimits(h *Host, s runtime.Spec) {
	if !h.features.Limits.OK {
		return
	}
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
	e.add(drift.Limit, "processes", limit(pids))
	page := int64(os.Getpagesize())
	memory := limit(s.MemoryBytes / page * page)
	e.add(drift.Limit, "memory bytes", memory)
	if s.MemoryBytes > 0 && h.features.Swap.OK {
		if h.features.CgroupVersion == 2 {
			memory = "0"
		}
		e.add(drift.Limit, "memory and swap bytes", memory)
	}
	e.add(drift.Limit, "cpu thousandths", limit(s.CPUMillis))
}

func (e *expectation) expectStatus(h *Host) {
	four := func(id int) string {
		return strings.TrimSpace(strings.Repeat(strconv.Itoa(h.features.hostID(id))+" ", 4))
	}
	groups := make([]string, len(e.who.groups))
	for n, g := range e.who.groups {
		groups[n] = strconv.Itoa(h.features.hostID(g))
	}
	slices.Sort(groups)
	must := func(line, value string) {
		e.rights = append(e.rights, drift.Fact{Field: line, Value: value})
	}
	must("Uid", four(e.who.uid))
	must("Gid", four(e.who.gid))
	must("NoNewPrivs", "1")
	e.add(drift.User, "uids", four(e.who.uid))
	e.add(drift.User, "gids", four(e.who.gid))
	e.add(drift.User, "groups", "["+strings.Join(groups, " ")+"]")
	for _, set := range capabilitySets {
		e.add(drift.Capability, set, "0000000000000000")
		must(set, "0000000000000000")
	}
	e.add(drift.Confine, "no_new_privs", "1")
	if h.features.Seccomp.OK {
		e.add(drift.Confine, "seccomp mode", "2")
		must("Seccomp", "2")
	}
	e.add(drift.Process, "traced by", "0")
}

func (e *expectation) expectNamespaces(h *Host) error {
	for _, kind := range h.namespaceKinds() {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			return err
		}
		e.machine[kind] = link
		e.add(drift.Namespace, kind, "of its own")
	}
	e.add(drift.Namespace, "net", "the one that was made for it")
	e.add(drift.Namespace, "interfaces", "lo")
	if h.features.userNamespaces() {
		mapped := fmt.Sprintf("0 %d %d", UIDBase, UIDSize)
		e.add(drift.Namespace, "uid_map", mapped)
		e.add(drift.Namespace, "gid_map", mapped)
	}
	return nil
}

// expectMounts notes what should be mounted.
func (e *expectation) expectMounts(h *Host, s runtime.Spec) {
	at := func(place, value string) { e.add(drift.Mount, place, value) }
	root := theRoot + "ro"
	if h.features.userNamespaces() { // there, what the mount forbids stays forbidden
		root += ",nosuid,nodev"
	}
	at("/", root)
	at("/proc", "proc / nosuid,nodev,noexec")
	at("/dev", "tmpfs ro,nosuid,noexec")
	at("/dev/pts", "devpts nosuid,noexec")
	if h.features.userNamespaces() { // else they are made, not mounted
		for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
			at("/dev/"+d, "the device")
		}
	}
	for n, f := range e.given {
		at(e.place(f.Path), fmt.Sprintf("file /instances/%s/files/%d ro,nosuid,nodev,noexec", s.Identity.ID, n))
	}
	for _, t := range s.Scratches {
		place := e.place(t.Path)
		e.scratches = append(e.scratches, place)
		at(place, "tmpfs nosuid,nodev,noexec")
	}
	for _, v := range s.Volumes {
		place := e.place(v.Path)
		e.volumes[place] = v
		at(place, aVolume+string(v.Name)+" nosuid,nodev")
	}
	l := h.ociLinux(s, "")
	for _, p := range l.ReadonlyPaths {
		if _, err := os.Stat(p); err == nil {
			at(p, "proc "+strings.TrimPrefix(p, "/proc")+" ro,nosuid,nodev,noexec")
		}
	}
	for _, p := range l.MaskedPaths { // those that this kernel has, and there is no /sys
		if _, err := os.Stat(p); err == nil && strings.HasPrefix(p, "/proc/") {
			e.masked[p] = true
			at(p, "masked")
		}
	}
}

// place is where something that the spec puts at a path is mounted: links are followed.
func (e *expectation) place(p string) string {
	real, _, err := locate(e.tree, p)
	if err != nil {
		return p
	}
	return real
}
