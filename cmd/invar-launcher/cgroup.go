package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// ownGroup is the launcher's group beside those of its instances. It can't be an instance's ID.
const ownGroup = "_launcher"

// leaveServer moves this process out of the server's cgroup in the hierarchies by which a service manager finds the processes
// of a service (cgroup v2, and v1's name=systemd): else, stopping the server would kill the launcher. Where it can't be
// done (no such hierarchy, or read-only), the launcher works as well, until then.
func leaveServer(dir string) {
	group := filepath.Join("invar-"+filepath.Base(dir), ownGroup)
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		if _, err := os.Stat(filepath.Join(hierarchy, "cgroup.procs")); err != nil {
			continue
		}
		if err := enter(filepath.Join(hierarchy, group)); err != nil {
			fmt.Fprintf(os.Stderr, "invar-launcher: staying in the server's cgroup: %v\n", err)
		}
	}
}

func enter(group string) error {
	if err := os.MkdirAll(group, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}
