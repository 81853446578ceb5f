package proxy

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Listening sockets are passed in batches. A batch is a length (4 bytes, big endian) and that many bytes of JSON; its
// descriptors ride on its first byte, in the order of "names". "all" names every listener that there is, also those
// that the receiver already has and that are not passed. The last batch has "last". To a process that is to become the
// gateway, the first batch has its configuration.
type batch struct {
	Config *Config  `json:"config,omitempty"`
	All    []string `json:"all,omitempty"`
	Names  []string `json:"names"`
	Last   bool     `json:"last"`
}

// batchSize is below the kernel's limit of descriptors in one message (SCM_MAX_FD, 253).
const batchSize = 128

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: invar-listeners\r\n\r\n"

// sendListeners passes the files, and the names of all listeners.
func sendListeners(conn *net.UnixConn, cfg *Config, files map[string]*os.File, all []string) error {
	rest := sortedKeys(files)
	for {
		names := rest[:min(batchSize, len(rest))]
		rest = rest[len(names):]
		if err := sendBatch(conn, batch{Config: cfg, All: all, Names: names, Last: len(rest) == 0}, files); err != nil {
			return err
		}
		if len(rest) == 0 {
			return nil
		}
		cfg, all = nil, nil // once is enough
	}
}

func sendBatch(conn *net.UnixConn, b batch, files map[string]*os.File) error {
	raw, err := json.Marshal(b)
	if err != nil {
		return err
	}
	var rights []byte
	if len(b.Names) > 0 {
		fds := make([]int, len(b.Names))
		for i, name := range b.Names {
			if fds[i], err = descriptor(files[name]); err != nil {
				return err
			}
		}
		rights = unix.UnixRights(fds...)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(raw)))
	if _, _, err := conn.WriteMsgUnix(head, rights, nil); err != nil {
		return fmt.Errorf("passing %d descriptors: %w", len(b.Names), err)
	}
	_, err = conn.Write(raw)
	return err
}

// receiveListeners is the other end of sendListeners. It returns the listeners that were passed, and the names of all.
func receiveListeners(conn *net.UnixConn) (cfg *Config, fresh map[string]*os.File, all []string, err error) {
	fresh = map[string]*os.File{}
	for {
		b, files, err := receiveBatch(conn)
		maps.Copy(fresh, files)
		if err != nil {
			closeAll(fresh)
			return nil, nil, nil, err
		}
		if b.Config != nil {
			cfg = b.Config
		}
		all = append(all, b.All...)
		if b.Last {
			return cfg, fresh, all, nil
		}
	}
}

// askListeners asks the gateway behind conn for its listeners but those held already.
func askListeners(conn *net.UnixConn, held []string) error {
	body, err := json.Marshal(held)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "POST /v1/listeners HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		return err
	}
	// Byte by byte: nothing of what follows the head may be read here, for it carries descriptors.
	var head strings.Builder
	var one [1]byte
	for !strings.HasSuffix(head.String(), "\r\n\r\n") {
		if _, err := io.ReadFull(conn, one[:]); err != nil {
			return fmt.Errorf("asking for listeners: %w", err)
		}
		head.WriteByte(one[0])
	}
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(head.String())), nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("asking for listeners: %s", resp.Status)
	}
	return nil
}

func receiveBatch(conn *net.UnixConn) (b batch, files map[string]*os.File, err error) {
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4*batchSize))
	n, oobn, _, _, err := conn.ReadMsgUnix(head[:], oob)
	if err != nil {
		return b, nil, fmt.Errorf("receiving listeners: %w", err)
	}
	fds, err := parseRights(oob[:oobn])
	if err != nil {
		return b, nil, err
	}
	defer func() {
		if files == nil { // not named: not ours to keep
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}()
	if _, err := io.ReadFull(conn, head[n:]); err != nil {
		return b, nil, fmt.Errorf("receiving listeners: %w", err)
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxTable {
		return b, nil, errors.New("receiving listeners: a batch is too long")
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(conn, raw); err != nil {
		return b, nil, fmt.Errorf("receiving listeners: %w", err)
	}
	if err := json.Unmarshal(raw, &b); err != nil {
		return b, nil, fmt.Errorf("receiving listeners: %w", err)
	}
	if len(fds) != len(b.Names) {
		return b, nil, fmt.Errorf("receiving listeners: %d descriptors for %d names", len(fds), len(b.Names))
	}
	files = make(map[string]*os.File, len(fds))
	for i, name := range b.Names {
		files[name] = os.NewFile(uintptr(fds[i]), name)
	}
	return b, files, nil
}

func parseRights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receiving listeners: %w", err)
	}
	var fds []int
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, fmt.Errorf("receiving listeners: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// descriptor returns the number of a file's descriptor, good while the file is open. File.Fd would make the descriptor blocking, and with
// it those of every process that shares the socket.
func descriptor(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	var number int
	err = raw.Control(func(fd uintptr) { number = int(fd) })
	return number, err
}
