package kernel

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Waiting is a socket that takes what anybody sends to it: a TCP socket that listens, or a UDP socket that is bound and has no peer. A
// UDP socket with a peer, and a TCP socket that is connected or only bound, waits for nobody.
type Waiting struct {
	Network string // "tcp" or "udp"
	At      netip.AddrPort
	UID     uint32 // of who opened it, on the machine
	Inode   uint32
	Cookie  uint64 // of this socket alone, never used again; 0: not told
}

// String is "tcp ADDRESS:PORT".
func (w Waiting) String() string { return w.Network + " " + w.At.String() }

// Diag asks the kernel for the sockets of one network, by sock_diag(7). Reading /proc/PID/net/tcp would walk the table of every connection
// of the machine, and so does vishvananda/netlink, which asks for sockets of any state: only those that wait are in tables of their own.
type Diag struct {
	fd  int
	ns  unix.Stat_t // the network: its number is not used again while the socket lives
	seq uint32
	buf []byte
}

const (
	diagByFamily  = 20 // SOCK_DIAG_BY_FAMILY of linux/sock_diag.h
	stateUnbound  = 7  // TCP_CLOSE: a UDP socket without a peer
	stateListen   = 10 // TCP_LISTEN
	diagRequest   = 56 // bytes of struct inet_diag_req_v2 of linux/inet_diag.h
	diagMessage   = 72 // and of struct inet_diag_msg
	diagReadBytes = 32 << 10
)

// OpenDiag opens a socket in the network at path, which it asks about from then on.
func OpenDiag(path string) (*Diag, error) {
	d := &Diag{fd: -1, buf: make([]byte, diagReadBytes)}
	err := unix.Stat(path, &d.ns)
	if err == nil {
		d.fd, err = SocketAt(path, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG)
	}
	return d, err
}

// Close lets go of the network.
func (d *Diag) Close() { unix.Close(d.fd) }

// Of reports whether the socket is in the network that path leads to.
func (d *Diag) Of(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Dev == d.ns.Dev && st.Ino == d.ns.Ino
}

// Waiting returns the sockets that wait. ENOENT says that this kernel does not tell.
func (d *Diag) Waiting() ([]Waiting, error) {
	var list []Waiting
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		for _, kind := range []struct {
			network  string
			protocol byte
			state    int
		}{{"tcp", unix.IPPROTO_TCP, stateListen}, {"udp", unix.IPPROTO_UDP, stateUnbound}} {
			err := d.ask(family, kind.protocol, 1<<kind.state, func(m []byte) {
				w := parseDiag(m)
				w.Network = kind.network
				list = append(list, w)
			})
			if err != nil {
				return nil, fmt.Errorf("asking for %s sockets: %w", kind.network, err)
			}
		}
	}
	return list, nil
}

// ask has each told to found that is in one of the states.
func (d *Diag) ask(family, protocol byte, states uint32, found func(message []byte)) error {
	d.seq++
	q := make([]byte, unix.SizeofNlMsghdr+diagRequest)
	native := binary.NativeEndian
	native.PutUint32(q[0:], uint32(len(q)))
	native.PutUint16(q[4:], diagByFamily)
	native.PutUint16(q[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	native.PutUint32(q[8:], d.seq)
	q[16], q[17] = family, protocol
	native.PutUint32(q[20:], states)
	if err := unix.Sendto(d.fd, q, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		n, _, err := unix.Recvfrom(d.fd, d.buf, unix.MSG_DONTWAIT) // the kernel answers before Sendto and Recvfrom return
		if err != nil {
			return err
		}
		done, err := d.read(d.buf[:n], found)
		if done || err != nil {
			return err
		}
	}
}

func (d *Diag) read(b []byte, found func([]byte)) (done bool, err error) {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return false, err
	}
	for _, m := range messages {
		switch {
		case m.Header.Seq != d.seq: // of a question whose answer was not read to the end
		case m.Header.Type == unix.NLMSG_DONE:
			return true, nil
		case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
			return true, unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
		case len(m.Data) >= diagMessage:
			found(m.Data)
		}
	}
	return false, nil
}

// parseDiag reads a struct inet_diag_msg.
func parseDiag(m []byte) Waiting {
	native := binary.NativeEndian
	address := m[8:12]
	if m[0] == unix.AF_INET6 {
		address = m[8:24]
	}
	ip, _ := netip.AddrFromSlice(address)
	return Waiting{
		At: netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(m[4:])), Cookie: native.Uint64(m[44:]),
		UID: native.Uint32(m[64:]), Inode: native.Uint32(m[68:]),
	}
}

// WaitingIn reads /proc/PID/net instead, on kernels without sock_diag.
func WaitingIn(pid string) []Waiting {
	var list []Waiting
	for _, file := range []string{"tcp", "tcp6", "udp", "udp6"} {
		b, err := os.ReadFile(filepath.Join("/proc", pid, "net", file))
		if err != nil {
			continue // no IPv6, or the process ends
		}
		network := file[:3]
		state := map[string]string{"tcp": "0A", "udp": "07"}[network]
		for line := range strings.Lines(string(b)) {
			if w, ok := parseWaiting(line, state); ok {
				w.Network = network
				list = append(list, w)
			}
		}
	}
	return list
}

// parseWaiting reads a line of /proc/net/tcp, udp and the like.
func parseWaiting(line, state string) (Waiting, bool) {
	f := strings.Fields(line)
	if len(f) < 10 || f[3] != state {
		return Waiting{}, false
	}
	at, valid := ParseEndpoint(f[1])
	uid, err := strconv.ParseUint(f[7], 10, 32)
	inode, err2 := strconv.ParseUint(f[9], 10, 32)
	return Waiting{At: at, UID: uint32(uid), Inode: uint32(inode)}, valid && err == nil && err2 == nil
}

// ParseEndpoint reads an address and port of /proc/net: words of 32 bits in the machine's order, which is little-endian on all of ours.
func ParseEndpoint(s string) (netip.AddrPort, bool) {
	address, number, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(address)
	port, err2 := strconv.ParseUint(number, 16, 16)
	if err != nil || err2 != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(raw, 4) {
		slices.Reverse(word)
	}
	ip, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(ip.Unmap(), uint16(port)), ok
}
