// Package store is the port to the database that keeps the ledger.
//
// A store holds an append-only sequence of opaque entries, numbered from 0, the hashes of the
// Merkle tree over them, and a signed checkpoint for each tree size that was ever committed. It
// checks none of the cryptography: package ledger does, and gives the store finished bytes.
//
// # Lifecycle
//
// A store has one writer. An implementation refuses a second one when it is opened (fault.Conflict).
// A new store has size 0 and no checkpoint. Its first commit may have no entries: the checkpoint of
// the empty tree. Every later commit has at least one entry. A commit is all or nothing, also when
// the process or the machine dies in the middle of it:
//
//	head, err := s.Load(ctx)                   // Head{Size: 0}
//	err = s.Append(ctx, 0, store.Batch{        // entries 0 and 1, hashes 0, 1 and 2
//		Entries:    [][]byte{a, b},
//		Hashes:     []tlog.Hash{ha, hb, hab},
//		Checkpoint: signed,
//	})
//	head, err = s.Load(ctx)                    // Head{Size: 2, Checkpoint: signed}
//
// # Overlap
//
// Append is called by one goroutine at a time. All other methods may be called at any time by any
// number of goroutines, also during an Append: they see the store before it or after it.
//
// # Errors
//
//   - fault.Conflict: the size that the caller decided on is not the store's.
//   - fault.Unavailable: the disk is full or failing. The same call may work later.
//   - fault.Corrupt: what is stored is not what was written.
//   - fault.NotFound: the range asked for goes beyond the end.
package store

import (
	"context"
	"iter"

	"golang.org/x/mod/sumdb/tlog"
)

// Store keeps one ledger.
type Store interface {
	// Load returns the newest durable commit. It fails with fault.Corrupt, naming the first
	// entry that is missing or left over, when the entries or hashes do not reach exactly as far
	// as the newest checkpoint says.
	Load(ctx context.Context) (Head, error)

	// Append commits the batch after the first size entries. When it returns nil the batch is
	// durable. It fails with fault.Conflict when the store's size is not size: nothing changed.
	// After any other failure, the store is as before, or, when the failure hid a commit that
	// reached the disk, as if Append had worked: Load tells which.
	Append(ctx context.Context, size int64, b Batch) error

	// Entries yields the entries from the index from up to but not including to, in order. Each
	// slice is valid until the next one is asked for. After an error nothing more is yielded.
	Entries(ctx context.Context, from, to int64) iter.Seq2[[]byte, error]

	// Hashes returns the stored hashes with these indexes (tlog.StoredHashIndex). It is fast for
	// indexes in increasing order, and fastest for neighbours.
	Hashes(ctx context.Context, indexes []int64) ([]tlog.Hash, error)

	// Checkpoints yields, by increasing size, every checkpoint ever committed with a size from
	// from up to and including to.
	Checkpoints(ctx context.Context, from, to int64) iter.Seq2[Head, error]

	// Snapshot returns the newest stored snapshot, or one with Size 0 and nil State.
	Snapshot(ctx context.Context) (Snapshot, error)

	// PutSnapshot replaces the stored snapshot. The snapshot is a cache of what the entries say:
	// losing it is always safe, and it need not be durable on return.
	PutSnapshot(ctx context.Context, s Snapshot) error

	// Close releases the store for another writer. No other call may be running or follow.
	Close() error
}

// Batch is one commit.
type Batch struct {
	Entries    [][]byte    // each at most MaxEntryBytes
	Hashes     []tlog.Hash // those that the entries add to the dense sequence of stored hashes
	Checkpoint []byte      // the signed note for the tree with these entries
}

// Head is a commit as later reads see it.
type Head struct {
	Size       int64  // entries in the tree
	Checkpoint []byte // the signed note; nil in a store without any commit
}

// Snapshot is some state folded from the first Size entries, opaque to the store.
type Snapshot struct {
	Size  int64
	State []byte
}

// MaxEntryBytes is the largest entry: the length that an entry bundle can carry (C2SP tlog-tiles).
const MaxEntryBytes = 65535
