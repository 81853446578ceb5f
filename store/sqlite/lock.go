package sqlite

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
)

const lockName = "lock"

// lockDir takes the lock of a directory until the returned file is closed.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.As(fault.NotFound, err)
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		return nil, held(f, err)
	}
	// The process id is for people; the lock itself does not depend on it. A full disk does not matter.
	if err := f.Truncate(0); err == nil {
		fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return f, nil
}

// held explains a lock that could not be taken.
func held(f *os.File, err error) error {
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	pid := "unknown"
	if b, err := os.ReadFile(f.Name()); err == nil && len(b) > 0 {
		pid = strings.TrimSpace(string(b))
	}
	return fault.WithHint(fault.Errorf(fault.Conflict, "the directory is in use by process %s", pid),
		"Stop that server first, or use another data directory.")
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
