// Package ledger is a Merkle log of opaque entries with one writer.
//
// # Format
//
// Entries are hashed into a Merkle tree as in RFC 6962, section 2.1 (golang.org/x/mod/sumdb/tlog). Each
// commit of one or more entries signs a checkpoint (https://c2sp.org/tlog-checkpoint): a note
// (https://c2sp.org/signed-note) with the log's origin, the tree's size and its root hash. The log is
// read in the layout of https://c2sp.org/tlog-tiles, proofs are exported as
// https://c2sp.org/tlog-proof. An entry has at most 65,535 bytes; what they mean is not known here.
//
// # Use
//
//	log, err := ledger.Open(ctx, store, ledger.Config{Origin: origin, Signer: signer, Verifier: verifier})
//	first, err := log.Append(ctx, func(next int64) ([][]byte, error) {
//		return [][]byte{[]byte("hello")}, nil // decided knowing all entries before next
//	})
//	proof, err := log.Prove(ctx, first) // first is durable and in a signed tree
package ledger

import (
	"context"
	"iter"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/store"
)

// MaxEntryBytes is the largest entry.
const MaxEntryBytes = store.MaxEntryBytes

// Config says who signs a log, and who is told of its commits.
type Config struct {
	Origin   string        // the log's name, the first line of its checkpoints; required
	Signer   note.Signer   // signs checkpoints; required; its name is Origin
	Verifier note.Verifier // verifies what Signer signs; required

	// Committed is called by the writer when a group of entries is durable, before the Append calls of
	// the group return. Calls come in the order of the log. A group of which Append could not tell whether it is durable
	// is reported before anything else is decided, if it is. May be nil. It must not call Append.
	Committed func(first int64, entries [][]byte)

	// Abandoned is called by the writer when a group was given up, before its Append calls return:
	// the next decide sees again the size that the group began at. May be nil.
	Abandoned func()

	// Recheck is how many of the newest entries Open hashes again. Entries after the newest
	// snapshot are always hashed again. Default 131,072, which takes some tenths of a second.
	Recheck int64
}

// Source is what an auditor reads: a store, or a directory of served tiles (package tiles). Its methods
// are as in store.Store.
type Source interface {
	Load(ctx context.Context) (store.Head, error)
	Entries(ctx context.Context, from, to int64) iter.Seq2[[]byte, error]
	Hashes(ctx context.Context, indexes []int64) ([]tlog.Hash, error)
	Checkpoints(ctx context.Context, from, to int64) iter.Seq2[store.Head, error]
}
