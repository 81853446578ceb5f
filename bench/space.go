package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// space makes a network namespace with nothing but a loopback, for the peers, which don't make such themselves. It returns its path.
func (b *bench) space(serial int) (path string, drop func(), err error) {
	name := fmt.Sprintf("%s-%d", filepath.Base(b.dir), serial)
	err = elsewhere(func() error {
		ns, err := netns.NewNamed(name)
		if err != nil {
			return fmt.Errorf("making the network namespace %s: %w", name, err)
		}
		defer ns.Close()
		return loopbackUp()
	})
	drop = func() { netns.DeleteNamed(name) }
	return "/run/netns/" + name, drop, err
}

// elsewhere runs act on a thread that ends afterwards. The main goroutine holds the first thread, so it is never that one.
func elsewhere(act func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		result <- act()
	}()
	return <-result
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo)
}

// accepted waits inside a network namespace until a port of its loopback accepts, and returns when that was.
func accepted(ctx context.Context, path string, port int) (at time.Time, err error) {
	err = elsewhere(func() error {
		ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening the network namespace %s: %w", path, err)
		}
		defer unix.Close(ns)
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering the network namespace %s: %w", path, err)
		}
		for deadline := time.Now().Add(15 * time.Second); ctx.Err() == nil; {
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			err = unix.Connect(s, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
			at = time.Now()
			unix.Close(s)
			if err == nil {
				return nil
			}
			if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EINTR) || at.After(deadline) {
				return fmt.Errorf("connecting to port %d in %s: %w", port, path, err)
			}
			wait := unix.NsecToTimespec(int64(150 * time.Microsecond))
			unix.Nanosleep(&wait, nil)
		}
		return ctx.Err()
	})
	return at, err
}
