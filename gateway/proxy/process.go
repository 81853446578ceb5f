package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is a process as it was when it became the gateway. Its number may be another's one day; its start tells.
type process struct {
	pid    int
	start  string // clock ticks since the machine's start, as /proc tells
	parent int
	exe    file
	socket string // its own control socket, as socketAt tells it
}

// file names a file whatever its path is, also when that is gone.
type file struct{ dev, ino uint64 }

func (f file) String() string { return fmt.Sprintf("file %d of device %d", f.ino, f.dev) }

// ofProcess looks at a process.
func ofProcess(pid int) (process, error) {
	f, err := stat(pid)
	if err != nil {
		return process{}, err
	}
	p := process{pid: pid, start: f[19]}
	if p.parent, err = strconv.Atoi(f[1]); err != nil {
		return process{}, err
	}
	p.exe, err = fileAt(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	return p, err
}

// stat returns the fields of /proc/PID/stat from the third on, which is the state.
func stat(pid int) ([]string, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // the name before it may hold anything
	if len(f) < 20 {
		return nil, fmt.Errorf("process %d has a short stat", pid)
	}
	return f, nil
}

// fileAt looks at a file, through links.
func fileAt(path string) (file, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return file{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return file{st.Dev, st.Ino}, nil
}

// signal sends a signal to the process, and to no other that has its number by now.
func (p process) signal(s unix.Signal) error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	if now, err := ofProcess(p.pid); err != nil || now.start != p.start {
		return nil // it has ended
	}
	if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	return nil
}

// maxCommand is how much of a process's arguments is told.
const maxCommand = 120

// processName says what a process is, for people, as far as it is still there.
func processName(pid, uid int) string {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	raw, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	command := strings.Join(strings.FieldsFunc(string(raw), func(r rune) bool { return r == 0 }), " ")
	if command == "" {
		raw, _ = os.ReadFile(filepath.Join(dir, "comm"))
		command = strings.TrimSpace(string(raw))
	}
	command = strings.ToValidUTF8(command, "?")
	if len(command) > maxCommand {
		command = strings.ToValidUTF8(command[:maxCommand], "") + "…"
	}
	if command == "" {
		command = "gone"
	}
	return fmt.Sprintf("process %d (%s, user %d)", pid, command, uid)
}
