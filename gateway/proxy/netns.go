package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/kernel"
)

// connectTimeout bounds one connect. On loopback it only runs out when the listener's queue is full.
const connectTimeout = 3 * time.Second

// sockets makes TCP sockets inside network namespaces.
type sockets struct {
	home *os.File // the namespace of this process
}

func newSockets() (*sockets, error) {
	home, err := kernel.HomeNetwork()
	return &sockets{home}, err
}

// make returns a non-blocking IPv4 TCP socket that lives in ns.
func (s *sockets) make(ns *os.File) (int, error) {
	return kernel.SocketIn(ns, s.home, unix.AF_INET, unix.SOCK_STREAM, 0)
}

// dialError is a connection that could not be made: nothing was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// dial connects to an IPv4 address inside ns. Its errors are dialErrors.
func (s *sockets) dial(ctx context.Context, ns *os.File, to netip.AddrPort) (*net.TCPConn, error) {
	conn, err := s.connect(ctx, ns, to)
	if err != nil {
		return nil, &dialError{fmt.Errorf("connecting to %s: %w", to, err)}
	}
	return conn, nil
}

func (s *sockets) connect(ctx context.Context, ns *os.File, to netip.AddrPort) (*net.TCPConn, error) {
	fd, err := s.make(ns)
	if err != nil {
		return nil, err
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	if errors.Is(err, unix.EINPROGRESS) {
		err = finishConnect(ctx, f)
	}
	if err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// finishConnect waits until the socket is connected, refused, or out of time.
func finishConnect(ctx context.Context, f *os.File) error {
	if err := f.SetWriteDeadline(time.Now().Add(connectTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) (done bool) {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		if err == nil {
			// Asked before waiting: the event of a connection made meanwhile does not come again.
			_, err = unix.Getpeername(int(fd))
		}
		if errors.Is(err, unix.ENOTCONN) {
			return false
		}
		result = err
		return true
	})
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	return result
}

// listen listens on an IPv4 address inside ns.
func (s *sockets) listen(ns *os.File, on netip.AddrPort) (*net.TCPListener, error) {
	fd, err := s.make(ns)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(on.Port()), Addr: on.Addr().As4()}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}
