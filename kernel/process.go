// Package kernel reads what Linux tells of processes and sockets: /proc (proc(5)) and sock_diag(7). Processes are named by their number and
// their start, since a number is another's one day.
package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one as /proc/PID/stat tells it (proc_pid_stat(5)).
type Process struct {
	PID, Parent int
	Start       uint64 // in clock ticks since the machine's start
	Threads     int
	Kernel      bool // it is a thread of the kernel
	Exiting     bool
}

// Flags of a process.
const (
	flagExiting = 0x00000004 // PF_EXITING
	flagKernel  = 0x00200000 // PF_KTHREAD
)

// clockTicks is how many ticks of Start are a second on every Linux of ours.
const clockTicks = 100

// Read reads a file of /proc or of a cgroup into buf, or into a longer buffer when it does not fit. It is what os.ReadFile does with half
// of the system calls, for files that are read hundreds of times a second.
func Read(path string, buf []byte) ([]byte, error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for n := 0; ; {
		if n == len(buf) {
			buf = append(buf, make([]byte, max(len(buf), 4096))...)
		}
		got, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf[n:]) })
		if err != nil || got == 0 {
			return buf[:n], err
		}
		n += got
	}
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// ReadProcess looks at a process, by way of buf.
func ReadProcess(pid int, buf []byte) (Process, error) {
	b, err := Read("/proc/"+strconv.Itoa(pid)+"/stat", buf)
	if err != nil {
		return Process{}, err
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]) // the name before it may hold anything
	if len(f) < 20 {
		return Process{}, fmt.Errorf("process %d has a short stat", pid)
	}
	p := Process{PID: pid}
	var flags uint64
	p.Parent, err = strconv.Atoi(string(f[1]))
	if err == nil {
		flags, err = strconv.ParseUint(string(f[6]), 10, 64)
	}
	if err == nil {
		p.Threads, err = strconv.Atoi(string(f[17]))
	}
	if err == nil {
		p.Start, err = strconv.ParseUint(string(f[19]), 10, 64)
	}
	p.Kernel, p.Exiting = flags&flagKernel != 0, flags&flagExiting != 0
	return p, err
}

// Processes looks at all that there are, by their number.
func Processes(buf []byte) map[int]Process {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	all := make(map[int]Process, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if p, err := ReadProcess(pid, buf); err == nil {
			all[pid] = p
		}
	}
	return all
}

// BootTime returns when the machine was started, rounded so that a process's start is the same time whenever it is told.
func BootTime() time.Time {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(now.Nano())).Round(10 * time.Millisecond)
}

// StartedAt returns when the process was started on a machine that was started at boot.
func (p Process) StartedAt(boot time.Time) time.Time {
	return boot.Add(time.Duration(p.Start) * time.Second / clockTicks).UTC().Truncate(10 * time.Millisecond)
}

// Signal sends a signal to the process, and to no other that has its number by now. To signal one that has ended succeeds.
func (p Process) Signal(s unix.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	if now, err := ReadProcess(p.PID, make([]byte, 1<<10)); err != nil || now.Start != p.Start {
		return nil // it has ended
	}
	if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	return nil
}

// Status reads the lines of /proc/PID/status that fields name, with one blank between words.
func Status(pid string, buf []byte, fields ...string) (map[string]string, error) {
	b, err := Read("/proc/"+pid+"/status", buf)
	if err != nil {
		return nil, err
	}
	status := make(map[string]string, len(fields))
	for _, field := range fields {
		_, rest, _ := bytes.Cut(b, []byte("\n"+field+":"))
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		status[field] = string(bytes.Join(bytes.Fields(line), []byte(" ")))
	}
	return status, nil
}

// Command returns a process's arguments, or its name when it has none, cut to so many bytes; "" when it is gone.
func Command(pid, most int) string {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	b, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	text := strings.Join(strings.FieldsFunc(string(b), func(r rune) bool { return r == 0 }), " ")
	if text == "" {
		b, _ = os.ReadFile(filepath.Join(dir, "comm"))
		text = strings.TrimSpace(string(b))
	}
	return Cut(text, most)
}

// Cut makes text of others valid, and cuts it to so many bytes.
func Cut(text string, most int) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// SameProgram reports whether two processes run the same file. "self" is this one.
func SameProgram(pid, other string) bool {
	var one, two unix.Stat_t
	return unix.Stat("/proc/"+pid+"/exe", &one) == nil && unix.Stat("/proc/"+other+"/exe", &two) == nil && one.Dev == two.Dev && one.Ino == two.Ino
}

// HoldsSocket reports whether a process has a socket open.
func HoldsSocket(pid int, inode uint32) bool {
	dir, err := os.Open("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return false
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	socket := fmt.Sprintf("socket:[%d]", inode)
	return slices.ContainsFunc(names, func(name string) bool {
		link, _ := os.Readlink(dir.Name() + "/" + name)
		return link == socket
	})
}
