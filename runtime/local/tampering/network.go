package tampering

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// undeclared is a port that no instance of the tests declares.
const undeclared = 9999

// Listen opens a TCP listener in the instance's network, which is held by this process and by none of the instance.
func Listen(t Target) (func(), error) {
	return t.open(unix.SOCK_STREAM, func(fd int) error { return os.NewSyscallError("listen", unix.Listen(fd, 1)) })
}

// ListenUDP opens a socket that takes datagrams, in the same way.
func ListenUDP(t Target) (func(), error) {
	return t.open(unix.SOCK_DGRAM, func(int) error { return nil })
}

// open opens a socket in the instance's network. Sockets stay in the network in which they were made.
func (t Target) open(kind int, ready func(fd int) error) (func(), error) {
	ns, err := unix.Open(t.proc("ns/net"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(ns)
	fd := -1
	err = onThread(func() error {
		err := os.NewSyscallError("setns", unix.Setns(ns, unix.CLONE_NEWNET))
		if err == nil {
			fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("a socket in the network of %s: %w", t.ID, err)
	}
	err = unix.Bind(fd, &unix.SockaddrInet4{Port: undeclared, Addr: [4]byte{127, 0, 0, 1}})
	if err = errors.Join(os.NewSyscallError("bind", err), ready(fd)); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return func() { unix.Close(fd) }, nil
}

// Connect puts a pair of interfaces between the instance's network and the machine's.
func Connect(t Target) (func(), error) {
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("invar%d", t.PID)}, PeerName: "eth0", PeerNamespace: netlink.NsPid(t.PID),
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("connecting the network of %s: %w", t.ID, err)
	}
	return func() { netlink.LinkDel(pair) }, nil
}

// OtherNetwork pins another network where server and gateway look for the instance's: its port is the intruder's, who answers well.
func OtherNetwork(t Target) (func(), error) {
	s, err := t.spec()
	if err != nil {
		return nil, err
	}
	if len(s.Ports) == 0 {
		return nil, fmt.Errorf("%s has no port", t.ID)
	}
	at := filepath.Join(t.Run, "netns", t.ID)
	return hold(func() (func(), error) {
		if err := enterNewNetwork(); err != nil {
			return nil, err
		}
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", s.Ports[0])) // on this thread, as all of it is
		if err != nil {
			return nil, err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", at, "", unix.MS_BIND, ""); err != nil {
			return nil, errors.Join(os.NewSyscallError("mount", err), l.Close())
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the intruder's\n") })}
		go server.Serve(l)
		return func() { server.Close() }, nil // the server that retires the instance takes the mount away
	})
}

// enterNewNetwork has this thread enter a network of its own, whose loopback is up.
func enterNewNetwork() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return os.NewSyscallError("ioctl", unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo))
}
