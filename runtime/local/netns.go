package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/kernel"
)

// nets makes network namespaces with nothing but a loopback, some ahead, and pins each to a file, so that another process
// (the gateway) can enter it by path.
type nets struct {
	dir   string
	ready chan *os.File
}

func newNets(dir string, ahead int) *nets { return &nets{dir: dir, ready: make(chan *os.File, ahead)} }

func (n *nets) path(id string) string { return filepath.Join(n.dir, id) }

// fill keeps namespaces ready until ctx ends.
func (n *nets) fill(ctx context.Context) {
	for ctx.Err() == nil {
		ns, err := newNetwork()
		if err != nil {
			select { // pin tells the error when it tries itself
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		select {
		case n.ready <- ns:
		case <-ctx.Done():
			ns.Close()
		}
	}
}

func (n *nets) drain() {
	for {
		select {
		case ns := <-n.ready:
			ns.Close()
		default:
			return
		}
	}
}

// pin gives the instance a namespace, and returns its path.
func (n *nets) pin(id string) (string, error) {
	var ns *os.File
	select {
	case ns = <-n.ready:
	default:
		var err error
		if ns, err = newNetwork(); err != nil {
			return "", err
		}
	}
	defer ns.Close()
	at := n.path(id)
	if err := n.release(id); err != nil { // of a creation that failed
		return "", err
	}
	f, err := os.OpenFile(at, os.O_CREATE|os.O_RDONLY, 0o400)
	if err != nil {
		return "", err
	}
	f.Close()
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(int(ns.Fd())), at, "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("pinning a network namespace to %s: %w", at, err)
	}
	return at, nil
}

// release unpins the namespace of an instance. It ends with the last process and socket in it.
func (n *nets) release(id string) error {
	if err := unmountAndDelete(n.path(id)); err != nil {
		return fmt.Errorf("unpinning the network namespace of %s: %w", id, err)
	}
	return nil
}

// newNetwork makes a namespace on a thread that ends with it: a thread must not come back from there.
func newNetwork() (*os.File, error) {
	type result struct {
		ns  *os.File
		err error
	}
	done := make(chan result, 1)
	onDoomedThread(func() {
		ns, err := enterNewNetwork()
		done <- result{ns, err}
	})
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", r.err)
	}
	return r.ns, nil
}

// onDoomedThread runs act on a thread that ends afterwards, whatever act changed about it. The process's first thread can't
// end: it would stay as act left it, and /proc/self, which is that thread's, would tell every reader the wrong
// namespaces. So when act would run there, that thread is held until another one has run it.
func onDoomedThread(act func()) {
	go func() {
		goruntime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			act()
			return // without unlocking: the thread ends
		}
		defer goruntime.UnlockOSThread()
		done := make(chan struct{})
		go func() {
			defer close(done)
			goruntime.LockOSThread()
			act()
		}()
		<-done
	}()
}

func enterNewNetwork() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	if err := loopbackUp(); err != nil {
		return nil, fmt.Errorf("raising the loopback: %w", err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0); err != nil {
		return nil, err
	}
	return os.Open("/proc/thread-self/ns/net")
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

// dialIn connects to a port of the loopback inside the namespace at path. Only socket(2) runs inside:
// a socket keeps the namespace that it was made in.
func dialIn(ctx context.Context, path string, port int) (net.Conn, error) {
	fd, err := kernel.SocketAt(path, unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close() // the connection has a duplicate
	if err := connect(ctx, f, port); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

func connect(ctx context.Context, f *os.File, port int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	deadline, ok := ctx.Deadline()
	if ok {
		f.SetWriteDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	address := &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	var result error
	began := false
	err = raw.Write(func(fd uintptr) bool {
		if !began {
			began = true
			result = unix.Connect(int(fd), address)
			return !errors.Is(result, unix.EINPROGRESS)
		}
		result = connected(int(fd))
		return !errors.Is(result, unix.ENOTCONN) // woken too early: a new socket counts as hung up
	})
	return errors.Join(err, result)
}

// connected returns nil for a connected socket, ENOTCONN for one that still connects, and else why it did not.
func connected(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if n != 0 {
		return unix.Errno(n)
	}
	_, err = unix.Getpeername(fd)
	return err
}
