package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/store"
)

// Limits of a group, the unit of commit. A group is closed when it reaches either; it may exceed
// maxGroupBytes by one call's entries.
const (
	maxGroupEntries = 512
	maxGroupBytes   = 4 << 20
	maxQueuedCalls  = 512
	defaultRecheck  = 1 << 17
)

// Log is an open ledger. Its methods may be called by any number of goroutines.
type Log struct {
	config Config
	store  store.Store
	queue  chan *call
	quit   chan struct{} // closed by Close: no more calls are taken
	done   chan struct{} // closed by the writer when it has ended
	close  sync.Once
	head   atomic.Pointer[store.Head] // the newest durable commit; only the writer sets it

	// The fields below belong to the writer.
	edge   edge
	doubt  *group // given to the store, which failed and could not say whether it is durable
	broken error  // why nothing can be appended any more
}

// Open opens the ledger in s, or starts one when s is new, and starts its writer. It refuses a ledger
// whose newest checkpoint is not signed by the configured key, that was truncated, or whose newest entries
// (Config.Recheck) do not hash to what the checkpoint says: fault.Corrupt, naming the first such entry
// (see Damage). Verify checks all there is. The caller closes the log before the store.
func Open(ctx context.Context, s store.Store, config Config) (*Log, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	l := &Log{
		config: config,
		store:  s,
		queue:  make(chan *call, maxQueuedCalls),
		quit:   make(chan struct{}),
		done:   make(chan struct{}),
	}
	head, err := s.Load(ctx)
	if err == nil && head.Checkpoint == nil {
		head, err = l.begin(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the ledger %s: %w", config.Origin, err)
	}
	if err := l.recover(ctx, head); err != nil {
		return nil, fmt.Errorf("opening the ledger %s: %w", config.Origin, err)
	}
	go l.write(context.WithoutCancel(ctx))
	return l, nil
}

func (c *Config) check() error {
	switch {
	case c.Origin == "" || c.Signer == nil || c.Verifier == nil:
		return fault.Errorf(fault.Invalid, "opening a ledger: origin, signer and verifier are required")
	case c.Signer.Name() != c.Origin:
		return fault.Errorf(fault.Invalid, "opening the ledger %s: the key is named %s", c.Origin, c.Signer.Name())
	case c.Signer.KeyHash() != c.Verifier.KeyHash():
		return fault.Errorf(fault.Invalid, "opening the ledger %s: signer and verifier are not one key", c.Origin)
	}
	if c.Recheck <= 0 {
		c.Recheck = defaultRecheck
	}
	return nil
}

// begin commits the checkpoint of the empty tree to a new store.
func (l *Log) begin(ctx context.Context) (store.Head, error) {
	var e edge
	signed, err := Checkpoint{Origin: l.config.Origin, Root: e.root()}.Sign(l.config.Signer)
	if err != nil {
		return store.Head{}, err
	}
	if err := l.store.Append(ctx, 0, store.Batch{Checkpoint: signed}); err != nil {
		return store.Head{}, fmt.Errorf("committing the empty tree: %w", err)
	}
	return store.Head{Checkpoint: signed}, nil
}

// recover checks the tail of the ledger and takes up its edge.
func (l *Log) recover(ctx context.Context, head store.Head) error {
	snapshot, err := l.store.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("reading the newest snapshot: %w", err)
	}
	if snapshot.Size > head.Size {
		return &Damage{Object: "entry", First: head.Size, Last: snapshot.Size - 1,
			Want: fmt.Sprintf("%d entries, as a snapshot saw", snapshot.Size), Got: "none"}
	}
	from := max(0, min(snapshot.Size, head.Size-l.config.Recheck))
	audit := &audit{source: l.store, verifier: l.config.Verifier, origin: l.config.Origin, head: head, tailOnly: true}
	if err := audit.run(ctx, from); err != nil {
		return err
	}
	l.edge = *audit.edge
	l.head.Store(&head)
	return nil
}

// Close waits for the calls that were taken, then stops the writer. The store stays open.
func (l *Log) Close() error {
	l.close.Do(func() { close(l.quit) })
	<-l.done
	return nil
}

