package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/kernel"
)

// DialIn is for tests that talk to what runs in an instance.
var DialIn = dialIn

// DeleteLogs is what a removal does at most once a minute.
func (h *Host) DeleteLogs(now time.Time) error { return h.deleteLogs(now) }

// Restrict makes the host believe that its machine has less.
func (h *Host) Restrict(less func(*Features)) {
	less(&h.features)
	h.roots.features, h.trees.features = h.features, h.features
}

// Scanner returns what one look for foreign processes is.
func (h *Host) Scanner() func() {
	s := newScanner(h)
	return func() { s.scan() }
}

// Run is the run directory.
func (h *Host) Run() string { return h.run }

// RootFile and RootMount are where a root is.
func (h *Host) RootFile(id instance.ID) string { return h.roots.file(h.find(id).spec.Root) }
func (h *Host) RootMount(id instance.ID) string {
	return filepath.Join(h.roots.mounts, h.find(id).spec.Root.Hex())
}

// MountIn puts a mount on a path in another mount namespace.
func MountIn(ns, mount int, at string) error {
	done := make(chan error)
	onDoomedThread(func() {
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(ns, unix.CLONE_NEWNS)
		}
		if err == nil {
			err = unix.MoveMount(mount, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
		done <- err
	})
	return <-done
}

// ListenIn listens on the loopback of a network.
func ListenIn(path string, port int) (int, error) {
	fd, err := kernel.SocketAt(path, unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 1))
	}
	return fd, err
}

// BindIn takes an UDP port of the loopback of a network.
func BindIn(path string, port int) (int, error) {
	fd, err := kernel.SocketAt(path, unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	}
	return fd, err
}

// Sight returns a look for strays, which returns those that two looks in a row found.
func (h *Host) Sight() func() []string {
	s := newScanner(h)
	before := map[string]stray{}
	return func() (twice []string) {
		_, found := s.scan()
		for field, f := range found {
			if _, ok := before[field]; ok {
				twice = append(twice, field+": "+f.found)
			}
		}
		before = found
		return twice
	}
}

// Sweep reads a root again as its turn comes, at a rate in bytes per second.
func (h *Host) Sweep(ctx context.Context, d digest.Digest, bytesPerSecond int) (digest.Digest, error) {
	return h.roots.sweep(ctx, d, bytesPerSecond)
}

// Reseal takes a root's file for the one that was hashed: as if it had changed below the file system.
func (h *Host) Reseal(d digest.Digest) error {
	f, err := os.Open(h.roots.file(d))
	if err != nil {
		return err
	}
	defer f.Close()
	return h.roots.sealRoot(f, d)
}

// NextToSweep tells whose turn it is.
var NextToSweep = nextToSweep
