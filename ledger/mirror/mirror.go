// Package mirror copies a tiled log (https://c2sp.org/tlog-tiles) into a directory, and watches that it only ever grows.
//
// The copy is what package ledger/tiles reads: checkpoint, checkpoint.cosigned, tile/…; keys/ledger.pub is the key that it is
// checked with. Nothing is taken that the log did not sign: every tile is hashed up to the root of the new checkpoint, every
// entry up to its tile, and the new tree must begin with the one of the checkpoint that is held.
//
// The order of a turn, and what a crash after each step leaves:
//
//	the new tree begins with the old    the old copy
//	tiles and entries are written       the old copy, and files that it has no use for; the next turn checks and takes them
//	they are synced                     the same
//	the checkpoint is replaced          the new copy
//	partial tiles of before removed     the same
//
// A log that signed what does not go with the held checkpoint gives an *Inconsistency: both checkpoints are kept under
// evidence/, and the copy stays as it was.
package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/durable"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
)

// Files of a copy.
const (
	checkpointFile = "checkpoint"
	cosignedFile   = "checkpoint.cosigned" // the newest with a quorum of witnesses, where the log has one
	keyFile        = "keys/ledger.pub"
	evidenceDir    = "evidence"
)

const (
	tileWidth  = 1 << ledger.TileHeight
	atOnce     = 8 // entry bundles and tiles that are fetched at once
	maxFetched = tileWidth * (ledger.MaxEntryBytes + 2)
)

// Fetch reads a resource of the log by its path relative to the log's prefix. It fails with fault.NotFound where there is none.
type Fetch func(ctx context.Context, path string) ([]byte, error)

// Mirror is a copy of a log. One process has it.
type Mirror struct {
	dir      string
	verifier note.Verifier
	fetch    Fetch
	log      *slog.Logger
	unlock   func() error
}

// Report says what a turn did.
type Report struct {
	Origin   string    `json:"origin"`
	Before   int64     `json:"before"` // entries held before
	Size     int64     `json:"size"`   // entries held now
	Root     tlog.Hash `json:"root"`
	Cosigned int64     `json:"cosigned"` // up to which a checkpoint that the log calls cosigned reaches; its cosignatures are not checked here
}

// Inconsistency is a log that signed what does not go together.
type Inconsistency struct {
	Held     []byte // the checkpoint of the copy
	Received []byte // what the log shows now
	Kept     string // directory with both
	Cause    string
}

func (i *Inconsistency) Error() string {
	return fmt.Sprintf("ALARM: %s; both checkpoints are in %s", i.Cause, i.Kept)
}

// Unwrap makes Inconsistency a fault.Corrupt.
func (i *Inconsistency) Unwrap() error { return fault.Corrupt }

