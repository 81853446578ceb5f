package ledger

import (
	"encoding/binary"
	"iter"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/fault"
)

// TileHeight is the height of a tile: 256 hashes wide (https://c2sp.org/tlog-tiles).
const TileHeight = 8

const (
	tileWidth    = 1 << TileHeight
	maxTileLevel = 5
	entriesLevel = -1 // the L of an entry bundle in a tlog.Tile
	maxTilePath  = 64 // bytes; a longer path would name a tile beyond any tree
)

// ParseTilePath accepts the path of a tile or an entry bundle in a tiled log, without leading slash:
// tile/<L>/<N>[.p/<W>] or tile/entries/<N>[.p/<W>]. An entry bundle has L -1. Each tile has one spelling.
func ParseTilePath(path string) (tlog.Tile, error) {
	bad := fault.Errorf(fault.Invalid, "tile path %q: want tile/<L>/<N>[.p/<W>] or tile/entries/<N>[.p/<W>]", path)
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok || len(path) > maxTilePath {
		return tlog.Tile{}, bad
	}
	if bundle, ok := strings.CutPrefix(rest, "entries/"); ok {
		rest = "data/" + bundle
	} else if strings.HasPrefix(rest, "data/") {
		return tlog.Tile{}, bad
	}
	t, err := tlog.ParseTilePath("tile/8/" + rest)
	if err != nil || t.L > maxTileLevel || t.N < 0 || TilePath(t) != path {
		return tlog.Tile{}, bad
	}
	return t, nil
}

// TilePath returns the path of a tile as ParseTilePath accepts it. Its height is TileHeight.
func TilePath(t tlog.Tile) string {
	rest := strings.TrimPrefix(t.Path(), "tile/8/")
	if bundle, ok := strings.CutPrefix(rest, "data/"); ok {
		rest = "entries/" + bundle
	}
	return "tile/" + rest
}

// TilePaths yields the path of every resource that a tree of this size is served as: its tiles, its
// entry bundles and, last, its checkpoint. Writing Log.Tile of each to a file makes a static copy.
func TilePaths(size int64) iter.Seq[string] {
	return func(yield func(string) bool) {
		for level := entriesLevel; level <= maxTileLevel; level++ {
			width := size >> (TileHeight * max(level, 0))
			for n := int64(0); n*tileWidth < width; n++ {
				w := min(tileWidth, width-n*tileWidth)
				if !yield(TilePath(tlog.Tile{H: TileHeight, L: level, N: n, W: int(w)})) {
					return
				}
			}
		}
		yield("checkpoint")
	}
}

// inTree says whether all of a tile is in a tree of this size.
func inTree(t tlog.Tile, size int64) bool {
	width := size >> (TileHeight * max(t.L, 0))
	return t.N <= width>>TileHeight && t.N<<TileHeight+int64(t.W) <= width
}

// AppendBundle appends an entry to an entry bundle: its length as a big-endian uint16, then its bytes.
// The entry has at most MaxEntryBytes.
func AppendBundle(bundle, entry []byte) []byte {
	bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(entry)))
	return append(bundle, entry...)
}

// ParseBundle returns the entries of a bundle, which alias it. Its errors are of kind fault.Corrupt.
func ParseBundle(bundle []byte) ([][]byte, error) {
	var out [][]byte
	for at := 0; at < len(bundle); {
		rest := bundle[at:]
		if len(rest) < 2 || len(rest)-2 < int(binary.BigEndian.Uint16(rest)) {
			return nil, fault.Errorf(fault.Corrupt, "entry bundle: entry %d of the bundle is cut off", len(out))
		}
		end := 2 + int(binary.BigEndian.Uint16(rest))
		out = append(out, rest[2:end:end])
		at += end
	}
	return out, nil
}
