// Package tiles reads a static copy of a tiled log (https://c2sp.org/tlog-tiles), so that an auditor can
// verify what a server serves without having its database:
//
//	checkpoint               the signed tree head
//	tile/<L>/<N>[.p/<W>]     up to 256 hashes of 32 bytes
//	tile/entries/<N>[.p/<W>] up to 256 entries, each with its length as a big-endian uint16 before it
//
// A copy that grew holds partial tiles (.p/<W>) of earlier sizes beside the full ones. They must agree; files
// that the tree has no use for are ignored.
//
//	report, err := ledger.Verify(ctx, tiles.New(os.DirFS("copy")), vkey)
package tiles

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strconv"
	"sync"

	formats "github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/store"
)

const (
	tileWidth   = 1 << ledger.TileHeight
	cachedTiles = 64
)

// Checkpoint is the file of the signed tree head.
const Checkpoint = "checkpoint"

// Dir is a copy of a tiled log: a ledger.Source. Its methods may be called by any number of goroutines.
type Dir struct {
	fsys fs.FS

	mu    sync.Mutex
	cache map[tlog.Tile][]byte // hash tiles that were read
}

var _ ledger.Source = (*Dir)(nil)

// New returns the copy whose checkpoint is the file of this name at the root of fsys.
func New(fsys fs.FS) *Dir { return &Dir{fsys: fsys, cache: make(map[tlog.Tile][]byte)} }

// Load returns the checkpoint, without signatures of others than the log, and the size that it claims. Its signature is not
// checked here; what cosignatures are worth, package ledger/witness tells.
func (d *Dir) Load(context.Context) (store.Head, error) {
	signed, err := fs.ReadFile(d.fsys, Checkpoint)
	if errors.Is(err, fs.ErrNotExist) {
		return store.Head{}, fault.Errorf(fault.NotFound, "reading a tiled log: %w", err)
	}
	if err != nil {
		return store.Head{}, fmt.Errorf("reading a tiled log: %w", err)
	}
	var c formats.Checkpoint
	if _, err := c.Unmarshal(signed); err != nil || int64(c.Size) < 0 {
		return store.Head{}, fault.Errorf(fault.Corrupt, "the checkpoint is not one: %v", err)
	}
	return store.Head{Size: int64(c.Size), Checkpoint: ownPart(signed, c.Origin)}, nil
}

// ownPart returns a signed note without the signatures of others than origin.
func ownPart(signed []byte, origin string) []byte {
	_, signatures, ok := bytes.Cut(signed, []byte("\n\n"))
	if !ok {
		return signed
	}
	out := bytes.Clone(signed[:len(signed)-len(signatures)])
	for line := range bytes.Lines(signatures) {
		name, _, signature := bytes.Cut(bytes.TrimPrefix(line, []byte("— ")), []byte(" "))
		if !signature || !bytes.HasPrefix(line, []byte("— ")) || string(name) == origin {
			out = append(out, line...)
		}
	}
	return out
}

// Checkpoints yields the one checkpoint, when its size is in the range.
func (d *Dir) Checkpoints(ctx context.Context, from, to int64) iter.Seq2[store.Head, error] {
	return func(yield func(store.Head, error) bool) {
		head, err := d.Load(ctx)
		if err != nil || head.Size >= from && head.Size <= to {
			yield(head, err)
		}
	}
}

