package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime/local/wire"
)

// sweep removes what is left of an instance that no launcher knows: one that died while it made it got as far as
// a cgroup, a process that waits for its parent, or a state directory.
func (l *launcher) sweep(id string) error {
	if id == "" || id != filepath.Base(id) || id[0] == '.' {
		return fault.Errorf(fault.Invalid, "%q can't be an instance", id)
	}
	var spec specs.Spec
	err := readJSON(filepath.Join(l.newRecord(id, wire.Create{}).bundle(), "config.json"), &spec)
	if err == nil && spec.Linux != nil {
		err = killGroup(spec.Linux.CgroupsPath)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sweeping instance %s: %w", id, err)
	}
	return os.RemoveAll(filepath.Join(l.stateDir(), id))
}

// killGroup kills every process of a cgroup and deletes it.
func killGroup(path string) error {
	m, err := manager.New(&cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{}})
	if err != nil {
		return err
	}
	if err := killMembers(m.GetPaths()); err != nil {
		return err
	}
	return m.Destroy() // retries while they end
}

// killMembers kills every process that is in one of the cgroups: of an instance whose first process is gone only somebody from outside can
// be left, who would keep it from being removed.
func killMembers(groups map[string]string) error {
	for _, dir := range groups {
		pids, err := cgroups.GetAllPids(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}
