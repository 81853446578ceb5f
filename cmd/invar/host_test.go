package main

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// hostOf tells what servers of a data directory have on this machine, read from the kernel.
type hostOf struct{ data, run string }

func newHostOf(data string) hostOf {
	sum := sha256.Sum256([]byte(data))
	return hostOf{data, filepath.Join("/run/invar", hex.EncodeToString(sum[:6]))}
}

// processes returns those whose command line contains text, as NUL-separated arguments.
func processes(text string) []int {
	var pids []int
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		b, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(b), text) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// launcher returns the launcher's process, or 0.
func (h hostOf) launcher() int {
	for _, pid := range processes("-dir\x00" + h.run + "\x00") {
		if b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline")); strings.HasPrefix(string(b), "invar-launcher\x00") {
			return pid
		}
	}
	return 0
}

// instances returns what has the name of an instance, by where it was found: its directory, network namespace, cgroups, and
// processes in a cgroup.
func (h hostOf) instances() map[string][]string {
	found := map[string][]string{}
	for _, kind := range []string{"instances", "netns"} {
		found[kind] = names(filepath.Join(h.run, kind, "*"))
	}
	for _, group := range h.cgroups() {
		if name := filepath.Base(group); name != "_launcher" {
			found["cgroup"] = append(found["cgroup"], name)
		}
	}
	slices.Sort(found["cgroup"])
	found["cgroup"] = slices.Compact(found["cgroup"]) // one in each hierarchy
	found["process"] = h.inCgroups()
	return found
}

func names(pattern string) []string {
	paths, _ := filepath.Glob(pattern)
	for i, p := range paths {
		paths[i] = filepath.Base(p)
	}
	return paths
}

// cgroups returns the groups below this server's own.
func (h hostOf) cgroups() []string {
	own := "/invar-" + filepath.Base(h.run)
	v1, _ := filepath.Glob("/sys/fs/cgroup/*" + own + "/*/cgroup.procs")
	v2, _ := filepath.Glob("/sys/fs/cgroup" + own + "/*/cgroup.procs")
	var groups []string
	for _, file := range append(v1, v2...) {
		groups = append(groups, filepath.Dir(file))
	}
	return groups
}

// inCgroups returns the name of the instance of every process of this server's instances.
func (h hostOf) inCgroups() []string {
	own := "/invar-" + filepath.Base(h.run) + "/"
	var owners []string
	files, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil || zombie(filepath.Dir(file)) {
			continue
		}
		if _, rest, ok := strings.Cut(string(b), own); ok {
			name, _, _ := strings.Cut(rest, "\n")
			if name, _, _ = strings.Cut(name, "/"); name != "_launcher" {
				owners = append(owners, name)
			}
		}
	}
	slices.Sort(owners)
	return slices.Compact(owners)
}

// zombie tells whether a process has ended and only waits to be reaped. One whose launcher was killed is for the machine's first process to
// reap, which some containers leave out.
func zombie(proc string) bool {
	b, err := os.ReadFile(filepath.Join(proc, "stat"))
	_, rest, _ := strings.Cut(string(b), ") ")
	return err != nil || strings.HasPrefix(rest, "Z")
}

// leftovers lists what is still there of this server: processes, mounts, groups, files outside of its data directory.
func (h hostOf) leftovers() []string {
	var left []string
	add := func(what string, found ...string) {
		for _, f := range found {
			left = append(left, what+" "+f)
		}
	}
	for _, text := range []string{h.run, h.data} {
		for _, pid := range processes(text + "\x00") {
			b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
			add("process", strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	add("process of", h.inCgroups()...)
	add("cgroup", h.cgroups()...)
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, h.run) || strings.Contains(line, h.data) {
			add("mount", line)
		}
	}
	paths, _ := filepath.Glob(h.run + "*")
	add("file", paths...)
	return left
}
