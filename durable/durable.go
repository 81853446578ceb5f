// Package durable writes small files so that a crash leaves the old content or the new, and locks directories.
//
// A file is written beside its place, synced, renamed over it, and the directory is synced: rename(2) replaces atomically, but
// neither content nor name survive a power failure before fsync(2) of both (see the notes of those manual pages).
//
//	err := durable.Write("keys/witness.key", []byte(key), 0o600)
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
)

// Write replaces the content of a file. When it returns nil the content is durable. After an error the file has the old
// content or the new, and never a part. What a crash leaves beside it begins with ".new-" and may be removed.
func Write(path string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when it was renamed
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Lock takes the lock of a directory, its file "lock", until the returned function is called or the process ends. It fails with
// fault.Conflict, naming the process that has it.
func Lock(dir string) (unlock func() error, err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		return nil, held(f, err)
	}
	if err := f.Truncate(0); err == nil {
		fmt.Fprintf(f, "%d\n", os.Getpid()) // for people; the lock does not depend on it
	}
	return f.Close, nil
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
	return fault.Errorf(fault.Conflict, "%s is in use by process %s", filepath.Dir(f.Name()), pid)
}
