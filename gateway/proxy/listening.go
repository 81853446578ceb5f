package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/drift"
)

// held is a socket on which this machine is reached, of which this process has a descriptor.
type held struct {
	file     *os.File
	protocol string // "tcp", "udp"
	address  netip.AddrPort
	inode    uint64
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
	var out []drift.Oddity
	owners := map[uint64]string{}
	for _, h := range list {
		fact := func(field, value string) drift.Fact {
			return drift.Fact{Kind: drift.Listener, Field: field, Value: value}
		}
		field := h.protocol + " " + h.address.String()
		others, err := listening(h.protocol, h.address.Port())
		if err != nil {
			return nil, err
		}
		got := []drift.Fact{fact(field, ours)}
		for _, o := range others {
			if o.inode == h.inode || !takesFrom(h.address, o.address) {
				continue
			}
			if owners[o.inode] == "" {
				owners[o.inode] = s.ownerOf(o.inode, o.uid)
			}
			got = append(got, fact(h.protocol+" "+o.address.String(), owners[o.inode]))
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
	h.inode, h.shared = st.Ino, shared != 0
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

// bound is a socket that the kernel tells of.
type bound struct {
	address netip.AddrPort
	uid     uint32
	inode   uint64
}

// inetRequest is struct inet_diag_req_v2 of linux/inet_diag.h: the sockets on a port.
type inetRequest struct {
	family, protocol uint8
	states           uint32
	port             uint16
}

const (
	sizeofInetRequest = 56
	sizeofInetMessage = 72 // struct inet_diag_msg
	stateClose        = 7  // of TCP, in linux/tcp_states.h; of a UDP socket that is not connected
	stateListen       = 10
)

// Len implements nl.NetlinkRequestData.
func (r inetRequest) Len() int { return sizeofInetRequest }

// Serialize implements nl.NetlinkRequestData.
func (r inetRequest) Serialize() []byte {
	b := make([]byte, sizeofInetRequest)
	b[0], b[1] = r.family, r.protocol
	binary.NativeEndian.PutUint32(b[4:], r.states)
	binary.BigEndian.PutUint16(b[8:], r.port)
	return b
}

// listening asks the kernel who listens on a port, whatever the address is. It is asked for these sockets only, not for all connections.
func listening(protocol string, port uint16) ([]bound, error) {
	r := inetRequest{protocol: unix.IPPROTO_TCP, states: 1 << stateListen, port: port}
	if protocol == "udp" {
		r.protocol, r.states = unix.IPPROTO_UDP, 1<<stateClose
	}
	var out []bound
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		r.family = family
		q := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		q.AddData(r)
		messages, err := q.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
		if errors.Is(err, unix.ENOENT) {
			continue // no such sockets, or no such kernel module
		}
		if err != nil {
			return nil, fmt.Errorf("asking who listens on port %d: %w", port, err)
		}
		for _, m := range messages {
			if b, ok := parseBound(m); ok && b.address.Port() == port {
				out = append(out, b)
			}
		}
	}
	return out, nil
}

func parseBound(m []byte) (bound, bool) {
	if len(m) < sizeofInetMessage {
		return bound{}, false
	}
	address, _ := netip.AddrFromSlice(m[8:24])
	if m[0] == unix.AF_INET {
		address, _ = netip.AddrFromSlice(m[8:12])
	}
	return bound{
		address: netip.AddrPortFrom(address, binary.BigEndian.Uint16(m[4:])), uid: binary.NativeEndian.Uint32(m[64:]),
		inode: uint64(binary.NativeEndian.Uint32(m[68:])),
	}, true
}

// ownerOf says whose a socket is, for people. It reads the descriptors of all processes, once for each socket that is not ours.
func (s *Supervisor) ownerOf(inode uint64, uid uint32) string {
	if known := s.owners[inode]; known != "" {
		return known
	}
	link := fmt.Sprintf("socket:[%d]", inode)
	found, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is well-formed
	for _, fd := range found {
		if to, err := os.Readlink(fd); err == nil && to == link {
			if pid, err := strconv.Atoi(strings.Split(fd, "/")[2]); err == nil {
				return nameOf(pid)
			}
		}
	}
	return fmt.Sprintf("a socket of user %d, of no process that can be seen", uid)
}
