// Package storetest has the behaviour suite that every store passes, and a store in memory that fails
// on demand.
//
// A Disk is what survives a crash; Open gives the store on it. Faults decides about each operation, so
// that a test can break every step of a commit both ways, or a simulation can break steps at random:
//
//	disk := storetest.NewDisk()
//	disk.SetFaults(storetest.Nth(storetest.OpAppend, 3, storetest.CrashAfter))
//	s, err := disk.Open()
//	… use s until its calls fail, as those of a dead process would …
//	disk.SetFaults(nil)
//	s, err = disk.Open()   // what the restarted process finds
//
// It starts no goroutines, uses no real time and blocks on nothing, so it can be used inside testing/synctest.
package storetest

import (
	"bytes"
	"context"
	"iter"
	"slices"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/store"
)

// Op is an operation that a fault can meet.
type Op string

// The operations of a store.
const (
	OpLoad        Op = "load"
	OpAppend      Op = "append"
	OpEntries     Op = "entries"
	OpHashes      Op = "hashes"
	OpCheckpoints Op = "checkpoints"
	OpSnapshot    Op = "snapshot"
	OpPutSnapshot Op = "put snapshot"
)

// Fault is what happens to one operation.
type Fault int

// The faults. Those that crash leave a store of which every call fails, until the disk is opened again.
const (
	None       Fault = iota
	Fail             // it does nothing and fails
	FailAfter        // it does all, and fails nevertheless
	Crash            // the process dies before it does anything
	CrashAfter       // the process dies when it is done, before the caller learns
)

// Nth returns a decision for SetFaults: the n-th op, counted from 1, meets f, nothing else anything.
func Nth(op Op, n int, f Fault) func(Op) Fault {
	return func(o Op) Fault {
		if o == op {
			if n--; n == 0 {
				return f
			}
		}
		return None
	}
}

// Disk keeps one ledger across crashes of the store on it. Its methods may be called by any goroutine.
type Disk struct {
	mu          sync.Mutex
	entries     [][]byte
	hashes      []tlog.Hash
	checkpoints []store.Head
	snapshot    store.Snapshot
	faults      func(Op) Fault
	open        *Store
}

// NewDisk returns an empty disk.
func NewDisk() *Disk { return &Disk{} }

// SetFaults sets who decides what each operation meets. It is called by one goroutine at a time. Nil: nothing.
func (d *Disk) SetFaults(decide func(Op) Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = decide
}

// Crash ends the open store, if any, as SIGKILL would end its process.
func (d *Disk) Crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = nil
}

// Open opens the store. It fails with fault.Conflict while another one is open.
func (d *Disk) Open() (*Store, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open != nil {
		return nil, fault.Errorf(fault.Conflict, "the disk is in use")
	}
	d.open = &Store{disk: d}
	return d.open, nil
}

// Edit lets a test damage what is stored: the function may change anything it is given.
func (d *Disk) Edit(change func(entries *[][]byte, hashes *[]tlog.Hash, checkpoints *[]store.Head)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.entries, &d.hashes, &d.checkpoints)
}

// Clone returns a disk with the same contents, without faults and not open.
func (d *Disk) Clone() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &Disk{hashes: slices.Clone(d.hashes), snapshot: d.snapshot}
	for _, e := range d.entries {
		c.entries = append(c.entries, bytes.Clone(e))
	}
	for _, h := range d.checkpoints {
		c.checkpoints = append(c.checkpoints, store.Head{Size: h.Size, Checkpoint: bytes.Clone(h.Checkpoint)})
	}
	return c
}

// Store is an open store on a disk.
type Store struct{ disk *Disk }

var _ store.Store = (*Store)(nil)

func failed(op Op) error { return fault.Errorf(fault.Unavailable, "%s: injected failure", op) }

func crashed(op Op) error { return fault.Errorf(fault.Unavailable, "%s: the process has crashed", op) }

// do carries out an operation and what it meets.
func (s *Store) do(op Op, act func(d *Disk) error) error {
	d := s.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open != s {
		return crashed(op)
	}
	f := None
	if d.faults != nil {
		f = d.faults(op)
	}
	if f == None || f == FailAfter || f == CrashAfter {
		if err := act(d); err != nil {
			return err
		}
	}
	switch f {
	case Fail, FailAfter:
		return failed(op)
	case Crash, CrashAfter:
		d.open = nil
		return crashed(op)
	}
	return nil
}

