package ledger

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/store"
)

// Report says what Verify has checked.
type Report struct {
	Origin      string    `json:"origin"`
	Size        int64     `json:"size"` // entries, all of them checked
	Root        tlog.Hash `json:"root"`
	Hashes      int64     `json:"hashes"`      // stored hashes, all of them checked
	Checkpoints int64     `json:"checkpoints"` // signed tree heads, each checked against key and tree
}

// Damage is the first place, in the order of the log, where a ledger is not what was signed.
type Damage struct {
	Object string `json:"object"` // "entry", "hash" or "checkpoint"
	First  int64  `json:"first"`  // the entry; or where it can't be told which, the first that it may be
	Last   int64  `json:"last"`   // and the last
	Want   string `json:"want"`
	Got    string `json:"got"`
}

func (d *Damage) Error() string {
	at := fmt.Sprintf("%s %d", d.Object, d.First)
	switch {
	case d.Object == "entry" && d.First != d.Last:
		at = fmt.Sprintf("one or more of entries %d to %d", d.First, d.Last)
	case d.Object == "hash":
		at = fmt.Sprintf("stored hash over entries %d to %d", d.First, d.Last)
	case d.Object == "checkpoint":
		at = fmt.Sprintf("checkpoint of %d entries", d.First)
	}
	return fmt.Sprintf("%s: got %s, want %s", at, d.Got, d.Want)
}

// Unwrap makes Damage a fault.Corrupt.
func (d *Damage) Unwrap() error { return fault.Corrupt }

// Verify checks a whole ledger, without changing it and without any service: every entry against its stored
// hash, every stored hash against those below it, every checkpoint against the tree of its size and against the
// key. So any two checkpoints are consistent with each other. A ledger that is not what was signed
// gives a *Damage. The known checkpoints, signed notes that the auditor got earlier or elsewhere, must fit as
// well: without one, nobody can tell a ledger that was cut back to an older state from that older state.
func Verify(ctx context.Context, source Source, vkey string, known ...[]byte) (Report, error) {
	verifier, err := ParseVerifierKey(vkey)
	if err != nil {
		return Report{}, err
	}
	head, err := source.Load(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("verifying the ledger %s: %w", verifier.Name(), err)
	}
	a := &audit{source: source, verifier: verifier, origin: verifier.Name(), head: head}
	if err := a.run(ctx, 0); err != nil {
		return Report{}, fmt.Errorf("verifying the ledger %s: %w", a.origin, err)
	}
	for _, signed := range known {
		if err := a.contains(ctx, signed); err != nil {
			return Report{}, fmt.Errorf("verifying the ledger %s against a known checkpoint: %w", a.origin, err)
		}
	}
	return a.report, nil
}

// A section is the unit of work of an audit: a complete subtree of the ledger, or its last, incomplete one.
const (
	sectionLevel   = 12
	sectionEntries = 1 << sectionLevel
)

// audit walks over a ledger section by section. Sections are hashed in parallel and joined in order.
type audit struct {
	source   Source
	verifier note.Verifier
	origin   string
	head     store.Head
	tailOnly bool // check no checkpoint but the newest

	edge   *edge // of what was checked
	root   tlog.Hash
	report Report
}

// run checks the ledger from the section of entry from on. What is before it counts as checked in so
// far as the signed root commits to the stored hashes that sum it up.
func (a *audit) run(ctx context.Context, from int64) error {
	if a.head.Checkpoint == nil {
		return &Damage{Object: "checkpoint", Want: "a signed checkpoint", Got: "none"}
	}
	newest, err := a.parse(a.head)
	if err != nil {
		return err
	}
	a.root = newest.Root
	from = from / sectionEntries * sectionEntries
	if err := a.start(ctx, from); err != nil {
		return err
	}
	if err := a.sections(ctx, from); err != nil {
		return err
	}
	if got := a.edge.root(); got != a.root {
		return &Damage{Object: "entry", Last: max(0, a.head.Size-1), Want: "root " + a.root.String(), Got: "root " + got.String()}
	}
	a.report.Origin, a.report.Size, a.report.Root = a.origin, a.head.Size, a.root
	return nil
}

// start takes up the edge of the tree before the first section.
func (a *audit) start(ctx context.Context, from int64) error {
	hashes, err := a.source.Hashes(ctx, edgeIndexes(from))
	if err != nil {
		return fmt.Errorf("reading the tree of the first %d entries: %w", from, err)
	}
	a.edge = edgeOf(from, hashes)
	if from > 0 || a.tailOnly {
		return nil
	}
	for head, err := range a.source.Checkpoints(ctx, 0, 0) {
		if err != nil {
			return fmt.Errorf("reading the checkpoint of the empty tree: %w", err)
		}
		c, err := a.parse(head)
		if err != nil {
			return err
		}
		if err := a.fits(c, a.edge.root(), 0); err != nil {
			return err
		}
	}
	return nil
}