// Open opens the copy in dir, and makes one where there is none. vkey is the log's verifier key; "" takes the one that the copy
// was made with.
func Open(dir, vkey string, fetch Fetch, log *slog.Logger) (*Mirror, error) {
	m := &Mirror{dir: dir, fetch: fetch, log: log}
	held, err := os.ReadFile(m.path(keyFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	known := strings.TrimSpace(string(held))
	switch {
	case vkey == "" && known == "":
		return nil, fault.WithHint(fault.Errorf(fault.Invalid, "a new copy needs the log's verifier key"), "give it with --key; get it from whoever runs the log, not from the log")
	case vkey == "":
		vkey = known
	case known != "" && vkey != known:
		return nil, fault.Errorf(fault.Invalid, "%s is a copy of the log with the key %s, not %s", dir, known, vkey)
	}
	if m.verifier, err = ledger.ParseVerifierKey(vkey); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(m.path("keys"), 0o755); err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	if m.unlock, err = durable.Lock(dir); err != nil {
		return nil, fmt.Errorf("opening the copy: %w", err)
	}
	if known == "" {
		if err := durable.Write(m.path(keyFile), []byte(vkey+"\n"), 0o644); err != nil {
			return nil, errors.Join(err, m.unlock())
		}
	}
	return m, nil
}

func (m *Mirror) path(name string) string { return filepath.Join(m.dir, filepath.FromSlash(name)) }

// Close gives the directory back.
func (m *Mirror) Close() error { return m.unlock() }

// Run brings the copy up to date, and with every greater than zero does so again and again until ctx ends. It calls did after the first
// turn and after each that brought something. While it goes on, a log that can't be reached is asked again; what does not
// verify ends it.
func (m *Mirror) Run(ctx context.Context, every time.Duration, did func(Report) error) error {
	for first := true; ; first = false {
		r, err := m.Turn(ctx)
		switch kind := fault.KindOf(err); {
		case err == nil && (first || r.Size > r.Before):
			if err := did(r); err != nil {
				return err
			}
		case err != nil && (every <= 0 || ctx.Err() != nil || kind != fault.Unavailable && kind != fault.NotFound):
			return err
		case err != nil:
			m.log.Warn("the log could not be read", "error", err)
		}
		if every <= 0 {
			return nil
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return nil
		}
	}
}

// Turn brings the copy up to what the log signs now.
func (m *Mirror) Turn(ctx context.Context) (Report, error) {
	held, heldNote, err := m.held()
	if err != nil {
		return Report{}, fmt.Errorf("reading the copy in %s: %w", m.dir, err)
	}
	cosigned, err := m.fetch(ctx, cosignedFile) // before the checkpoint, which then is no older
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return Report{}, err
	}
	signed, err := m.fetch(ctx, checkpointFile)
	if err != nil {
		return Report{}, err
	}
	next, err := ledger.ParseCheckpoint(signed, m.verifier)
	if err != nil {
		return Report{}, fmt.Errorf("the log's checkpoint: %w", err)
	}
	r := Report{Origin: next.Origin, Before: held.Size, Size: next.Size, Root: next.Root}
	if err := m.follows(ctx, held, next, heldNote, signed); err != nil {
		return r, err
	}
	if next.Size > held.Size {
		if err := m.copy(ctx, held.Size, next); err != nil {
			return r, err
		}
	}
	if r.Cosigned, err = m.cosigned(ctx, next, signed, cosigned); err != nil {
		return r, err
	}
	if !bytes.Equal(signed, heldNote) {
		if err := durable.Write(m.path(checkpointFile), signed, 0o644); err != nil {
			return r, err
		}
	}
	return r, m.sweep(held.Size, next.Size)
}

// held returns the checkpoint of the copy; that of a new copy has size 0 and no note.
func (m *Mirror) held() (ledger.Checkpoint, []byte, error) {
	signed, err := os.ReadFile(m.path(checkpointFile))
	if errors.Is(err, fs.ErrNotExist) {
		empty, _ := tlog.TreeHash(0, nil)
		return ledger.Checkpoint{Origin: m.verifier.Name(), Root: empty}, nil, nil
	}
	if err != nil {
		return ledger.Checkpoint{}, nil, err
	}
	c, err := ledger.ParseCheckpoint(signed, m.verifier)
	return c, signed, err
}

// follows checks that the next tree begins with the one that is held. The tiles for that come from the log alone: those of the
// copy are of the old tree, which is what is in question.
func (m *Mirror) follows(ctx context.Context, held, next ledger.Checkpoint, heldNote, signed []byte) error {
	older, newer := held, next
	hashes := m.hashes(ctx, next, fromLog)
	if next.Size < held.Size { // then what is held has to begin with it
		older, newer = next, held
		hashes = m.hashes(ctx, held, fromCopy)
	}
	root, err := rootOf(older.Size, newer, hashes)
	if err != nil {
		return unsigned(fmt.Errorf("comparing the trees of %d and %d entries: %w", held.Size, next.Size, err))
	}
	switch {
	case root != older.Root && held.Size == next.Size:
		return m.alarm(heldNote, signed, "fork", fmt.Sprintf("the log signed two trees of %d entries", held.Size))
	case root != older.Root:
		return m.alarm(heldNote, signed, "fork", fmt.Sprintf("the tree of %d entries does not begin with that of %d", newer.Size, older.Size))
	case next.Size < held.Size:
		return m.alarm(heldNote, signed, "cut-back", fmt.Sprintf("the log has %d entries, and had %d: it was cut back, or restored from an older copy", next.Size, held.Size))
	}
	return nil
}

// rootOf returns the root of the tree of the first size entries of the tree of c.
func rootOf(size int64, c ledger.Checkpoint, hashes tlog.HashReader) (tlog.Hash, error) {
	if size == c.Size {
		return c.Root, nil
	}
	return tlog.TreeHash(size, hashes)
}

// alarm keeps both checkpoints.
func (m *Mirror) alarm(held, received []byte, kind, cause string) error {
	id := digest.Of(append(bytes.Clone(held), received...))
	i := &Inconsistency{Held: held, Received: received, Kept: m.path(evidenceDir + "/" + kind + "-" + id.Hex()[:16]), Cause: cause}
	if err := os.MkdirAll(i.Kept, 0o755); err != nil {
		return errors.Join(i, err)
	}
	return errors.Join(i,
		durable.Write(filepath.Join(i.Kept, "held"), held, 0o644),
		durable.Write(filepath.Join(i.Kept, "received"), received, 0o644),
		durable.SyncDir(m.path(evidenceDir)), durable.SyncDir(m.dir))
}

// copy writes all that the tree of next has and the one of the first from entries has not.
func (m *Mirror) copy(ctx context.Context, from int64, next ledger.Checkpoint) error {
	for first := from / tileWidth; first*tileWidth < next.Size; first += atOnce {
		if err := m.batch(ctx, first, next); err != nil {
			return err
		}
	}
	d, err := os.Open(m.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil { // one for all the files of the turn
		return fmt.Errorf("syncing the copy: %w", err)
	}
	return nil
}

// batch copies some entry bundles, and every tile above them.
func (m *Mirror) batch(ctx context.Context, first int64, next ledger.Checkpoint) error {
	end := min(next.Size, (first+atOnce)*tileWidth)
	var indexes []int64
	for i := first * tileWidth; i < end; i++ {
		indexes = append(indexes, tlog.StoredHashIndex(0, i))
	}
	leaves, err := m.hashes(ctx, next, intoCopy).ReadHashes(indexes)
	if err != nil { // what a crash left here may be anything
		leaves, err = m.hashes(ctx, next, overCopy).ReadHashes(indexes)
	}
	if err != nil {
		return unsigned(fmt.Errorf("reading the tiles over entries %d to %d: %w", first*tileWidth, end-1, err))
	}
	group, ctx := errgroup.WithContext(ctx)
	for at := first; at*tileWidth < end; at++ {
		group.Go(func() error {
			width := min(tileWidth, end-at*tileWidth)
			return m.bundle(ctx, tlog.Tile{H: ledger.TileHeight, L: -1, N: at, W: int(width)}, leaves[(at-first)*tileWidth:][:width])
		})
	}
	return group.Wait()
}

// bundle copies an entry bundle whose entries have these hashes.
func (m *Mirror) bundle(ctx context.Context, t tlog.Tile, leaves []tlog.Hash) error {
	path := ledger.TilePath(t)
	if data, err := os.ReadFile(m.path(path)); err == nil && checkBundle(t, data, leaves) == nil {
		return nil
	}
	data, err := m.fetch(ctx, path)
	if err != nil {
		return err
	}
	if err := checkBundle(t, data, leaves); err != nil {
		return err
	}
	return m.write(path, data)
}

// checkBundle compares entries with the hashes of a tile that was checked.
func checkBundle(t tlog.Tile, data []byte, leaves []tlog.Hash) error {
	entries, err := ledger.ParseBundle(data)
	if err != nil {
		return fmt.Errorf("%s: %w", ledger.TilePath(t), err)
	}
	if len(entries) != len(leaves) {
		return fault.Errorf(fault.Corrupt, "%s: %d entries, want %d", ledger.TilePath(t), len(entries), len(leaves))
	}
	for i, e := range entries {
		if tlog.RecordHash(e) != leaves[i] {
			return fault.Errorf(fault.Corrupt, "%s: entry %d is not the one that was signed", ledger.TilePath(t), t.N*tileWidth+int64(i))
		}
	}
	return nil
}

// write writes a file that is checked again before it is relied on, so it need not be durable yet.
func (m *Mirror) write(path string, data []byte) error {
	path = m.path(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when it was renamed
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// unsigned makes damage of what does not hash up to the signed root, for which package tlog has no kind.
func unsigned(err error) error {
	if fault.KindOf(err) == "" && !errors.Is(err, context.Canceled) {
		return fault.As(fault.Corrupt, err)
	}
	return err
}

// tileUse says where tiles are read from, and whether they become part of the copy once they are checked.
type tileUse struct{ copyFirst, save bool }

var (
	fromLog  = tileUse{}                            // the log's
	fromCopy = tileUse{copyFirst: true}             // the copy's, and the log's where it has none
	intoCopy = tileUse{copyFirst: true, save: true} // the same, and the copy has them from then on
	overCopy = tileUse{save: true}                  // the log's, in place of the copy's
)

// hashes reads stored hashes of the tree of c from tiles, each of which is hashed up to its root.
func (m *Mirror) hashes(ctx context.Context, c ledger.Checkpoint, use tileUse) tlog.HashReader {
	return tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, &tileReader{ctx, m, use})
}

// tileReader reads tiles for package tlog, whose interface has no context.
type tileReader struct {
	ctx    context.Context
	mirror *Mirror
	use    tileUse
}

// Height implements tlog.TileReader.
func (r *tileReader) Height() int { return ledger.TileHeight }

// ReadTiles implements tlog.TileReader.
func (r *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	group, ctx := errgroup.WithContext(r.ctx)
	group.SetLimit(atOnce)
	for i, t := range tiles {
		group.Go(func() (err error) {
			path := ledger.TilePath(t)
			if r.use.copyFirst {
				if out[i], err = os.ReadFile(r.mirror.path(path)); err == nil && len(out[i]) == t.W*tlog.HashSize {
					return nil
				}
			}
			if out[i], err = r.mirror.fetch(ctx, path); err == nil && len(out[i]) != t.W*tlog.HashSize {
				err = fault.Errorf(fault.Corrupt, "%s: %d bytes, want %d", path, len(out[i]), t.W*tlog.HashSize)
			}
			return err
		})
	}
	return out, group.Wait()
}

// SaveTiles implements tlog.TileReader: these were hashed up to the root.
func (r *tileReader) SaveTiles(tiles []tlog.Tile, data [][]byte) {
	if !r.use.save {
		return
	}
	for i, t := range tiles {
		path := ledger.TilePath(t)
		if have, err := os.ReadFile(r.mirror.path(path)); err == nil && bytes.Equal(have, data[i]) {
			continue
		}
		if err := r.mirror.write(path, data[i]); err != nil { // then it is missing, and the copy does not verify
			r.mirror.log.Error("writing a tile failed", "path", path, "error", err)
		}
	}
}

// cosigned keeps the newest checkpoint that the log calls cosigned, when the tree begins with its.
func (m *Mirror) cosigned(ctx context.Context, next ledger.Checkpoint, signed, cosigned []byte) (int64, error) {
	if cosigned == nil {
		return 0, nil
	}
	c, err := ledger.ParseCheckpoint(cosigned, m.verifier)
	if err != nil {
		return 0, fmt.Errorf("the log's cosigned checkpoint: %w", err)
	}
	if c.Size > next.Size {
		return 0, m.alarm(cosigned, signed, "cut-back", fmt.Sprintf("the log has %d entries, and a cosigned checkpoint of %d", next.Size, c.Size))
	}
	root, err := rootOf(c.Size, next, m.hashes(ctx, next, fromCopy))
	if err != nil {
		return 0, fmt.Errorf("comparing with the cosigned checkpoint: %w", err)
	}
	if root != c.Root {
		return 0, m.alarm(cosigned, signed, "fork", fmt.Sprintf("the tree of %d entries does not begin with the cosigned one of %d", next.Size, c.Size))
	}
	return c.Size, durable.Write(m.path(cosignedFile), cosigned, 0o644)
}

// sweep removes the partial tiles of the tree before.
func (m *Mirror) sweep(before, now int64) error {
	if before == now {
		return nil
	}
	keep := make(map[string]bool)
	for path := range partial(now) {
		keep[path] = true
	}
	for path := range partial(before) {
		if keep[path] {
			continue
		}
		if err := os.Remove(m.path(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		_ = os.Remove(filepath.Dir(m.path(path))) // stays when there is another one in it
	}
	return nil
}

// partial returns the paths of the tiles that a tree of this size has a part of.
func partial(size int64) map[string]bool {
	out := make(map[string]bool)
	for level := -1; level <= 5; level++ {
		width := size >> (ledger.TileHeight * max(level, 0))
		if w := width % tileWidth; w != 0 {
			out[ledger.TilePath(tlog.Tile{H: ledger.TileHeight, L: level, N: width / tileWidth, W: int(w)})] = true
		}
	}
	return out
}
