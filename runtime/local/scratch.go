package local

import (
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
)

// Nothing in a scratch can be executed: it is mounted noexec, which is a fact of its own. A file in one with a mode to execute is a finding
// nevertheless: somebody means to run it, by an interpreter or once the mount is another.
const (
	scratchBudget = 200 // files of an instance that one look examines; a directory is examined as a whole, and what that is more is left out later
	maxExecutable = 8   // that are told
)

// scratchMemory is how far the looks have come in the scratches.
type scratchMemory struct {
	pending []string // directories whose turn comes, as places in the instance
	found   []string // files that were executable when they were examined last
	debt    int      // files examined beyond the budget of the looks so far
}

// lookAtScratches looks for regular files that can be executed: those that were found before, and as many others as the budget allows.
func (x *inspection) lookAtScratches() error {
	if len(x.e.scratches) == 0 {
		return nil
	}
	root, err := unix.Open(x.proc("root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fault.As(fault.Conflict, err)
	}
	defer unix.Close(root)
	s := &x.m.scratch
	s.found = slices.DeleteFunc(s.found, func(at string) bool { return !stillExecutable(root, at) })
	s.debt = max(0, s.debt-scratchBudget)
	for began := false; s.debt < scratchBudget; {
		if len(s.pending) == 0 {
			if began {
				break // all were examined
			}
			began = true
			s.pending = slices.Clone(x.e.scratches)
		}
		next := s.pending[0]
		s.pending = s.pending[1:]
		s.debt += x.examine(root, next)
	}
	for _, at := range s.found {
		x.find(drift.Writable, strings.ToValidUTF8(at, "?"), "executable")
	}
	return nil
}

func executable(st unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o111 != 0
}

// openInside opens a place in the instance, which may change it meanwhile but can't lead elsewhere: no link is followed.
func openInside(root int, at string, flags uint64) (int, error) {
	return unix.Openat2(root, at, &unix.OpenHow{Flags: flags | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS})
}

func stillExecutable(root int, at string) bool {
	fd, err := openInside(root, at, unix.O_PATH)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && executable(st)
}

// examine looks at one directory of a scratch, and returns how many files it has. What another mount covers is left alone.
func (x *inspection) examine(root int, at string) (files int) {
	fd, err := openInside(root, at, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return 1 // it is gone, or never was one
	}
	dir := os.NewFile(uintptr(fd), at)
	defer dir.Close()
	var own, st unix.Stat_t
	if unix.Fstat(fd, &own) != nil || !slices.Contains(x.m.mounts.scratches, own.Dev) {
		return 1
	}
	names, _ := dir.Readdirnames(-1) // what it can't tell now, it does at a later look
	for _, name := range names {
		if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != own.Dev {
			continue
		}
		inside := path.Join(at, name)
		switch s := &x.m.scratch; {
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			s.pending = append(s.pending, inside)
		case executable(st) && len(s.found) < maxExecutable && !slices.Contains(s.found, inside):
			s.found = append(s.found, inside)
		}
	}
	return len(names) + 1
}
