package ledger

import (
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// edge is the right edge of a tree: for each bit set in size, the root of the complete subtree of that
// many leaves. It is all that is needed to append and to compute the root (RFC 6962, section 2.1).
type edge struct {
	size  int64
	roots [63]tlog.Hash // by level; those of bits not set in size mean nothing
}

// add appends a leaf and gives yield the hashes to be stored for it: the leaf, then the root of
// each subtree that it completes, upwards.
func (e *edge) add(leaf tlog.Hash, yield func(level int, h tlog.Hash)) {
	yield(0, leaf)
	e.join(0, leaf, yield)
}

// join appends the complete subtree of 2^level leaves with this root; size must be a multiple of
// 2^level. It gives yield the roots of the subtrees that it completes, upwards.
func (e *edge) join(level int, root tlog.Hash, yield func(level int, h tlog.Hash)) {
	leaves := int64(1) << level
	h := root
	for ; e.size>>level&1 == 1; level++ {
		h = tlog.NodeHash(e.roots[level], h)
		yield(level+1, h)
	}
	e.roots[level] = h
	e.size += leaves
}

// root returns the root hash of the tree.
func (e *edge) root() tlog.Hash {
	if e.size == 0 {
		empty, _ := tlog.TreeHash(0, nil)
		return empty
	}
	level := bits.TrailingZeros64(uint64(e.size))
	return e.over(level+1, e.roots[level])
}

// over returns the root of the tree whose right part, below level, hashes to right.
func (e *edge) over(level int, right tlog.Hash) tlog.Hash {
	h := right
	for ; e.size>>level != 0; level++ {
		if e.size>>level&1 == 1 {
			h = tlog.NodeHash(e.roots[level], h)
		}
	}
	return h
}

// edgeIndexes returns the stored hash indexes of the edge of a tree of this size, by falling level.
func edgeIndexes(size int64) []int64 {
	var out []int64
	for level := 62; level >= 0; level-- {
		if size>>level&1 == 1 {
			out = append(out, tlog.StoredHashIndex(level, size>>level-1))
		}
	}
	return out
}

// edgeOf returns the edge of a tree of this size from the hashes of edgeIndexes.
func edgeOf(size int64, hashes []tlog.Hash) *edge {
	e := &edge{size: size}
	for level := 62; level >= 0; level-- {
		if size>>level&1 == 1 {
			e.roots[level], hashes = hashes[0], hashes[1:]
		}
	}
	return e
}
