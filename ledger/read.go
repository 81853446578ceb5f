package ledger

import (
	"bytes"
	"context"
	"fmt"
	"iter"

	formats "github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/fault"
)

// Size returns how many entries are durable.
func (l *Log) Size() int64 { return l.head.Load().Size }

// Checkpoint returns the newest checkpoint, a signed note.
func (l *Log) Checkpoint() []byte { return bytes.Clone(l.head.Load().Checkpoint) }

// Checkpoints yields every checkpoint with a size from from up to and including to, as signed notes by
// increasing size.
func (l *Log) Checkpoints(ctx context.Context, from, to int64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for head, err := range l.store.Checkpoints(ctx, from, to) {
			if !yield(bytes.Clone(head.Checkpoint), err) {
				return
			}
		}
	}
}

// Entry returns the entry with index i, or fault.NotFound. It is compared with its stored hash: fault.Corrupt.
func (l *Log) Entry(ctx context.Context, i int64) ([]byte, error) {
	for entry, err := range l.Entries(ctx, i, i+1) {
		if err != nil {
			return nil, err
		}
		stored, err := l.store.Hashes(ctx, []int64{tlog.StoredHashIndex(0, i)})
		if err != nil {
			return nil, fmt.Errorf("reading the hash of entry %d: %w", i, err)
		}
		if got := tlog.RecordHash(entry); got != stored[0] {
			return nil, &Damage{Object: "entry", First: i, Last: i, Want: "hash " + stored[0].String(), Got: "hash " + got.String()}
		}
		return entry, nil
	}
	return nil, fault.Errorf(fault.Corrupt, "reading entry %d: the store has none", i)
}

// Entries yields the entries from the index from up to but not including to. The slices are the caller's.
func (l *Log) Entries(ctx context.Context, from, to int64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		if err := l.checkRange(from, to); err != nil {
			yield(nil, err)
			return
		}
		for entry, err := range l.store.Entries(ctx, from, to) {
			if err != nil {
				err = fmt.Errorf("reading entries %d to %d: %w", from, to, err)
			}
			if !yield(bytes.Clone(entry), err) {
				return
			}
		}
	}
}

func (l *Log) checkRange(from, to int64) error {
	if size := l.Size(); from < 0 || to < from || to > size {
		return fault.Errorf(fault.NotFound, "entries %d to %d: the ledger has %d", from, to, size)
	}
	return nil
}

// hashes reads stored hashes for package tlog.
func (l *Log) hashes(ctx context.Context) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		return l.store.Hashes(ctx, indexes)
	})
}

// Root returns the root hash of the tree of the first size entries.
func (l *Log) Root(ctx context.Context, size int64) (tlog.Hash, error) {
	if err := l.checkRange(0, size); err != nil {
		return tlog.Hash{}, err
	}
	return tlog.TreeHash(size, l.hashes(ctx))
}

// ProveInclusion returns the proof that the tree of the first size entries has entry i.
func (l *Log) ProveInclusion(ctx context.Context, i, size int64) (tlog.RecordProof, error) {
	if err := l.checkRange(i, size); err != nil {
		return nil, err
	}
	if i == size {
		return nil, fault.Errorf(fault.NotFound, "proving entry %d: the tree has %d", i, size)
	}
	proof, err := tlog.ProveRecord(size, i, l.hashes(ctx))
	if err != nil {
		return nil, fmt.Errorf("proving entry %d in the tree of %d: %w", i, size, err)
	}
	return proof, nil
}

// ProveConsistency returns the proof that the tree of newSize entries begins with the tree of oldSize.
// Any tree begins with the empty one: for an oldSize of 0 the proof is empty.
func (l *Log) ProveConsistency(ctx context.Context, oldSize, newSize int64) (tlog.TreeProof, error) {
	if err := l.checkRange(oldSize, newSize); err != nil {
		return nil, err
	}
	if oldSize == 0 {
		return tlog.TreeProof{}, nil
	}
	proof, err := tlog.ProveTree(newSize, oldSize, l.hashes(ctx))
	if err != nil {
		return nil, fmt.Errorf("proving that the tree of %d begins with that of %d: %w", newSize, oldSize, err)
	}
	return proof, nil
}