// Entries yields the entries from the bundles. A slice stays valid.
func (d *Dir) Entries(ctx context.Context, from, to int64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		head, err := d.Load(ctx)
		if err == nil && to > head.Size {
			err = fault.Errorf(fault.NotFound, "entry %d: the tiled log has %d", to-1, head.Size)
		}
		for n := from / tileWidth; err == nil && n*tileWidth < to; n++ {
			var more bool
			if more, err = d.bundle(tileAt(-1, n, head.Size), from, to, yield); !more {
				return
			}
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// bundle yields those entries of a bundle that are in the range; more is false when yield wants no more. Each
// entry is yielded before the next is looked at, so that damage is found at the first entry that it touches.
func (d *Dir) bundle(t tlog.Tile, from, to int64, yield func([]byte, error) bool) (more bool, err error) {
	data, err := d.read(t)
	if err != nil {
		return true, err
	}
	i := t.N * tileWidth
	for rest := data; len(rest) > 0; i++ {
		if len(rest) < 2 || len(rest)-2 < int(binary.BigEndian.Uint16(rest)) {
			return true, fault.Errorf(fault.Corrupt, "%s: entry %d is cut off", ledger.TilePath(t), i)
		}
		end := 2 + int(binary.BigEndian.Uint16(rest))
		if i >= from && i < to && !yield(rest[2:end:end], nil) {
			return false, nil
		}
		rest = rest[end:]
	}
	if want := t.N*tileWidth + int64(t.W); i != want {
		return true, fault.Errorf(fault.Corrupt, "%s: it ends before entry %d, want %d", ledger.TilePath(t), i, want)
	}
	return true, d.agree(t, data)
}

// Hashes returns stored hashes: from the tiles, or hashed from those in them.
func (d *Dir) Hashes(ctx context.Context, indexes []int64) ([]tlog.Hash, error) {
	head, err := d.Load(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]tlog.Hash, 0, len(indexes))
	for _, index := range indexes {
		if index >= tlog.StoredHashCount(head.Size) {
			return nil, fault.Errorf(fault.NotFound, "stored hash %d: the tiled log has %d entries", index, head.Size)
		}
		at := tlog.TileForIndex(ledger.TileHeight, index)
		t := tileAt(at.L, at.N, head.Size)
		data, err := d.tile(t)
		if err != nil {
			return nil, err
		}
		h, err := tlog.HashFromTile(t, data, index)
		if err != nil {
			return nil, fault.Errorf(fault.Corrupt, "%s: %w", ledger.TilePath(t), err)
		}
		out = append(out, h)
	}
	return out, nil
}

// tileAt returns the tile as a tree of this size has it.
func tileAt(level int, n, size int64) tlog.Tile {
	width := size >> (ledger.TileHeight * max(level, 0))
	return tlog.Tile{H: ledger.TileHeight, L: level, N: n, W: int(min(tileWidth, width-n*tileWidth))}
}

// tile returns the hashes of a tile.
func (d *Dir) tile(t tlog.Tile) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if data, ok := d.cache[t]; ok {
		return data, nil
	}
	data, err := d.read(t)
	if err == nil && len(data) != t.W*tlog.HashSize {
		err = fault.Errorf(fault.Corrupt, "%s: %d bytes, want %d", ledger.TilePath(t), len(data), t.W*tlog.HashSize)
	}
	if err == nil {
		err = d.agree(t, data)
	}
	if err != nil {
		return nil, err
	}
	if len(d.cache) >= cachedTiles {
		clear(d.cache)
	}
	d.cache[t] = data
	return data, nil
}

// read reads the file of a tile.
func (d *Dir) read(t tlog.Tile) ([]byte, error) {
	path := ledger.TilePath(t)
	data, err := fs.ReadFile(d.fsys, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Errorf(fault.Corrupt, "%s is missing", path)
	}
	return data, err
}

// agree checks the partial tiles of earlier sizes beside a tile: each is how the tile began.
func (d *Dir) agree(t tlog.Tile, data []byte) error {
	full := t
	full.W = tileWidth
	dir := ledger.TilePath(full) + ".p"
	files, err := fs.ReadDir(d.fsys, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, file := range files {
		w, err := strconv.Atoi(file.Name())
		if err != nil || w <= 0 || w >= t.W {
			continue
		}
		path := dir + "/" + file.Name()
		part, err := fs.ReadFile(d.fsys, path)
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(data, part) || count(t, part) != w {
			return fault.Errorf(fault.Corrupt, "%s is not how %s begins", path, ledger.TilePath(t))
		}
	}
	return nil
}

// count returns how many hashes or entries the data of a tile has, or -1 when it is not whole.
func count(t tlog.Tile, data []byte) int {
	if t.L >= 0 {
		if len(data)%tlog.HashSize != 0 {
			return -1
		}
		return len(data) / tlog.HashSize
	}
	entries, err := ledger.ParseBundle(data)
	if err != nil {
		return -1
	}
	return len(entries)
}
