package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// exitWatch waits for a process that may or may not be a child of this launcher: it is one that was adopted when an earlier
// launcher made it. A descriptor of the process (pidfd) serves both, costs no thread, and can't mean another process.
type exitWatch struct {
	pid   int
	pidfd *os.File // nil: the process was gone before anyone watched
}

func watchExit(pid int) (*exitWatch, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return lostExit(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening a descriptor of process %d: %w", pid, err)
	}
	return &exitWatch{pid, os.NewFile(uintptr(fd), "pidfd")}, nil
}

// lostExit is of a process that ended while nobody watched.
func lostExit() *exitWatch { return &exitWatch{} }

func (w *exitWatch) close() {
	if w.pidfd != nil {
		w.pidfd.Close()
	}
}

func (w *exitWatch) signal(s unix.Signal) error {
	if w.pidfd == nil {
		return unix.ESRCH
	}
	raw, err := w.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), s, nil, 0) }); err != nil {
		return err
	}
	return sent
}

// wait returns once the process has ended.
func (w *exitWatch) wait() exit {
	if w.pidfd == nil {
		return exit{code: -1, at: time.Now()}
	}
	raw, err := w.pidfd.SyscallConn()
	if err != nil {
		return exit{code: -1, at: time.Now()}
	}
	code := -1
	raw.Read(func(fd uintptr) bool {
		if !hasEnded(int(fd)) {
			return false
		}
		code = w.code(int(fd))
		return true
	})
	return exit{code: code, at: time.Now()}
}

// hasEnded tells whether the process is a zombie or gone: its descriptor is readable then (pidfd_open(2)).
func hasEnded(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// code reaps a child. Of another's child, /proc tells the code until that parent reaps it, and afterwards the kernel does
// (Linux 6.15), for as long as the descriptor is open.
func (w *exitWatch) code(pidfd int) int {
	if code, ok := w.reap(); ok {
		return code
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if code, ok := w.zombieCode(pidfd); ok {
			return code
		}
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		if unix.IoctlPidfdInfo(pidfd, &info) != nil {
			return -1
		}
		if info.Mask&unix.PIDFD_INFO_EXIT != 0 {
			return exitCode(unix.WaitStatus(info.Exit_code))
		}
	}
	return -1
}

// reap reaps a child. One that somebody traces is the tracer's to reap first, who may never do it: it stays, until reapLeftovers.
func (w *exitWatch) reap() (code int, ok bool) {
	var status unix.WaitStatus
	for {
		pid, err := unix.Wait4(w.pid, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return exitCode(status), err == nil && pid == w.pid
	}
}

// zombieCode reads the state and the exit code from /proc/PID/stat (fields 3 and 52 of proc_pid_stat(5)). That the
// descriptor can still be signalled afterwards says that the PID still was this process's.
func (w *exitWatch) zombieCode(pidfd int) (code int, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.pid))
	if err != nil || unix.PidfdSendSignal(pidfd, 0, nil, 0) != nil {
		return 0, false
	}
	after := strings.LastIndexByte(string(b), ')') // the name before it may hold anything
	fields := strings.Fields(string(b[after+1:]))
	if len(fields) < 50 || fields[0] != "Z" {
		return 0, false
	}
	status, err := strconv.Atoi(fields[49])
	return exitCode(unix.WaitStatus(status)), err == nil
}

func exitCode(s unix.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// oomKilled reads the count of kills for want of memory: memory.oom_control of cgroup v1, memory.events of v2.
func oomKilled(cgroups map[string]string) bool {
	if dir, ok := cgroups["memory"]; ok {
		return counter(filepath.Join(dir, "memory.oom_control"), "oom_kill") > 0
	}
	if dir, ok := cgroups[""]; ok {
		return counter(filepath.Join(dir, "memory.events"), "oom_kill") > 0
	}
	return false
}

func counter(path, name string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(value))
			return n
		}
	}
	return 0
}