// sections checks all sections from the one at entry from on. At most a few are in memory.
func (a *audit) sections(ctx context.Context, from int64) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	started := make(chan chan *section, runtime.GOMAXPROCS(0))
	workers.Go(func() {
		defer close(started)
		for first := from; first < a.head.Size; first += sectionEntries {
			result := make(chan *section, 1)
			select {
			case started <- result:
			case <-ctx.Done():
				return
			}
			workers.Go(func() { result <- a.section(ctx, first) })
		}
	})
	checked := from
	for result := range started {
		if err := a.join(ctx, <-result, &checked); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// section is a hashed section.
type section struct {
	first  int64
	edge   edge        // of the section alone
	above  []tlog.Hash // stored hashes of the subtrees that its last entry completes, above the section
	heads  []inSection // checkpoints of sizes in the section
	hashes int64       // compared
	err    error       // where hashing ended early
}

// inSection is a checkpoint, and the root of the section's part of its tree.
type inSection struct {
	Checkpoint
	part tlog.Hash
}

// section hashes the section at entry first and compares what it can without knowing those before it.
func (a *audit) section(ctx context.Context, first int64) *section {
	s := &section{first: first}
	end := min(first+sectionEntries, a.head.Size)
	stored, err := a.storedHashes(ctx, first, end)
	if err != nil {
		s.err = err
		return s
	}
	heads := a.checkpoints(ctx, first, end)
	i := first
	for entry, err := range a.source.Entries(ctx, first, end) {
		if s.err = a.unreadable(i, err); s.err != nil {
			return s
		}
		if stored, s.err = s.add(i, entry, stored); s.err != nil {
			return s
		}
		i++
		if s.err = s.atSize(i, &heads); s.err != nil {
			return s
		}
	}
	if i < end {
		s.err = &Damage{Object: "entry", First: i, Last: i, Want: fmt.Sprintf("%d entries", a.head.Size), Got: "none"}
	}
	s.above = stored
	if s.err == nil && len(heads) > 0 {
		s.err = heads[0].err
	}
	return s
}

// unreadable makes Damage of an error of a source that can't read what should be entry i.
func (a *audit) unreadable(i int64, err error) error {
	if fault.KindOf(err) == fault.Corrupt {
		return &Damage{Object: "entry", First: i, Last: i, Want: "an entry", Got: err.Error()}
	}
	return err
}

// storedHashes reads the stored hashes that were written with the entries from first to end.
func (a *audit) storedHashes(ctx context.Context, first, end int64) ([]tlog.Hash, error) {
	from, to := tlog.StoredHashCount(first), tlog.StoredHashCount(end)
	indexes := make([]int64, to-from)
	for i := range indexes {
		indexes[i] = from + int64(i)
	}
	hashes, err := a.source.Hashes(ctx, indexes)
	if err != nil {
		err = fmt.Errorf("reading the stored hashes of entries %d to %d: %w", first, end-1, err)
	}
	return hashes, err
}

// add hashes entry i and compares it, and the subtrees of the section that it completes, with the stored
// hashes. It returns those that are left.
func (s *section) add(i int64, entry []byte, stored []tlog.Hash) ([]tlog.Hash, error) {
	var err error
	s.edge.add(tlog.RecordHash(entry), func(level int, got tlog.Hash) {
		if err == nil && stored[0] != got {
			err = &mismatch{entry: i, level: level, got: got, stored: stored[0]}
		}
		stored = stored[1:]
		s.hashes++
	})
	return stored, err
}

// mismatch is a stored hash that is not the hash of what is below it: either may be damaged.
type mismatch struct {
	entry       int64 // the last one below the hash
	level       int
	got, stored tlog.Hash
}

func (m *mismatch) Error() string { return fmt.Sprintf("stored hash above entry %d", m.entry) }

// damage finds out which side of a mismatch the signed root commits to. The proof of m.entry is made of
// the hashes on its left, which were found to be right up to m.level, and of those on its right.
func (a *audit) damage(ctx context.Context, m *mismatch) error {
	span := int64(1) << m.level
	d := &Damage{Object: "entry", First: m.entry + 1 - span, Last: m.entry, Want: "hash " + m.stored.String(), Got: "hash " + m.got.String()}
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) { return a.source.Hashes(ctx, indexes) })
	proof, err := tlog.ProveRecord(a.head.Size, m.entry, reader)
	if err != nil {
		return d
	}
	for entry, err := range a.source.Entries(ctx, m.entry, m.entry+1) {
		if err == nil && tlog.CheckRecord(proof, a.head.Size, a.root, m.entry, tlog.RecordHash(entry)) == nil {
			d.Object, d.Want, d.Got = "hash", d.Got, d.Want
		}
	}
	return d
}

