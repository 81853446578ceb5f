package proxy

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// ownGroup is the cgroup of gateways, in the hierarchies by which a service manager finds the processes of a service: cgroup v2, and
// v1's name=systemd.
const ownGroup = "invar-gateway"

func ownGroups() (dirs []string) {
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		if _, err := os.Stat(filepath.Join(hierarchy, "cgroup.procs")); err == nil {
			dirs = append(dirs, filepath.Join(hierarchy, ownGroup))
		}
	}
	return dirs
}

// leaveService moves this process out of the server's cgroup: else, a service manager that stops the server would kill the gateway too. Where that
// can't be done, the gateway works as well, until then.
func leaveService(log *slog.Logger) {
	for _, dir := range ownGroups() {
		if err := enterGroup(dir); err != nil {
			log.Warn("staying in the server's cgroup", "error", err)
		}
	}
}

func enterGroup(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		return fmt.Errorf("entering cgroup %s: %w", dir, err)
	}
	return nil
}

// removeGroups deletes the groups unless another gateway is in them.
func removeGroups() {
	for _, dir := range ownGroups() {
		unix.Rmdir(dir)
	}
}
