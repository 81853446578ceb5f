package tampering

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Unseen returns what root on the machine can do and is not found. docs/security.md admits each by its name; tests make sure that it is
// still so: what becomes visible moves to Kinds.
func Unseen() []Kind {
	return []Kind{
		{Name: "a file changed and put back between two looks", Do: EditHostsBriefly},
		{Name: "the memory of a running program changed", Do: EditMemory},
		{Name: "a line forged in an instance's log", Do: ForgeLog},
		{Name: "the priority of a process changed", Do: Renice},
		{Name: "the number of files that a process may open changed", Do: LimitFiles},
	}
}

// EditHostsBriefly edits the hosts file, and puts it back a moment later.
func EditHostsBriefly(t Target) (func(), error) {
	file := filepath.Join(t.dir(), "files", "0")
	was, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if err := t.edit("0", "127.0.0.1\tevil\n"); err != nil {
		return nil, err
	}
	time.Sleep(50 * time.Millisecond)
	return nothing, os.Truncate(file, int64(len(was)))
}

// EditMemory changes a letter of the first variable that the program was started with, in its memory.
func EditMemory(t Target) (func(), error) {
	b, err := os.ReadFile(t.proc("stat"))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 48 {
		return nil, errors.New("the kernel does not tell where the variables are")
	}
	start, err := strconv.ParseInt(fields[47], 10, 64) // env_start, the fiftieth field of proc_pid_stat(5)
	if err != nil {
		return nil, err
	}
	mem, err := os.OpenFile(t.proc("mem"), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	_, err = mem.WriteAt([]byte("X"), start)
	return nothing, err
}

// ForgeLog writes a line to where the instance's output goes.
func ForgeLog(t Target) (func(), error) {
	f, err := os.OpenFile(filepath.Join(t.dir(), "stdout"), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, "all is well")
	return nothing, err
}

// Renice gives the first process the lowest priority.
func Renice(t Target) (func(), error) {
	return nothing, os.NewSyscallError("setpriority", unix.Setpriority(unix.PRIO_PROCESS, t.PID, 19))
}

// LimitFiles lets the first process open no more files than it may have already.
func LimitFiles(t Target) (func(), error) {
	few := unix.Rlimit{Cur: 256, Max: 256}
	return nothing, os.NewSyscallError("prlimit", unix.Prlimit(t.PID, unix.RLIMIT_NOFILE, &few, nil))
}
