package proxy

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/kernel"
)

// process is a process as it was when it became the gateway.
type process struct {
	kernel.Process
	exe    file
	socket string // its own control socket, as socketAt tells it
}

// file names a file whatever its path is, also when that is gone.
type file struct{ dev, ino uint64 }

func (f file) String() string { return fmt.Sprintf("file %d of device %d", f.ino, f.dev) }

// ofProcess looks at a process.
func ofProcess(pid int) (process, error) {
	p, err := kernel.ReadProcess(pid, make([]byte, 1<<10))
	if err != nil {
		return process{}, err
	}
	exe, err := fileAt(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	return process{Process: p, exe: exe}, err
}

// fileAt looks at a file, through links.
func fileAt(path string) (file, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return file{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return file{st.Dev, st.Ino}, nil
}

// maxCommand is how much of a process's arguments is told.
const maxCommand = 120

// processName says what a process is, for people, as far as it is still there.
func processName(pid, uid int) string {
	command := kernel.Command(pid, maxCommand)
	if command == "" {
		command = "gone"
	}
	return fmt.Sprintf("process %d (%s, user %d)", pid, command, uid)
}
