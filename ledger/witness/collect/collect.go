// Package collect asks witnesses to cosign a log's newest checkpoint, again and again, and keeps what they answer.
//
// Nothing waits for it: the log goes on while witnesses are slow or gone, and readers see until which size a quorum holds.
//
// Each witness is asked at most once a second, for the newest checkpoint only, and later and later while it fails. When it is asked again
// though nothing has changed, it is for a younger time. What has a quorum is kept in one file, the newest of them:
// written atomically, it survives a crash, and losing it loses nothing but the time until the next answer.
//
// # Alarms
//
// A witness that knows this log otherwise than we do is no ordinary failure: the log was cut back, restored from an older copy,
// or forked; or the witness forgot. Each such state is told once as an error in the log of the program, counted, and stays in
// Status until the program ends. Nothing stops for it: who is right can't be decided here.
package collect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/durable"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/ledger/witness"
)

// Times and limits.
const (
	every          = time.Second      // at most one checkpoint a witness in this time
	refreshAfter   = time.Hour        // a cosignature of the newest checkpoint is asked for anew
	maxBackOff     = 5 * time.Minute  // between two tries of a witness that fails
	requestTimeout = 10 * time.Second // of one request
	maxAnswerBytes = 64 << 10
	heldSizes      = 16 // checkpoints for which late answers still count
)

// Log is the log, *ledger.Log has it.
type Log interface {
	Size() int64
	Checkpoint() []byte
	Root(ctx context.Context, size int64) (tlog.Hash, error)
	ProveConsistency(ctx context.Context, oldSize, newSize int64) (tlog.TreeProof, error)
}

// Config is what a Collector is made of.
type Config struct {
	Log      Log
	Verifier note.Verifier         // of the log's checkpoints
	Policy   func() witness.Policy // which witnesses there are, and what makes a quorum; asked in every turn
	File     string                // keeps the newest checkpoint with a quorum
	Client   *http.Client          // nil: one of its own
	Logger   *slog.Logger

	// Alarmed is told of every alarm, once. It is called with the Collector locked: it only takes note. nil: nobody is.
	Alarmed func(witness string, a Alarm)
}

// Collector collects. Its methods may be called by any number of goroutines, but Run and Finish one after another.
type Collector struct {
	config Config
	client *http.Client
	asking sync.WaitGroup

	mu     sync.Mutex
	peers  map[string]*peer    // by verifier key
	held   map[int64]*cosigned // by size
	quorum *cosigned           // the newest with one
	own    []Alarm             // about the log itself
	raised int                 // alarms, ever
}

// cosigned is a checkpoint with the cosignatures that it has so far.
type cosigned struct {
	size       int64
	checkpoint []byte
	by         map[string]witness.Cosignature // by verifier key
}

func (c *cosigned) note() []byte {
	var by []witness.Cosignature
	for _, key := range slices.Sorted(maps.Keys(c.by)) {
		by = append(by, c.by[key])
	}
	return witness.With(c.checkpoint, by...)
}

// peer is a witness as we know it.
type peer struct {
	busy      bool
	known     int64 // the size that it remembers, as far as we know
	cosigned  int64 // the largest that we have its cosignature of
	time      time.Time
	err       error
	failures  int
	notBefore time.Time
	alarms    []Alarm
}

// AlarmKind is what is wrong between the log and a witness.
type AlarmKind string

// The kinds.
const (
	Ahead    AlarmKind = "ahead"    // the witness cosigned a larger tree than the log has
	Forked   AlarmKind = "forked"   // it has another tree of the same size
	Refused  AlarmKind = "refused"  // it does not accept that our tree begins with the one that it remembers
	SetBack  AlarmKind = "set-back" // it remembers less than it cosigned
	CutBack  AlarmKind = "cut-back" // the log has less than a quorum cosigned
	Replaced AlarmKind = "replaced" // the log has another tree than a quorum cosigned
	Damaged  AlarmKind = "damaged"  // the file of the newest cosigned checkpoint is not what was written
)

