package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// leftoverAge is how long a dead child waits for whoever started it: libcontainer reaps its own within milliseconds.
const leftoverAge = time.Second

// reapLeftovers reaps dead children that nobody waits for, until done is closed. Where a command is started in an instance that
// ends at that moment, libcontainer gives up and leaves a dead child in the instance's PID namespace; and a namespace's
// first process can't end before all others in it are reaped (pid_namespaces(7)).
func (l *launcher) reapLeftovers(done <-chan struct{}) {
	seen := map[int]bool{}
	for {
		select {
		case <-done:
			return
		case <-time.After(leftoverAge):
		}
		again := map[int]bool{}
		for _, pid := range l.deadChildren() {
			if !seen[pid] {
				again[pid] = true
				continue
			}
			unix.Wait4(pid, nil, unix.WNOHANG, nil) // it fails when somebody reaped it meanwhile
		}
		seen = again
	}
}

// deadChildren returns the zombies among this process's children, but for the first processes of instances, which are watched.
func (l *launcher) deadChildren() []int {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err != nil && !errors.Is(err, unix.EINTR) || err == nil && info.Signo == 0 {
		return nil // none: the usual case, without a look at every process
	}
	watched := l.firstProcesses()
	self := []byte(strconv.Itoa(os.Getpid()))
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	var dead []int
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || watched[pid] {
			continue
		}
		if b, err := os.ReadFile(path); err == nil && isZombieOf(b, self) {
			dead = append(dead, pid)
		}
	}
	return dead
}

// isZombieOf reads state and parent from a /proc/PID/stat (fields 3 and 4 of proc_pid_stat(5)).
func isZombieOf(stat, parent []byte) bool {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]) // the name before it may hold anything
	return len(fields) > 1 && string(fields[0]) == "Z" && bytes.Equal(fields[1], parent)
}

func (l *launcher) firstProcesses() map[int]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	pids := map[int]bool{}
	for _, r := range l.instances {
		pids[r.snapshot().PID] = true
	}
	return pids
}
