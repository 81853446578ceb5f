package local

import (
	"bytes"
	"reflect"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/kernel"
	"github.com/invarhq/invar/runtime"
)

// memory is what the host remembers from one look at an instance to the next, so that a look costs little: it is dropped with the instance.
//
// It hides no change. What should be follows from the question and the root's content alone, so it is worked out again when the question is
// another. What was read is read again at every look, and only what follows from it is remembered, for as long as every byte of it is the
// same. A file's times would not do: what is written to a tmpfs through a mapping that was there before changes none of them. And once a
// minute, and whenever all bytes of the root are asked for, all is forgotten and looked at as if for the first time.
type memory struct {
	mu       sync.Mutex // held during a look
	since    time.Time
	of       incarnation
	question runtime.Question
	expected *expectation // nil: to be worked out
	files    map[string]fileMemory
	mounts   mountsMemory
	owners   ownersMemory
	scratch  scratchMemory
	gateways map[uint64]bool // sockets that were found to be the gateway's
	nextPID  int             // of the processes that are too many for one look, the first whose turn it is
	sockets  *kernel.Diag    // nil: none is open
	closed   bool            // the instance is gone, or the host lets it go
}

// incarnation tells the process that a look was about from one that has its instance's name, or its PID, later.
type incarnation struct {
	attempt string
	told    string // names what the launcher says that it was told
	pid     int
}

// fileMemory is what a file was found to be, and what that says.
type fileMemory struct {
	mode, uid, gid uint32
	content        []byte
	facts          []drift.Fact
}

// mountsMemory is what a mountinfo was found to say.
type mountsMemory struct {
	text      string
	run, tree uint64 // devices of the run directory and of what the instance has as its root
	facts     []drift.Fact
	programs  []uint64 // numbers of the mounts whose programs the instance may run
	scratches []uint64 // devices of what is mounted as scratch
}

// ownersMemory is what the maps of a user namespace were found to say.
type ownersMemory struct {
	namespace string // its link
	facts     []drift.Fact
}

// forgetAfter is how often a look takes nothing from memory.
const forgetAfter = time.Minute

// begin prepares for a look. The caller holds mu.
func (m *memory) begin(of incarnation, q runtime.Question, now time.Time) {
	full := q.Content || now.Sub(m.since) >= forgetAfter || now.Before(m.since)
	q.Content, q.Opened = false, false // nothing follows from them that is remembered
	if !full && m.of == of && reflect.DeepEqual(m.question, q) {
		return
	}
	m.since, m.of, m.question = now, of, q
	m.expected, m.files, m.mounts, m.owners = nil, map[string]fileMemory{}, mountsMemory{}, ownersMemory{}
	m.gateways = map[uint64]bool{}
}

// close lets go of what a look keeps open. A late look finds nothing.
func (m *memory) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sockets != nil {
		m.sockets.Close()
	}
	m.sockets, m.closed = nil, true
}

// file returns what a file says, whose content is asked for unless it is secret.
func (m *memory) file(path string, secret bool, buf []byte, tell func(st unix.Stat_t, content []byte, err error) []drift.Fact) []drift.Fact {
	var st unix.Stat_t
	var content []byte
	err := unix.Lstat(path, &st)
	if err == nil && !secret && st.Mode&unix.S_IFMT == unix.S_IFREG {
		content, err = kernel.Read(path, buf)
	}
	if err != nil {
		return tell(st, nil, err)
	}
	if known, ok := m.files[path]; ok && known.mode == st.Mode && known.uid == st.Uid && known.gid == st.Gid && bytes.Equal(known.content, content) {
		return known.facts
	}
	facts := tell(st, content, nil)
	m.files[path] = fileMemory{st.Mode, st.Uid, st.Gid, bytes.Clone(content), facts}
	return facts
}

// network returns a socket that asks about the network that a process is in.
func (m *memory) network(pid string) (*kernel.Diag, error) {
	if m.closed {
		return nil, unix.ESRCH
	}
	at := "/proc/" + pid + "/ns/net"
	if m.sockets != nil && m.sockets.Of(at) {
		return m.sockets, nil
	}
	if m.sockets != nil {
		m.sockets.Close()
		m.sockets = nil
	}
	d, err := kernel.OpenDiag(at)
	if err != nil {
		return nil, err
	}
	m.sockets = d
	return d, nil
}
