package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/store"
)

// Reader reads a ledger file. Its methods are those of store.Store.
type Reader struct {
	db          *sql.DB
	load        *sql.Stmt
	entries     *sql.Stmt
	hashes      *sql.Stmt
	oneByOne    *sql.Stmt
	checkpoints *sql.Stmt
	newest      *sql.Stmt
	snapshot    *sql.Stmt
}

// OpenReadOnly opens the ledger in dir, a copy of a data directory or one in use, without changing it.
func OpenReadOnly(ctx context.Context, dir string) (*Reader, error) {
	if err := exists(dir); err != nil {
		return nil, fmt.Errorf("opening the ledger in %s for reading: %w", dir, err)
	}
	// Without a write-ahead log, which a writer always has, the file is all there is and stands still:
	// immutable=1 then reads it without making any file beside it.
	params := []string{"mode=ro"}
	if _, err := os.Stat(filepath.Join(dir, fileName+"-wal")); errors.Is(err, os.ErrNotExist) {
		params = append(params, "immutable=1")
	}
	r, err := newReader(ctx, dsn(dir, fileName, params...))
	if err != nil {
		return nil, fmt.Errorf("opening the ledger in %s for reading: %w", dir, err)
	}
	if err := checkFormat(ctx, r.db); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the ledger in %s for reading: %w", dir, err), r.Close())
	}
	return r, nil
}

func newReader(ctx context.Context, dsn string) (_ *Reader, err error) {
	r := &Reader{}
	if r.db, err = sql.Open("sqlite", dsn); err != nil {
		return nil, err
	}
	r.db.SetMaxIdleConns(4)
	for _, p := range []struct {
		stmt **sql.Stmt
		text string
	}{
		{&r.load, `SELECT
			(SELECT size FROM checkpoints ORDER BY size DESC LIMIT 1),
			(SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1),
			(SELECT coalesce(max(idx) + 1, 0) FROM entries),
			coalesce((SELECT first + length(data) / 32 FROM hashes ORDER BY first DESC LIMIT 1), 0)`},
		{&r.entries, "SELECT idx, data FROM entries WHERE idx >= ? AND idx < ? ORDER BY idx"},
		{&r.hashes, `SELECT first, data FROM hashes
			WHERE first >= coalesce((SELECT max(first) FROM hashes WHERE first <= ?1), 0) AND first <= ?2 ORDER BY first`},
		{&r.oneByOne, `SELECT (SELECT substr(data, 1 + (value - first) * 32, 32) FROM hashes WHERE first <= value ORDER BY first DESC LIMIT 1)
			FROM json_each(?) ORDER BY key`},
		{&r.checkpoints, `SELECT size, number, note FROM checkpoints
			WHERE size >= coalesce((SELECT max(size) FROM checkpoints WHERE size < ?1), ?1) AND size <= ?2 ORDER BY size`},
		{&r.newest, "SELECT size, number FROM checkpoints ORDER BY size DESC LIMIT 1"},
		{&r.snapshot, "SELECT size, state FROM snapshot WHERE one = 1"},
	} {
		if *p.stmt, err = r.db.PrepareContext(ctx, p.text); err != nil {
			return nil, errors.Join(classify(err), r.db.Close())
		}
	}
	return r, nil
}

// Close releases the file.
func (r *Reader) Close() error { return r.db.Close() }

// Load returns the newest commit; see store.Store.
func (r *Reader) Load(ctx context.Context) (store.Head, error) {
	var size sql.NullInt64
	var signed []byte
	var entries, hashes int64
	if err := r.load.QueryRowContext(ctx).Scan(&size, &signed, &entries, &hashes); err != nil {
		return store.Head{}, classify(fmt.Errorf("reading the newest checkpoint: %w", err))
	}
	head := store.Head{Size: size.Int64, Checkpoint: signed}
	switch want := tlog.StoredHashCount(head.Size); {
	case entries < head.Size:
		return head, fault.Errorf(fault.Corrupt, "entry %d is missing: the newest checkpoint is of %d entries", entries, head.Size)
	case entries > head.Size:
		return head, fault.Errorf(fault.Corrupt, "entry %d has no checkpoint: the newest is of %d entries", head.Size, head.Size)
	case hashes != want:
		return head, fault.Errorf(fault.Corrupt, "%d stored hashes, want %d for %d entries", hashes, want, head.Size)
	}
	return head, nil
}

