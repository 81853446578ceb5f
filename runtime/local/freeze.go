package local

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
)

// freezeWithin bounds how long the processes of an instance may take to stand still: one that is in the middle of a write to a slow disk
// does so when that is over.
const freezeWithin = 5 * time.Second

// freezer is where an instance's processes are stopped. What it says is in the kernel alone, so that any Host knows it.
type freezer struct {
	dir  string // of the cgroup
	v2   bool
	file string // to write to
}

func (h *Host) freezer(id instance.ID) freezer {
	group := h.group(id)
	if h.features.CgroupVersion == 2 {
		dir := "/sys/fs/cgroup" + group
		return freezer{dir, true, filepath.Join(dir, "cgroup.freeze")}
	}
	dir := "/sys/fs/cgroup/freezer" + group
	return freezer{dir, false, filepath.Join(dir, "freezer.state")}
}

// probeFreezer makes a group to see whether it could be frozen.
func probeFreezer(version int) Feature {
	lack := Feature{Detail: "no cgroup freezer: instances that differ can't be frozen, and are replaced without evidence"}
	root, file := "/sys/fs/cgroup/freezer", "freezer.state"
	switch version {
	case 2:
		root, file = "/sys/fs/cgroup", "cgroup.freeze"
	case 0:
		return lack
	}
	dir := filepath.Join(root, "invar-probe-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return lack
	}
	defer unix.Rmdir(dir)
	if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
		return lack
	}
	return Feature{OK: true, Detail: fmt.Sprintf("cgroup v%d freezer", version)}
}

// frozen reports whether the processes stand still, or are about to.
func (f freezer) frozen() bool {
	b, err := os.ReadFile(f.file)
	state := strings.TrimSpace(string(b))
	return err == nil && (state == "1" || state == "FROZEN" || state == "FREEZING")
}

// still reports whether all of them do.
func (f freezer) still() (bool, error) {
	file, want := f.file, "FROZEN"
	if f.v2 {
		file, want = filepath.Join(f.dir, "cgroup.events"), "frozen 1"
	}
	b, err := os.ReadFile(file)
	return strings.Contains(string(b), want), err
}

func (f freezer) set(freeze bool) error {
	text := map[bool]string{true: "FROZEN", false: "THAWED"}[freeze]
	if f.v2 {
		text = map[bool]string{true: "1", false: "0"}[freeze]
	}
	return os.WriteFile(f.file, []byte(text), 0)
}

// freeze returns when all processes stand still.
func (f freezer) freeze(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, freezeWithin)
	defer cancel()
	for {
		if err := f.set(true); err != nil { // again each time: v1 gives up on processes that were made meanwhile
			return err
		}
		if ok, err := f.still(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fault.Errorf(fault.Unavailable, "its processes do not stand still within %v", freezeWithin)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// end kills frozen processes as they stand. With cgroup v1 they die when they are thawed: a signal that waits for each is the first thing
// that it sees, so that none runs on.
func (f freezer) end() error {
	if !f.frozen() {
		return nil
	}
	filepath.WalkDir(f.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "cgroup.procs" {
			return nil
		}
		b, _ := os.ReadFile(path)
		for _, pid := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(pid); err == nil {
				unix.Kill(n, unix.SIGKILL)
			}
		}
		return nil
	})
	return f.set(false)
}

// Freeze implements runtime.Host.
func (h *Host) Freeze(ctx context.Context, id instance.ID) error {
	i, err := h.running(id)
	if err != nil {
		return fmt.Errorf("freezing instance %s: %w", id, err)
	}
	if !h.features.Freezer.OK {
		return fault.Errorf(fault.Invalid, "freezing instance %s: %s", id, h.features.Freezer.Detail)
	}
	h.mu.Lock()
	if i.checks != nil {
		i.checks()
	}
	h.mu.Unlock()
	if err := h.freezer(id).freeze(ctx); err != nil {
		return unavailable(fmt.Errorf("freezing instance %s: %w", id, err))
	}
	return nil
}

// running returns an instance that runs.
func (h *Host) running(id instance.ID) (*inst, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, ok := h.instances[id]
	switch {
	case !ok || i.seen.State == instance.Absent:
		return nil, fault.Errorf(fault.NotFound, "it is not on this host")
	case i.seen.State != instance.Running:
		return nil, fault.Errorf(fault.Conflict, "it does not run")
	}
	return i, nil
}
