package tampering

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Limit writes a limit of the instance's cgroup: the file of version 1 of a controller, or that of version 2.
func Limit(controller, v1, v2, value string) Act {
	return func(t Target) (func(), error) {
		file, err := t.limit(controller, v1, v2)
		if err != nil {
			return nil, err
		}
		return nothing, os.WriteFile(file, []byte(value), 0)
	}
}

// limit finds the file of a limit.
func (t Target) limit(controller, v1, v2 string) (string, error) {
	dirs, err := t.groups()
	if err != nil {
		return "", err
	}
	for _, dir := range dirs {
		if strings.HasPrefix(dir, filepath.Join("/sys/fs/cgroup", controller)+"/") && exists(filepath.Join(dir, v1)) {
			return filepath.Join(dir, v1), nil
		}
		if exists(filepath.Join(dir, v2)) {
			return filepath.Join(dir, v2), nil
		}
	}
	return "", fmt.Errorf("%s has no limit of %s", t.ID, controller)
}

// raiseMemory doubles the limit of memory.
func raiseMemory(t Target) (func(), error) {
	file, err := t.limit("memory", "memory.limit_in_bytes", "memory.max")
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n > 1<<40 {
		return nil, fmt.Errorf("%s has no limit of memory: %s", t.ID, b)
	}
	// Where swap is limited as well, what both are together can't be less than memory.
	both := filepath.Join(filepath.Dir(file), "memory.memsw.limit_in_bytes")
	if exists(both) {
		if err := os.WriteFile(both, []byte(strconv.FormatInt(2*n, 10)), 0); err != nil {
			return nil, err
		}
	}
	return nothing, os.WriteFile(file, []byte(strconv.FormatInt(2*n, 10)), 0)
}

func freeCPU(t Target) (func(), error) {
	file, err := t.limit("cpu", "cpu.cfs_quota_us", "cpu.max")
	if err != nil {
		return nil, err
	}
	value := "max"
	if filepath.Base(file) == "cpu.cfs_quota_us" {
		value = "-1"
	}
	return nothing, os.WriteFile(file, []byte(value), 0)
}