func (d *Disk) size() int64 {
	if len(d.checkpoints) == 0 {
		return 0
	}
	return d.checkpoints[len(d.checkpoints)-1].Size
}

// Load returns the newest commit.
func (s *Store) Load(context.Context) (head store.Head, err error) {
	err = s.do(OpLoad, func(d *Disk) error {
		if len(d.checkpoints) > 0 {
			head = d.checkpoints[len(d.checkpoints)-1]
		}
		switch n, want := int64(len(d.entries)), tlog.StoredHashCount(head.Size); {
		case n < head.Size:
			return fault.Errorf(fault.Corrupt, "entry %d is missing: the newest checkpoint is of %d entries", n, head.Size)
		case n > head.Size:
			return fault.Errorf(fault.Corrupt, "entry %d has no checkpoint", head.Size)
		case int64(len(d.hashes)) != want:
			return fault.Errorf(fault.Corrupt, "%d stored hashes, want %d for %d entries", len(d.hashes), want, head.Size)
		}
		return nil
	})
	return head, err
}

// Append commits a batch.
func (s *Store) Append(_ context.Context, size int64, b store.Batch) error {
	return s.do(OpAppend, func(d *Disk) error {
		if d.size() != size {
			return fault.Errorf(fault.Conflict, "decided on size %d, the ledger has %d", size, d.size())
		}
		if len(b.Entries) == 0 && len(d.checkpoints) > 0 {
			return fault.Errorf(fault.Invalid, "a commit without entries")
		}
		for _, e := range b.Entries {
			d.entries = append(d.entries, bytes.Clone(e))
		}
		d.hashes = append(d.hashes, b.Hashes...)
		d.checkpoints = append(d.checkpoints, store.Head{Size: size + int64(len(b.Entries)), Checkpoint: bytes.Clone(b.Checkpoint)})
		return nil
	})
}

// Entries yields entries.
func (s *Store) Entries(_ context.Context, from, to int64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for i := from; i < to; i++ {
			var entry []byte
			err := s.do(OpEntries, func(d *Disk) error {
				if i < 0 || i >= int64(len(d.entries)) {
					return fault.Errorf(fault.NotFound, "entry %d: the ledger has %d", i, len(d.entries))
				}
				entry = bytes.Clone(d.entries[i])
				return nil
			})
			if !yield(entry, err) || err != nil {
				return
			}
		}
	}
}

// Hashes returns stored hashes.
func (s *Store) Hashes(_ context.Context, indexes []int64) (out []tlog.Hash, err error) {
	err = s.do(OpHashes, func(d *Disk) error {
		for _, i := range indexes {
			if i < 0 || i >= int64(len(d.hashes)) {
				return fault.Errorf(fault.NotFound, "stored hash %d: the ledger has %d", i, len(d.hashes))
			}
			out = append(out, d.hashes[i])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Checkpoints yields checkpoints.
func (s *Store) Checkpoints(_ context.Context, from, to int64) iter.Seq2[store.Head, error] {
	return func(yield func(store.Head, error) bool) {
		var heads []store.Head
		err := s.do(OpCheckpoints, func(d *Disk) error {
			heads = slices.Clone(d.checkpoints)
			return nil
		})
		if err != nil {
			yield(store.Head{}, err)
			return
		}
		for _, h := range heads {
			if h.Size >= from && h.Size <= to && !yield(h, nil) {
				return
			}
		}
	}
}

// Snapshot returns the stored snapshot.
func (s *Store) Snapshot(context.Context) (out store.Snapshot, err error) {
	err = s.do(OpSnapshot, func(d *Disk) error {
		out = store.Snapshot{Size: d.snapshot.Size, State: bytes.Clone(d.snapshot.State)}
		return nil
	})
	return out, err
}

// PutSnapshot replaces the snapshot.
func (s *Store) PutSnapshot(_ context.Context, snapshot store.Snapshot) error {
	return s.do(OpPutSnapshot, func(d *Disk) error {
		d.snapshot = store.Snapshot{Size: snapshot.Size, State: bytes.Clone(snapshot.State)}
		return nil
	})
}

// Close frees the disk for the next Open. A crashed store may be closed.
func (s *Store) Close() error {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	if s.disk.open == s {
		s.disk.open = nil
	}
	return nil
}
