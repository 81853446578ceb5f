package local

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/kernel"
)

// maxProcesses bounds how many processes of an instance one look examines. The next look goes on where it ended.
const maxProcesses = 256

// maxStrangers bounds how many of them are told.
const maxStrangers = 8

// lookAtProcesses makes sure that each process of the instance runs a program of the root or of a volume, as the instance's user and with no
// right that the first process lacks: helpers, sessions and health checks too. Whose descendants they are, the scan for processes from
// outside tells. Fields are their numbers, since a command that is about to become its program differs for a moment, and has
// another number at the second look.
func (x *inspection) lookAtProcesses() error {
	if x.boxed || x.h.features.CgroupVersion == 0 {
		return nil
	}
	pids, err := x.processes()
	if err != nil {
		return err
	}
	strangers := 0
	for _, pid := range x.m.turn(pids) {
		if odd := x.oddity(strconv.Itoa(pid)); odd != "" && strangers < maxStrangers {
			strangers++
			x.find(drift.Process, strconv.Itoa(pid), odd)
		}
	}
	return nil
}

// turn returns those of the processes whose turn it is, and sees to it that the others' comes.
func (m *memory) turn(pids []int) []int {
	slices.Sort(pids)
	if len(pids) <= maxProcesses {
		return pids
	}
	from, _ := slices.BinarySearch(pids, m.nextPID)
	chosen := slices.Concat(pids[from:], pids[:from])[:maxProcesses]
	m.nextPID = chosen[maxProcesses-1] + 1
	return chosen
}

// processes returns the processes in the instance's cgroup.
func (x *inspection) processes() ([]int, error) {
	path := filepath.Join("/sys/fs/cgroup", x.group(), "cgroup.procs")
	if x.h.features.CgroupVersion == 1 {
		path = filepath.Join("/sys/fs/cgroup/pids", x.group(), "cgroup.procs")
	}
	b, err := kernel.Read(path, x.buf)
	if err != nil {
		return nil, fault.As(fault.Conflict, err)
	}
	var pids []int
	for word := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// oddity says how a process is not one of the instance's own; "" for one that is, or that ends.
func (x *inspection) oddity(pid string) string {
	program, err := x.programOf(pid)
	if err != nil || program != "" {
		return program
	}
	if pid == x.pid {
		return "" // its rights are facts of their own
	}
	status, err := kernel.Status(pid, x.buf, statusFields...)
	if err != nil || status["CapEff"] == "" {
		return ""
	}
	for _, want := range x.e.rights {
		if got := status[want.Field]; got != want.Value {
			return fmt.Sprintf("%s %s instead of %s", want.Field, cmp.Or(got, "nothing"), want.Value)
		}
	}
	return ""
}

// errBecoming says of a process that the launcher started that it has not become its program yet.
var errBecoming = errors.New("it is about to become its program")

// programOf says which program a process runs that it should not; "" for one of the root or of a volume. A program that was deleted while
// it runs can be of neither any more.
func (x *inspection) programOf(pid string) (string, error) {
	exe := "/proc/" + pid + "/exe"
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, exe, 0, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st); err != nil {
		return "", err // it has ended, or has no program any more because it ends
	}
	var where string
	switch {
	case st.Nlink == 0 && kernel.SameProgram(pid, strconv.FormatInt(x.h.launcherPID.Load(), 10)):
		return "", errBecoming
	case st.Nlink == 0:
		where = "which was deleted or never was a file"
	case st.Mask&unix.STATX_MNT_ID != 0 && !slices.Contains(x.m.mounts.programs, st.Mnt_id):
		where = "which is neither of the root nor of a volume"
	default:
		return "", nil
	}
	var name [256]byte
	n, err := unix.Readlink(exe, name[:])
	if errors.Is(err, unix.ENOENT) {
		return "", err
	}
	return fmt.Sprintf("runs %s, %s", strings.ToValidUTF8(string(name[:max(n, 0)]), "?"), where), nil
}
