package ledger

import (
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/store"
)

// group is what is committed at once: the entries of the calls, and the tree with them.
type group struct {
	first   int64
	calls   []*call
	batch   store.Batch
	bytes   int
	edge    edge  // with the entries of the group
	refused *call // its entries can't be appended, for the reason refusal; it ended the group
	refusal error
}

// gather decides c and what is queued behind it, up to the limits of a group.
func (l *Log) gather(c *call) *group {
	g := &group{first: l.edge.size, edge: l.edge}
	for g.decide(c) {
		select {
		case c = <-l.queue:
		default:
			return g
		}
	}
	return g
}

// decide adds the call to the group, and says whether the group can take another one.
func (g *group) decide(c *call) bool {
	if !c.take() {
		return true // its caller has given up
	}
	c.first = g.edge.size
	entries, err := c.decide(c.first)
	if err == nil {
		if err := checkSizes(entries); err != nil {
			g.refused, g.refusal = c, err
			return false
		}
		g.add(entries)
	}
	c.err = err
	g.calls = append(g.calls, c)
	return len(g.batch.Entries) < maxGroupEntries && g.bytes < maxGroupBytes
}

func checkSizes(entries [][]byte) error {
	for _, e := range entries {
		if len(e) > MaxEntryBytes {
			return fault.Errorf(fault.Invalid, "appending an entry of %d bytes: an entry has at most %d", len(e), MaxEntryBytes)
		}
	}
	return nil
}

func (g *group) add(entries [][]byte) {
	store := func(_ int, h tlog.Hash) { g.batch.Hashes = append(g.batch.Hashes, h) }
	for _, e := range entries {
		g.edge.add(tlog.RecordHash(e), store)
		g.bytes += len(e)
	}
	g.batch.Entries = append(g.batch.Entries, entries...)
}

// finish returns to the callers of the group: with what was decided, or all with err.
func (g *group) finish(err error) {
	for _, c := range g.calls {
		if err != nil {
			c.err = err
		}
		close(c.done)
	}
}
