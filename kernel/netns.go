package kernel

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// SocketIn makes a non-blocking socket in the network ns. home is the network that this process is in. A socket keeps the network that it
// was made in, whichever thread uses it later, so only socket(2) is called inside.
func SocketIn(ns, home *os.File, domain, kind, protocol int) (int, error) {
	runtime.LockOSThread()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return -1, os.NewSyscallError("setns", err)
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked, so it ends with this goroutine and nothing else runs in the foreign network.
		if err == nil {
			unix.Close(fd)
		}
		return -1, os.NewSyscallError("setns back", back)
	}
	runtime.UnlockOSThread()
	return fd, os.NewSyscallError("socket", err)
}

// HomeNetwork opens the network that this process is in.
func HomeNetwork() (*os.File, error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("opening the network namespace of this process: %w", err)
	}
	return home, nil
}

// SocketAt is SocketIn for the network at path.
func SocketAt(path string, domain, kind, protocol int) (int, error) {
	ns, err := os.Open(path)
	if err != nil {
		return -1, fmt.Errorf("opening a network namespace: %w", err)
	}
	defer ns.Close()
	home, err := HomeNetwork()
	if err != nil {
		return -1, err
	}
	defer home.Close()
	fd, err := SocketIn(ns, home, domain, kind, protocol)
	if err != nil {
		err = fmt.Errorf("making a socket in the network namespace %s: %w", path, err)
	}
	return fd, err
}