// Prove returns the proof that the log has entry i, as text that can be kept and checked offline:
// https://c2sp.org/tlog-proof, with the newest checkpoint.
func (l *Log) Prove(ctx context.Context, i int64) ([]byte, error) {
	head := l.head.Load()
	return l.ProveIn(ctx, i, head.Size, head.Checkpoint)
}

// ProveIn is Prove with the checkpoint of another size, which may have cosignatures.
func (l *Log) ProveIn(ctx context.Context, i, size int64, checkpoint []byte) ([]byte, error) {
	hashes, err := l.ProveInclusion(ctx, i, size)
	if err != nil {
		return nil, err
	}
	return FormatProof(i, hashes, checkpoint), nil
}

// FormatProof returns a proof of inclusion, in the tree of the checkpoint, as CheckProof reads it.
func FormatProof(i int64, hashes tlog.RecordProof, checkpoint []byte) []byte {
	p := formats.TLogProof{Index: uint64(i), Checkpoint: checkpoint}
	for _, h := range hashes {
		p.Hashes = append(p.Hashes, h)
	}
	return p.Marshal()
}

// CheckProof checks a proof made by Prove: that the log with this verifier has entry at the index it
// returns, in the tree of the checkpoint it returns. Its errors are of kind fault.Corrupt.
func CheckProof(proof, entry []byte, v note.Verifier) (int64, Checkpoint, error) {
	var p formats.TLogProof
	if err := p.Unmarshal(proof); err != nil {
		return 0, Checkpoint{}, fault.Errorf(fault.Corrupt, "parsing a proof: %w", err)
	}
	c, err := ParseCheckpoint(p.Checkpoint, v)
	if err != nil {
		return 0, Checkpoint{}, fmt.Errorf("checking a proof: %w", err)
	}
	hashes := make(tlog.RecordProof, len(p.Hashes))
	for i, h := range p.Hashes {
		hashes[i] = h
	}
	if err := tlog.CheckRecord(hashes, c.Size, c.Root, int64(p.Index), tlog.RecordHash(entry)); err != nil {
		return 0, Checkpoint{}, fault.Errorf(fault.Corrupt, "checking the proof of entry %d: %w", p.Index, err)
	}
	return int64(p.Index), c, nil
}

// Tile returns a resource of the tiled log by its path relative to the log's prefix: checkpoint, or a
// path that ParseTilePath accepts. Tiles never change: they may be cached for ever; the checkpoint may not.
// fault.Invalid: not a path; fault.NotFound: beyond the tree.
func (l *Log) Tile(ctx context.Context, path string) ([]byte, error) {
	if path == "checkpoint" {
		return l.Checkpoint(), nil
	}
	t, err := ParseTilePath(path)
	if err != nil {
		return nil, err
	}
	if size := l.Size(); !inTree(t, size) {
		return nil, fault.Errorf(fault.NotFound, "tile %s: the ledger has %d entries", path, size)
	}
	if t.L == entriesLevel {
		return l.bundle(ctx, t)
	}
	data, err := tlog.ReadTileData(t, l.hashes(ctx))
	if err != nil {
		return nil, fmt.Errorf("reading tile %s: %w", path, err)
	}
	return data, nil
}

func (l *Log) bundle(ctx context.Context, t tlog.Tile) ([]byte, error) {
	var out []byte
	from := t.N << TileHeight
	for entry, err := range l.Entries(ctx, from, from+int64(t.W)) {
		if err != nil {
			return nil, err
		}
		out = AppendBundle(out, entry)
	}
	return out, nil
}