// Entries yields entries; see store.Store.
func (r *Reader) Entries(ctx context.Context, from, to int64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		next := from
		more, err := r.scan(ctx, r.entries, from, to, func(idx int64, data []byte) (bool, error) {
			if idx != next {
				return false, fault.Errorf(fault.Corrupt, "entry %d is missing", next)
			}
			next++
			return yield(data, nil), nil
		})
		if more && err == nil && next < to {
			err = r.endsAt(ctx, next)
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// endsAt explains why there is no entry i.
func (r *Reader) endsAt(ctx context.Context, i int64) error {
	head, err := r.Load(ctx)
	if err == nil && i >= head.Size {
		err = fault.Errorf(fault.NotFound, "entry %d: the ledger has %d", i, head.Size)
	} else if err == nil {
		err = fault.Errorf(fault.Corrupt, "entry %d is missing", i)
	}
	return err
}

// scan gives each row of a query for a range, a number and some bytes that are valid during the call,
// to row. It ends early, and says so with more false, when row does.
func (r *Reader) scan(ctx context.Context, stmt *sql.Stmt, from, to int64, row func(int64, []byte) (bool, error)) (more bool, err error) {
	rows, err := stmt.QueryContext(ctx, from, to)
	if err != nil {
		return false, classify(err)
	}
	defer rows.Close()
	var n int64
	var data sql.RawBytes
	for rows.Next() {
		if err := rows.Scan(&n, &data); err != nil {
			return false, classify(err)
		}
		if more, err := row(n, data); !more || err != nil {
			return false, err
		}
	}
	return true, classify(rows.Err())
}

// Hashes returns stored hashes; see store.Store. Neighbours are read as a range, others one by one, in one query.
func (r *Reader) Hashes(ctx context.Context, indexes []int64) ([]tlog.Hash, error) {
	read := r.scattered
	if dense(indexes) {
		read = r.neighbours
	}
	out := make([]tlog.Hash, 0, len(indexes))
	err := read(ctx, indexes, func(h []byte) { out = append(out, tlog.Hash(h)) })
	if err != nil {
		return nil, fmt.Errorf("reading stored hashes: %w", err)
	}
	if len(out) < len(indexes) {
		return nil, r.lacksHash(ctx, indexes[len(out)])
	}
	return out, nil
}

// dense says whether the indexes increase and are most of those in their range.
func dense(indexes []int64) bool {
	n := len(indexes)
	return n > 1 && indexes[n-1]-indexes[0] < 2*int64(n) && slices.IsSorted(indexes)
}

// neighbours gives the hashes, up to the first that is not stored, to yield.
func (r *Reader) neighbours(ctx context.Context, indexes []int64, yield func([]byte)) error {
	_, err := r.scan(ctx, r.hashes, indexes[0], indexes[len(indexes)-1], func(first int64, data []byte) (bool, error) {
		if len(data)%tlog.HashSize != 0 {
			return false, fault.Errorf(fault.Corrupt, "stored hashes from %d: %d bytes are not whole hashes", first, len(data))
		}
		for len(indexes) > 0 {
			at := (indexes[0] - first) * tlog.HashSize
			if at < 0 || at >= int64(len(data)) {
				return at > 0, nil
			}
			yield(data[at : at+tlog.HashSize])
			indexes = indexes[1:]
		}
		return true, nil
	})
	return err
}

// scattered gives the hashes, up to the first that is not stored, to yield.
func (r *Reader) scattered(ctx context.Context, indexes []int64, yield func([]byte)) error {
	list, err := json.Marshal(indexes)
	if err != nil {
		return err
	}
	rows, err := r.oneByOne.QueryContext(ctx, string(list))
	if err != nil {
		return classify(err)
	}
	defer rows.Close()
	var h sql.RawBytes
	for rows.Next() {
		if err := rows.Scan(&h); err != nil {
			return classify(err)
		}
		if len(h) != tlog.HashSize {
			return nil
		}
		yield(h)
	}
	return classify(rows.Err())
}

// lacksHash explains why there is no stored hash i.
func (r *Reader) lacksHash(ctx context.Context, i int64) error {
	head, err := r.Load(ctx)
	if err == nil && i >= tlog.StoredHashCount(head.Size) {
		err = fault.Errorf(fault.NotFound, "stored hash %d: the ledger has %d entries", i, head.Size)
	} else if err == nil {
		err = fault.Errorf(fault.Corrupt, "stored hash %d is missing", i)
	}
	return err
}

// Checkpoints yields checkpoints; see store.Store. A damaged row can hide those behind it, so their numbers are
// checked, from the one before the range to the newest, if that is in the range.
func (r *Reader) Checkpoints(ctx context.Context, from, to int64) iter.Seq2[store.Head, error] {
	return func(yield func(store.Head, error) bool) {
		newest, err := r.newestIn(ctx, to)
		next := int64(0) // number of the next one
		more := true
		if err == nil {
			next, more, err = r.walk(ctx, from, to, yield)
		}
		if err == nil && more && next <= newest {
			err = fault.Errorf(fault.Corrupt, "checkpoint number %d is missing", next)
		}
		if err != nil {
			yield(store.Head{}, fmt.Errorf("reading checkpoints: %w", classify(err)))
		}
	}
}

// newestIn returns the number of the newest checkpoint, or -1 when its size is beyond to.
func (r *Reader) newestIn(ctx context.Context, to int64) (int64, error) {
	var size, number int64
	err := r.newest.QueryRowContext(ctx).Scan(&size, &number)
	if errors.Is(err, sql.ErrNoRows) {
		return -1, nil
	}
	if size > to {
		number = -1
	}
	return number, err
}

// walk yields the checkpoints in a range, and returns the number that the next one will have.
func (r *Reader) walk(ctx context.Context, from, to int64, yield func(store.Head, error) bool) (next int64, more bool, err error) {
	rows, err := r.checkpoints.QueryContext(ctx, from, to)
	if err != nil {
		return 0, false, err
	}
	defer rows.Close()
	for rows.Next() {
		var head store.Head
		var number int64
		if err := rows.Scan(&head.Size, &number, &head.Checkpoint); err != nil {
			return 0, false, err
		}
		if head.Size >= from { // not the one before the range
			if number != next {
				return 0, false, fault.Errorf(fault.Corrupt, "checkpoint number %d is missing", next)
			}
			if !yield(head, nil) {
				return 0, false, nil
			}
		}
		next = number + 1
	}
	return next, true, rows.Err()
}

// Snapshot returns the stored snapshot; see store.Store.
func (r *Reader) Snapshot(ctx context.Context) (store.Snapshot, error) {
	var s store.Snapshot
	err := r.snapshot.QueryRowContext(ctx).Scan(&s.Size, &s.State)
	if errors.Is(err, sql.ErrNoRows) {
		return store.Snapshot{}, nil
	}
	if err != nil {
		return store.Snapshot{}, classify(fmt.Errorf("reading the snapshot: %w", err))
	}
	return s, nil
}