// checkpoints reads the checkpoints with a size after first and up to end.
func (a *audit) checkpoints(ctx context.Context, first, end int64) []checkedHead {
	if a.tailOnly {
		return nil
	}
	var out []checkedHead
	size := first
	for head, err := range a.source.Checkpoints(ctx, first+1, end) {
		h := checkedHead{err: err}
		if err == nil {
			h.checkpoint, h.err = a.parse(head)
		}
		size = max(size+1, head.Size)
		h.size = size
		out = append(out, h)
	}
	return out
}

// checkedHead is a stored checkpoint whose signature was checked, with what was found.
type checkedHead struct {
	size       int64
	checkpoint Checkpoint
	err        error
}

// atSize takes up the checkpoint of this size, if the ledger has one.
func (s *section) atSize(size int64, heads *[]checkedHead) error {
	for len(*heads) > 0 && (*heads)[0].size <= size {
		h := (*heads)[0]
		*heads = (*heads)[1:]
		if h.err != nil {
			return h.err
		}
		s.heads = append(s.heads, inSection{h.checkpoint, s.edge.root()})
	}
	return nil
}

// join puts a section onto the tree of those before it, and compares what could not be compared before.
// Checked is the size up to which a checkpoint has confirmed the entries.
func (a *audit) join(ctx context.Context, s *section, checked *int64) error {
	for _, h := range s.heads {
		if err := a.fits(h.Checkpoint, a.edge.over(sectionLevel, h.part), *checked); err != nil {
			return err
		}
		*checked = h.Size
	}
	if m, ok := s.err.(*mismatch); ok {
		return a.damage(ctx, m)
	}
	if s.err != nil {
		return s.err
	}
	if err := a.joinEdge(ctx, s); err != nil {
		return err
	}
	a.report.Hashes += s.hashes
	return nil
}

// joinEdge adds the section's subtrees to the edge and compares those that they complete with what is stored.
func (a *audit) joinEdge(ctx context.Context, s *section) error {
	var bad *mismatch
	for level := sectionLevel; level >= 0; level-- {
		if s.edge.size>>level&1 == 0 {
			continue
		}
		a.edge.join(level, s.edge.roots[level], func(level int, got tlog.Hash) {
			if bad == nil && s.above[0] != got {
				bad = &mismatch{entry: s.first + s.edge.size - 1, level: level, got: got, stored: s.above[0]}
			}
			s.above = s.above[1:]
			s.hashes++
		})
	}
	if bad != nil {
		return a.damage(ctx, bad)
	}
	return nil
}

// parse checks the signature of a stored checkpoint and that it is one of this ledger, of this size.
func (a *audit) parse(head store.Head) (Checkpoint, error) {
	c, err := parseOwnCheckpoint(head.Checkpoint, a.verifier)
	if err != nil {
		want := fmt.Sprintf("one signed by %s+%08x", a.verifier.Name(), a.verifier.KeyHash())
		d := &Damage{Object: "checkpoint", First: head.Size, Last: head.Size, Want: want, Got: err.Error()}
		return c, fault.WithHint(d, "Check that the key belongs to this ledger.")
	}
	if c.Size != head.Size || c.Origin != a.origin {
		return c, &Damage{Object: "checkpoint", First: head.Size, Last: head.Size, Want: fmt.Sprintf("size %d of %s", head.Size, a.origin),
			Got: fmt.Sprintf("size %d of %s", c.Size, c.Origin)}
	}
	return c, nil
}

// fits checks a signed checkpoint against the tree of its size.
func (a *audit) fits(c Checkpoint, root tlog.Hash, checked int64) error {
	if c.Root != root {
		return &Damage{Object: "entry", First: checked, Last: max(checked, c.Size-1), Want: "root " + c.Root.String(), Got: "root " + root.String()}
	}
	a.report.Checkpoints++
	return nil
}

// contains checks that the ledger, which was checked, begins with the tree of a checkpoint from elsewhere.
func (a *audit) contains(ctx context.Context, signed []byte) error {
	c, err := ParseCheckpoint(signed, a.verifier)
	if err != nil {
		return err
	}
	if c.Size > a.head.Size {
		return &Damage{Object: "entry", First: a.head.Size, Last: c.Size - 1, Want: fmt.Sprintf("%d entries", c.Size), Got: "none"}
	}
	root, err := tlog.TreeHash(c.Size, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		return a.source.Hashes(ctx, indexes)
	}))
	if err != nil {
		return fmt.Errorf("hashing the first %d entries: %w", c.Size, err)
	}
	return a.fits(c, root, 0)
}
