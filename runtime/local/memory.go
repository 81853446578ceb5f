package local

import (
	"reflect"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/runtime"
)

// memory is what the host remembers from one look at an instance to the next, so that a look costs little: it is dropped with the instance.
//
// It hides no change. What should be follows from the question and the root's content alone, so it is worked out again when the question is
// another. What was read from a file is believed only while the file is the same one, by device, inode, size and the two times of its
// last change: nobody can set the change time but by setting the machine's clock. Only what can't have changed is left out for these two
// reasons; processes, rights, limits, mounts and sockets are asked for at every look. And once a minute, and whenever all bytes of the root
// are asked for, all is forgotten and looked at as if for the first time.
type memory struct {
	mu       sync.Mutex // held during a look
	since    time.Time
	of       incarnation
	question runtime.Question
	expected *expectation // nil: to be worked out
	files    map[string]fileMemory
	mounts   mountsMemory
	owners   ownersMemory
	sockets  *diag // nil: none is open
	closed   bool  // the instance is gone, or the host lets it go
}

// incarnation tells the process that a look was about from one that has its instance's name, or its PID, later.
type incarnation struct {
	attempt string
	pid     int
}

// fileMemory is what a file was found to be.
type fileMemory struct {
	was   stamp
	facts []drift.Fact
}

// mountsMemory is what a mountinfo was found to say.
type mountsMemory struct {
	text      string
	run, tree uint64 // devices of the run directory and of what the instance has as its root
	facts     []drift.Fact
}

// ownersMemory is what the maps of a user namespace were found to say.
type ownersMemory struct {
	namespace string // its link
	facts     []drift.Fact
}

const (
	// forgetAfter is how often a look takes nothing from memory.
	forgetAfter = time.Minute
	// settledAfter is the age that a file's last change must have to be believed: the kernel's clock for it ticks every 10 ms at the
	// slowest, so a change that follows another at once may leave the same time.
	settledAfter = time.Second
)

// begin prepares for a look. The caller holds mu.
func (m *memory) begin(of incarnation, q runtime.Question, now time.Time) {
	full := q.Content || now.Sub(m.since) >= forgetAfter || now.Before(m.since)
	q.Content = false
	if !full && m.of == of && reflect.DeepEqual(m.question, q) {
		return
	}
	m.since, m.of, m.question = now, of, q
	m.expected, m.files, m.mounts, m.owners = nil, map[string]fileMemory{}, mountsMemory{}, ownersMemory{}
}

// close lets go of what a look keeps open. A late look finds nothing.
func (m *memory) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sockets != nil {
		m.sockets.close()
	}
	m.sockets, m.closed = nil, true
}

// file returns the facts that read finds in a file, from memory while the file is the same.
func (m *memory) file(path string, read func(st unix.Stat_t, err error) []drift.Fact) []drift.Fact {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	was := stampOf(st)
	if known, ok := m.files[path]; ok && err == nil && known.was == was {
		return known.facts
	}
	facts := read(st, err)
	if age := time.Since(time.Unix(0, was.Changed)); err == nil && age > settledAfter {
		m.files[path] = fileMemory{was, facts}
	}
	return facts
}

// network returns a socket that asks about the network that a process is in.
func (m *memory) network(pid string) (*diag, error) {
	if m.closed {
		return nil, unix.ESRCH
	}
	at := "/proc/" + pid + "/ns/net"
	if m.sockets != nil && m.sockets.of(at) {
		return m.sockets, nil
	}
	if m.sockets != nil {
		m.sockets.close()
		m.sockets = nil
	}
	d, err := openDiag(at)
	if err != nil {
		return nil, err
	}
	m.sockets = d
	return d, nil
}
