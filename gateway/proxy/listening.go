package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/kernel"
)

// held is a socket on which this machine is reached, of which this process has a descriptor.
type held struct {
	file     *os.File
	protocol string // "tcp", "udp"
	address  netip.AddrPort
	inode    uint32
	shared   bool // whether others may listen on the same address
}

// ours is what the sockets of the machine are told to be that are this server's.
const ours = "the server's own"

// lookAtListeners compares who listens on the addresses of the host's sockets with who should. Sockets inside instances are looked at with
// the instances. The caller holds mu.
func (s *Supervisor) lookAtListeners() ([]drift.Oddity, error) {
	list, err := s.heldSockets()
	if err != nil {
		return nil, err
	}
	waiting, err := listening()
	if err != nil {
		return nil, fmt.Errorf("asking who listens on this machine: %w", err)
	}
	var out []drift.Oddity
	owners := map[uint32]string{}
	for _, h := range list {
		fact := func(field, value string) drift.Fact {
			return drift.Fact{Kind: drift.Listener, Field: field, Value: value}
		}
		field := h.protocol + " " + h.address.String()
		got := []drift.Fact{fact(field, ours)}
		for _, o := range waiting {
			if o.Network != h.protocol || o.Inode == h.inode || !takesFrom(h.address, o.At) {
				continue
			}
			if owners[o.Inode] == "" {
				owners[o.Inode] = s.ownerOf(o.Inode, o.UID)
			}
			got = append(got, fact(o.String(), owners[o.Inode]))
		}
		out = append(out, drift.Odd(drift.Alert, drift.Compare(drift.Of(fact(field, ours)), drift.Of(got...)))...)
		if h.shared {
			shared := drift.Of(fact(field+" shared", "others may listen on the same address"))
			out = append(out, drift.Odd(drift.Restore, drift.Compare(drift.Facts{}, shared))...)
		}
	}
	s.owners = owners // those of sockets that are gone are forgotten
	return out, nil
}

// heldSockets returns the sockets of the machine's own network. The caller holds mu.
func (s *Supervisor) heldSockets() ([]held, error) {
	files := append([]*os.File(nil), s.watched...)
	for name, f := range s.sockets {
		if isHostKey(name) || strings.HasPrefix(name, "tcp/") {
			files = append(files, f)
		}
	}
	var out []held
	for _, f := range files {
		h, err := holding(f)
		if err != nil {
			return nil, fmt.Errorf("looking at socket %s: %w", f.Name(), err)
		}
		out = append(out, h)
	}
	return out, nil
}

func holding(f *os.File) (held, error) {
	h := held{file: f, protocol: "tcp"}
	fd, err := descriptor(f)
	if err != nil {
		return h, err
	}
	var st unix.Stat_t
	name, nameErr := unix.Getsockname(fd)
	kind, kindErr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	shared, sharedErr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	if err := errors.Join(unix.Fstat(fd, &st), nameErr, kindErr, sharedErr); err != nil {
		return h, err
	}
	h.inode, h.shared = uint32(st.Ino), shared != 0
	if kind == unix.SOCK_DGRAM {
		h.protocol = "udp"
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		h.address = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		h.address = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	default:
		return h, errors.New("it is not of an internet address")
	}
	return h, nil
}

// takesFrom reports whether a socket on the other address gets connections that are meant for ours: the kernel prefers the more specific one.
func takesFrom(ours, other netip.AddrPort) bool {
	a, b := ours.Addr().Unmap(), other.Addr().Unmap()
	switch {
	case ours.Port() != other.Port():
		return false
	case a == b:
		return true
	case a == netip.IPv6Unspecified(): // and of IPv4, unless it was told otherwise
		return true
	case a == netip.IPv4Unspecified():
		return b.Is4()
	}
	return false
}

// keepForItself takes back that others may listen on the same addresses.
func (s *Supervisor) keepForItself() {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, err := s.heldSockets()
	if err != nil {
		s.log.Error("looking at sockets", "error", err)
		return
	}
	for _, h := range list {
		if fd, err := descriptor(h.file); err == nil && h.shared {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 0); err != nil {
				s.log.Error("keeping a socket for itself", "address", h.address, "error", err)
			}
		}
	}
}

// listening returns the sockets of this machine's own network that wait.
func listening() ([]kernel.Waiting, error) {
	d, err := kernel.OpenDiag("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	list, err := d.Waiting()
	if errors.Is(err, unix.ENOENT) { // no sock_diag in this kernel
		return kernel.WaitingIn("self"), nil
	}
	return list, err
}

// ownerOf says whose a socket is, for people. It reads the descriptors of all processes, once for each socket that is not ours.
func (s *Supervisor) ownerOf(inode uint32, uid uint32) string {
	if known := s.owners[inode]; known != "" {
		return known
	}
	for pid := range kernel.Processes(make([]byte, 4<<10)) {
		if kernel.HoldsSocket(pid, inode) {
			return nameOf(pid)
		}
	}
	return fmt.Sprintf("a socket of user %d, of no process that can be seen", uid)
}