// Alarm is an inconsistency between the log and what its witnesses have seen.
type Alarm struct {
	Kind  AlarmKind
	Since time.Time
	Cause string

	Size     int64  // of the log when it was found
	Evidence []byte // what was answered, or kept
}

// Open reads what was collected before, and checks it against the log.
func Open(ctx context.Context, config Config) (*Collector, error) {
	c := &Collector{config: config, client: config.Client, peers: make(map[string]*peer), held: make(map[int64]*cosigned)}
	if c.client == nil {
		c.client = &http.Client{
			Timeout:       requestTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	b, err := os.ReadFile(config.File)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the cosigned checkpoint: %w", err)
	}
	return c, c.recall(ctx, b)
}

// recall takes up the newest checkpoint with a quorum of an earlier run.
func (c *Collector) recall(ctx context.Context, b []byte) error {
	policy := c.config.Policy()
	r, err := witness.Check(b, c.config.Verifier, policy)
	if err != nil {
		c.alarm(nil, "", Damaged, fmt.Sprintf("%s: %v", c.config.File, err), b)
		return nil
	}
	own, _, _ := bytes.Cut(b, []byte("\n\n"))
	q := &cosigned{size: r.Checkpoint.Size, checkpoint: ownPart(b, own, c.config.Verifier), by: make(map[string]witness.Cosignature)}
	if q.size > c.config.Log.Size() {
		c.alarm(nil, "", CutBack, fmt.Sprintf("witnesses cosigned %d entries, and the ledger has %d: it was cut back, or restored from an older copy", q.size, c.config.Log.Size()), b)
		return nil
	}
	root, err := c.config.Log.Root(ctx, q.size)
	if err != nil {
		return fmt.Errorf("comparing the ledger with the cosigned checkpoint: %w", err)
	}
	if root != r.Checkpoint.Root {
		c.alarm(nil, "", Replaced, fmt.Sprintf("witnesses cosigned another tree of %d entries than the ledger has", q.size), b)
		return nil
	}
	for _, by := range r.By {
		q.by[by.Witness.String()] = by
		c.peers[by.Witness.String()] = &peer{known: q.size, cosigned: q.size, time: by.Time}
	}
	if r.Quorum && policy.Asks() {
		c.quorum, c.held[q.size] = q, q
	}
	return nil
}

// ownPart returns a checkpoint with the log's signature alone.
func ownPart(signed, text []byte, v note.Verifier) []byte {
	out := append(bytes.Clone(text), "\n\n"...)
	for line := range bytes.Lines(signed[len(out):]) {
		if bytes.HasPrefix(line, []byte("— "+v.Name()+" ")) {
			out = append(out, line...)
		}
	}
	return out
}

// Run collects until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	defer c.asking.Wait()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		c.turn(ctx, time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Finish asks once more, for what the log got last, until ctx ends. It does not wait for the second that is between two questions.
func (c *Collector) Finish(ctx context.Context) {
	c.turn(ctx, time.Now().Add(every))
	c.asking.Wait()
}

// turn asks every witness that is due. It waits for none: a witness that hangs delays no other.
func (c *Collector) turn(ctx context.Context, now time.Time) {
	size := c.config.Log.Size()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.config.Policy().Witnesses() {
		p := c.peer(w)
		stale := p.cosigned != size || now.Sub(p.time) > refreshAfter
		if w.URL == "" || p.busy || !stale || now.Before(p.notBefore) {
			continue
		}
		p.busy = true
		c.asking.Go(func() { c.ask(ctx, w) })
	}
}

// peer returns what is known of a witness. The caller has the lock.
func (c *Collector) peer(w witness.Witness) *peer {
	p := c.peers[w.Verifier.String()]
	if p == nil {
		p = new(peer)
		c.peers[w.Verifier.String()] = p
	}
	return p
}

// answer is a cosignature, and what it is of.
type answer struct {
	size   int64
	signed []byte // the checkpoint as the log signed it
	by     witness.Cosignature
}

// ask asks one witness and takes note of its answer.
func (c *Collector) ask(ctx context.Context, w witness.Witness) {
	a, err := c.exchange(ctx, w)
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.peer(w)
	if err == nil {
		err = c.take(w, p, a)
	}
	p.busy, p.err = false, err
	if err == nil {
		p.failures, p.notBefore = 0, now.Add(every)
		return
	}
	p.failures++
	p.notBefore = now.Add(min(every<<min(p.failures, 16), maxBackOff))
	if p.failures == 1 && ctx.Err() == nil {
		c.config.Logger.Warn("a witness did not cosign", "witness", w.Name, "error", err)
	}
}

// exchange gets a witness's cosignature of the newest checkpoint. When the witness remembers another size than we thought, it is
// asked again, with the proof from there.
func (c *Collector) exchange(ctx context.Context, w witness.Witness) (answer, error) {
	c.mu.Lock()
	old := c.peer(w).known
	c.mu.Unlock()
	for range 3 {
		signed := c.config.Log.Checkpoint()
		checkpoint, err := ledger.ParseCheckpoint(signed, c.config.Verifier)
		if err != nil {
			return answer{}, err
		}
		old = min(old, checkpoint.Size)
		status, body, err := c.post(ctx, w, old, checkpoint.Size, signed)
		switch {
		case err != nil:
			return answer{}, err
		case status == int(witness.Cosign):
			by, err := witness.Answered(signed, body, w.Verifier)
			return answer{checkpoint.Size, signed, by}, err
		case status == int(witness.Conflict):
			if old, err = c.conflict(w, old, checkpoint.Size, body); err != nil {
				return answer{}, err
			}
		case status == int(witness.BadProof):
			return answer{}, c.raise(w, Refused, fmt.Sprintf("%s does not accept that the tree of %d entries begins with the one of %d that it cosigned: %s",
				w.Name, checkpoint.Size, old, firstLine(body)), body)
		default:
			return answer{}, fault.Errorf(fault.Unavailable, "%s answered with status %d: %s", w.Name, status, firstLine(body))
		}
	}
	return answer{}, fault.Errorf(fault.Unavailable, "%s moves on faster than it can be asked", w.Name)
}

// conflict finds out what it means that a witness remembers another size, and returns that size.
func (c *Collector) conflict(w witness.Witness, old, size int64, body []byte) (int64, error) {
	remembers, err := witness.ParseConflict(body)
	if err != nil {
		return 0, fmt.Errorf("the answer of %s: %w", w.Name, err)
	}
	c.mu.Lock()
	p := c.peer(w)
	p.known = remembers
	cosigned := p.cosigned
	c.mu.Unlock()
	switch has := c.config.Log.Size(); {
	case remembers > has:
		return 0, c.raise(w, Ahead, fmt.Sprintf("%s cosigned %d entries, and the ledger has %d: it was cut back, restored from an older copy, or forked", w.Name, remembers, has), body)
	case remembers == size && old == size:
		return 0, c.raise(w, Forked, fmt.Sprintf("%s cosigned another tree of %d entries than the ledger has", w.Name, size), body)
	case remembers < cosigned:
		_ = c.raise(w, SetBack, fmt.Sprintf("%s cosigned %d entries and remembers %d: it can't be relied on", w.Name, cosigned, remembers), body) // it may sign all the same
	}
	return remembers, nil
}

// post sends one request.
func (c *Collector) post(ctx context.Context, w witness.Witness, old, size int64, signed []byte) (status int, body []byte, err error) {
	proof, err := c.config.Log.ProveConsistency(ctx, old, size)
	if err != nil {
		return 0, nil, err
	}
	if old == size {
		proof = nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	request := witness.Request{Old: old, Proof: proof, Checkpoint: c.Cosigned(signed)}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(w.URL, "/")+"/add-checkpoint", bytes.NewReader(request.Marshal()))
	if err != nil {
		return 0, nil, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, nil, fault.As(fault.Unavailable, fmt.Errorf("asking %s: %w", w.Name, err))
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	return resp.StatusCode, body, err
}

func firstLine(body []byte) string {
	line, _, _ := strings.Cut(string(body), "\n")
	return fmt.Sprintf("%.200q", line)
}

// raise raises an alarm about a witness, and returns it as an error. It takes the lock.
func (c *Collector) raise(w witness.Witness, kind AlarmKind, cause string, evidence []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alarm(c.peer(w), w.Name, kind, cause, evidence)
	return fault.Errorf(fault.Conflict, "%s", cause)
}

// alarm raises an alarm, once for each witness and kind. The caller has the lock, or nobody else knows the collector.
func (c *Collector) alarm(p *peer, name string, kind AlarmKind, cause string, evidence []byte) {
	list := &c.own
	if p != nil {
		list = &p.alarms
	}
	if slices.ContainsFunc(*list, func(a Alarm) bool { return a.Kind == kind }) {
		return
	}
	a := Alarm{kind, time.Now().UTC(), cause, c.config.Log.Size(), evidence}
	*list = append(*list, a)
	if c.config.Alarmed != nil {
		c.config.Alarmed(name, a)
	}
	c.raised++
	c.config.Logger.Error("ALARM: the ledger and its witnesses do not agree", "witness", name, "kind", kind, "cause", cause)
}

// take takes up a cosignature. The caller has the lock.
func (c *Collector) take(w witness.Witness, p *peer, a answer) error {
	p.known, p.cosigned, p.time = a.size, a.size, a.by.Time
	h := c.hold(a)
	policy := c.config.Policy()
	if c.quorum != nil && c.quorum.size > h.size || !policy.Asks() {
		return nil
	}
	signed := h.note()
	r, err := witness.Check(signed, c.config.Verifier, policy)
	if err != nil || !r.Quorum {
		return err
	}
	if err := durable.Write(c.config.File, signed, 0o644); err != nil {
		return fmt.Errorf("keeping the checkpoint that %s cosigned: %w", w.Name, err)
	}
	c.quorum = h
	return nil
}

// hold adds a cosignature to those of its checkpoint, and lets go of the oldest checkpoints.
func (c *Collector) hold(a answer) *cosigned {
	h := c.held[a.size]
	if h == nil {
		h = &cosigned{a.size, a.signed, make(map[string]witness.Cosignature)}
		c.held[a.size] = h
	}
	h.by[a.by.Witness.String()] = a.by
	for sizes := slices.Sorted(maps.Keys(c.held)); len(sizes) > heldSizes; sizes = sizes[1:] {
		delete(c.held, sizes[0])
	}
	return h
}

// Cosigned returns a checkpoint of the log with the cosignatures that it has so far.
func (c *Collector) Cosigned(checkpoint []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.held {
		if bytes.Equal(h.checkpoint, checkpoint) {
			return h.note()
		}
	}
	return checkpoint
}

// Quorum returns the newest checkpoint with a quorum, and its size; or nil.
func (c *Collector) Quorum() ([]byte, int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.quorum == nil {
		return nil, 0
	}
	return c.quorum.note(), c.quorum.size
}

// Status is how the log stands with its witnesses.
type Status struct {
	Policy    witness.Policy
	Size      int64  // of the newest checkpoint
	Quorum    []byte // the newest checkpoint with a quorum, or nil
	UpTo      int64  // its size
	Witnesses []Peer // in the order of the policy
	Alarms    []Alarm
	Raised    int // alarms since the program started
}

// Peer is how the log stands with one witness.
type Peer struct {
	witness.Witness
	Cosigned int64     // the largest size that it cosigned
	Time     time.Time // when, by its clock; zero: never
	Err      error     // why it did not cosign when it was asked last, or nil
	Alarms   []Alarm
}

// Status returns how the log stands with its witnesses.
func (c *Collector) Status() Status {
	out := Status{Policy: c.config.Policy(), Size: c.config.Log.Size()}
	out.Quorum, out.UpTo = c.Quorum()
	c.mu.Lock()
	defer c.mu.Unlock()
	out.Alarms, out.Raised = slices.Clone(c.own), c.raised
	for _, w := range out.Policy.Witnesses() {
		p := c.peer(w)
		out.Witnesses = append(out.Witnesses, Peer{w, p.cosigned, p.time, p.err, slices.Clone(p.alarms)})
	}
	return out
}