// Append appends the entries that decide returns, durably, and returns the index of the first.
//
// The decide functions of all calls run one after another in the writer, each with the index that its
// first entry will have, and knowing all entries before it: those durable, and those that the decide
// functions before it returned. It must not block or call Append. When it fails, or returns no entry, so does
// Append, once all that decide could have relied on is durable.
//
// Entries are committed in groups, with one checkpoint each. When a commit fails (fault.Unavailable when the
// disk is full), every call of its group fails and the log is as before. When the store can't even say
// whether it failed, the calls fail with fault.Unavailable, and the log asks again before anything else is
// decided. Append gives up on a done ctx only before decide was called.
func (l *Log) Append(ctx context.Context, decide func(next int64) ([][]byte, error)) (first int64, err error) {
	c := &call{decide: decide, done: make(chan struct{})}
	select {
	case <-l.quit:
		return 0, errClosed()
	default:
	}
	select {
	case l.queue <- c:
	case <-l.quit:
		return 0, errClosed()
	case <-ctx.Done():
		return 0, fmt.Errorf("waiting to append: %w", context.Cause(ctx))
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		if c.take() {
			return 0, fmt.Errorf("waiting to append: %w", context.Cause(ctx))
		}
		<-c.done
	case <-l.done: // the writer ended; it may have missed this call
		if c.take() {
			return 0, errClosed()
		}
		<-c.done
	}
	return c.first, c.err
}

func errClosed() error {
	return fault.Errorf(fault.Unavailable, "appending: the ledger is closed")
}

// call is one Append. The writer and the caller race to take it, once: before the writer calls decide, or
// when the caller gives up waiting.
type call struct {
	decide func(int64) ([][]byte, error)
	taken  atomic.Bool
	first  int64
	err    error
	done   chan struct{} // closed when first and err are final
}

func (c *call) take() bool { return c.taken.CompareAndSwap(false, true) }

func (c *call) fail(err error) {
	c.err = err
	close(c.done)
}

// write is the writer: it takes what is queued, commits it, and repeats.
func (l *Log) write(ctx context.Context) {
	defer close(l.done)
	for {
		select {
		case c := <-l.queue:
			l.turn(ctx, c)
		case <-l.quit:
			for len(l.queue) > 0 {
				l.turn(ctx, <-l.queue)
			}
			return
		}
	}
}

// turn commits one group that begins with c.
func (l *Log) turn(ctx context.Context, c *call) {
	if err := l.settle(ctx); err != nil {
		if c.take() {
			c.fail(err)
		}
		return
	}
	g := l.gather(c)
	g.finish(l.commit(ctx, g))
	if g.refused != nil {
		l.abandon() // what its decide may have kept in mind never came to be
		g.refused.fail(g.refusal)
	}
}

// commit makes the group durable. A crash before the store returns leaves either nothing of the group or
// all of it; a crash after it leaves all of it.
func (l *Log) commit(ctx context.Context, g *group) error {
	if len(g.batch.Entries) == 0 {
		return nil
	}
	signed, err := Checkpoint{Origin: l.config.Origin, Size: g.edge.size, Root: g.edge.root()}.Sign(l.config.Signer)
	if err != nil {
		l.abandon()
		return err
	}
	g.batch.Checkpoint = signed
	if err := l.store.Append(ctx, g.first, g.batch); err != nil {
		return l.resolve(ctx, g, fmt.Errorf("appending %d entries at %d: %w", len(g.batch.Entries), g.first, err))
	}
	l.publish(g)
	return nil
}

// resolve finds out what became of a group whose commit failed with cause. It returns nil when the group is
// durable after all.
func (l *Log) resolve(ctx context.Context, g *group, cause error) error {
	l.doubt = nil
	head, err := l.store.Load(ctx)
	switch {
	case err != nil:
		l.doubt = g
		return fault.As(fault.Unavailable, fmt.Errorf("%w; whether they are durable is not known: %w", cause, err))
	case head.Size == g.edge.size && bytes.Equal(head.Checkpoint, g.batch.Checkpoint):
		l.publish(g)
		return nil
	case head.Size == g.first && bytes.Equal(head.Checkpoint, l.head.Load().Checkpoint):
		l.abandon()
		return cause
	}
	l.abandon()
	l.broken = fault.Errorf(fault.Conflict, "appending at %d: the store has moved to size %d under its one writer", g.first, head.Size)
	return errors.Join(l.broken, cause)
}

// settle makes sure that the writer knows what is durable before anything is decided.
func (l *Log) settle(ctx context.Context) error {
	if l.doubt != nil {
		cause := fmt.Errorf("appending at %d: an earlier commit is in doubt", l.doubt.first)
		if err := l.resolve(ctx, l.doubt, cause); l.doubt != nil {
			return err
		}
	}
	return l.broken
}

// publish makes a durable group the newest commit.
func (l *Log) publish(g *group) {
	l.edge = g.edge
	l.head.Store(&store.Head{Size: g.edge.size, Checkpoint: g.batch.Checkpoint})
	if l.config.Committed != nil {
		l.config.Committed(g.first, g.batch.Entries)
	}
}

func (l *Log) abandon() {
	if l.config.Abandoned != nil {
		l.config.Abandoned()
	}
}
