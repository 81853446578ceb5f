package tampering

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ForeignTable puts a route table without routes in force, over the gateway's control socket, with a serial that no other one exceeds.
func ForeignTable(t Target) (func(), error) {
	dir := filepath.Join(t.Data, "gateway")
	b, err := os.ReadFile(filepath.Join(dir, "table.json"))
	var table map[string]json.RawMessage
	if err == nil {
		err = json.Unmarshal(b, &table)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the table in force: %w", err)
	}
	delete(table, "http")
	table["serial"] = json.RawMessage("18446744073709551615")
	if b, err = json.Marshal(table); err != nil {
		return nil, err
	}
	return nothing, putTable(filepath.Join(dir, "gateway.sock"), b)
}

func putTable(socket string, table []byte) error {
	_, err := askGateway(socket, http.MethodPut, "/v1/table", table)
	return err
}

// askGateway asks the gateway over its control socket.
func askGateway(socket, method, path string, body []byte) ([]byte, error) {
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	q, err := http.NewRequest(method, "http://gateway"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	answer, err := c.Do(q)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s of the gateway: %s: %s", method, path, answer.Status, said)
	}
	return said, err
}

// TakeControlSocket listens where the server finds the gateway's control socket, and answers as a gateway does.
func TakeControlSocket(t Target) (func(), error) {
	path := filepath.Join(t.Data, "gateway", "gateway.sock")
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // what lies there then is the server's again
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `{"pid":%d}`, os.Getpid()) })}
	go server.Serve(l)
	return func() { server.Close() }, nil
}

// ListenBeside has the kernel give a part of the gateway's connections to this process: it takes a descriptor of the gateway's listener out
// of that process, lets others share its address, and does so.
func ListenBeside(t Target) (func(), error) {
	said, err := askGateway(filepath.Join(t.Data, "gateway", "gateway.sock"), http.MethodGet, "/v1/status", nil)
	var status struct {
		PID  int    `json:"pid"`
		HTTP string `json:"http"`
	}
	if err == nil {
		err = json.Unmarshal(said, &status)
	}
	if err != nil {
		return nil, err
	}
	address, err := netip.ParseAddrPort(status.HTTP)
	if err != nil {
		return nil, err
	}
	if err := shareListener(status.PID, address); err != nil {
		return nil, fmt.Errorf("sharing %s of process %d: %w", address, status.PID, err)
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return err
	}}
	l, err := config.Listen(context.Background(), "tcp4", status.HTTP)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the intruder's\n") })}
	go server.Serve(l)
	return func() { server.Close() }, nil
}

// shareListener lets others listen where a process does.
func shareListener(pid int, address netip.AddrPort) error {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(process)
	fds, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		return err
	}
	for _, f := range fds {
		number, err := strconv.Atoi(f.Name())
		if err != nil {
			continue
		}
		fd, err := unix.PidfdGetfd(process, number, 0)
		if err != nil {
			continue // closed meanwhile
		}
		shared, err := shareIf(fd, address)
		unix.Close(fd)
		if shared || err != nil {
			return err
		}
	}
	return errors.New("it does not listen there")
}

func shareIf(fd int, address netip.AddrPort) (bool, error) {
	if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens == 0 {
		return false, nil // no socket, or none that listens
	}
	name, err := unix.Getsockname(fd)
	at, ok := name.(*unix.SockaddrInet4)
	if err != nil || !ok || netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port)) != address {
		return false, nil
	}
	return true, os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
}
