package control

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	goruntime "runtime"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/state"
	"github.com/invarhq/invar/store"
)

// Open opens the ledger and folds its state. It fails with fault.NotFound when there is no ledger and Init does not
// ask for one, with fault.Conflict when there is one and Init asks for another, and with fault.Corrupt, naming the entry, when
// the ledger does not hold.
func Open(ctx context.Context, c Config) (*Service, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	if err := c.checkInit(ctx); err != nil {
		return nil, fmt.Errorf("opening the ledger %s: %w", c.Origin, err)
	}
	s := &Service{config: c, records: &records{blobs: c.Blobs, known: map[digest.Digest]release.Record{}},
		evaluations: evaluations{known: map[evaluation]evaluated{}}}
	log, err := ledger.Open(ctx, c.Store, ledger.Config{
		Origin: c.Origin, Signer: c.Signer, Verifier: c.Verifier,
		Committed: s.committed, Abandoned: s.abandoned,
	})
	if err != nil {
		return nil, err
	}
	s.log = log
	if err := s.begin(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the ledger %s: %w", c.Origin, err), log.Close())
	}
	if err := s.endLost(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the ledger %s: %w", c.Origin, err), log.Close())
	}
	return s, nil
}

// complete fills in what may be left out.
func (c *Config) complete() error {
	if c.Store == nil || c.Blobs == nil || c.Evaluate == nil || c.Signer == nil || c.Verifier == nil || c.Origin == "" || c.VKey == "" || c.Version == "" {
		return fault.Errorf(fault.Invalid, "opening the ledger: a required field of control.Config is missing")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.NewID == nil {
		c.NewID = func() state.EntryID { return state.EntryID(uuid.Must(uuid.NewV7()).String()) }
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.SnapshotEvery = cmp.Or(c.SnapshotEvery, 10_000)
	return nil
}

func (c *Config) checkInit(ctx context.Context) error {
	head, err := c.Store.Load(ctx)
	switch {
	case err != nil:
		return err
	case head.Size == 0 && !c.Init:
		return fault.WithHint(fault.Errorf(fault.NotFound, "the store has no ledger"), "check the data directory; a new one begins in a directory that does not exist yet")
	case head.Size > 0 && c.Init:
		return fault.Errorf(fault.Conflict, "the store already has a ledger of %d entries", head.Size)
	}
	return nil
}

// begin folds the state and records the start.
func (s *Service) begin(ctx context.Context) error {
	now, err := s.restore(ctx)
	if err != nil {
		return err
	}
	s.live = state.NewLive(now)
	s.pending = s.live.Now()
	if l := now.Log(); l.Size > 0 && (l.Origin != s.config.Origin || l.VKey != s.config.VKey) {
		return fault.Errorf(fault.Conflict, "it was begun as %s with key %s, not with key %s", l.Origin, l.VKey, s.config.VKey)
	}
	_, err = s.append(ctx, func(now state.State) ([]state.Entry, error) {
		var out []state.Entry
		if now.Size() == 0 {
			out = append(out, s.entry(operator, "", state.Genesis{Origin: s.config.Origin, VKey: s.config.VKey}))
		}
		return append(out, s.entry(operator, "", state.LogStart{Version: s.config.Version, Compares: s.config.Compares})), nil
	})
	return err
}

// operator is the actor of the ledger's own life.
var operator = Actor{Kind: state.ActorSystem, Name: "server"}

// fold folds the entries that the state lacks.
func (s *Service) fold(ctx context.Context, now state.State) (state.State, error) {
	const batch = 4096
	leaves := make([][]byte, 0, batch)
	first, end := now.Size(), s.log.Size()
	for raw, err := range s.log.Entries(ctx, first, end) {
		if err != nil {
			return now, fmt.Errorf("reading the entries from %d on: %w", first, err)
		}
		leaves = append(leaves, bytes.Clone(raw))
		if len(leaves) < batch && first+int64(len(leaves)) < end {
			continue
		}
		entries, err := decodeAll(first, leaves)
		if err != nil {
			return now, err
		}
		if now, err = now.ApplyAll(first, entries); err != nil {
			return now, fault.As(fault.Corrupt, err)
		}
		first, leaves = first+int64(len(leaves)), leaves[:0]
	}
	return now, nil
}

// decodeAll decodes entries on all processors, which is most of the work of a fold. Its error is that of the first
// bad entry.
func decodeAll(first int64, leaves [][]byte) ([]state.Entry, error) {
	entries, bad := make([]state.Entry, len(leaves)), make([]error, len(leaves))
	part := len(leaves)/goruntime.GOMAXPROCS(0) + 1
	var wg sync.WaitGroup
	for from := 0; from < len(leaves); from += part {
		wg.Go(func() {
			for i := from; i < min(from+part, len(leaves)); i++ {
				entries[i], bad[i] = state.Decode(leaves[i])
			}
		})
	}
	wg.Wait()
	for i, err := range bad {
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", first+int64(i), err)
		}
	}
	return entries, nil
}

// restore returns the state after all entries: from the newest snapshot on, or from the first entry on when there
// is none that can be used. A snapshot is only a cache, but a changed one would change the state: so it is signed.
func (s *Service) restore(ctx context.Context) (state.State, error) {
	snap, err := s.config.Store.Snapshot(ctx)
	if err != nil {
		return state.State{}, fmt.Errorf("reading the snapshot: %w", err)
	}
	if snap.Size > 0 {
		now, err := s.openSnapshot(snap)
		if err == nil {
			now, err = s.fold(ctx, now)
		}
		if err == nil {
			s.snapshotAt, s.savedAt = snap.Size, snap.Size
			return now, nil
		}
		s.config.Log.WarnContext(ctx, "folding all entries: the snapshot can't be used", "size", snap.Size, "error", err)
	}
	return s.fold(ctx, state.New(s.records.get))
}

// snapshotText is what is signed of a snapshot.
func (s *Service) snapshotText(size int64, body []byte) string {
	return fmt.Sprintf("invar state\n%s\n%d\n%s\n", s.config.Origin, size, digest.Of(body))
}

// seal returns a snapshot: a signed note over the state's size and digest, a zero byte, and the state.
func (s *Service) seal(now state.State) (store.Snapshot, error) {
	body, err := now.Encode()
	if err != nil {
		return store.Snapshot{}, err
	}
	signed, err := note.Sign(&note.Note{Text: s.snapshotText(now.Size(), body)}, s.config.Signer)
	if err != nil {
		return store.Snapshot{}, fmt.Errorf("signing the state at %d: %w", now.Size(), err)
	}
	return store.Snapshot{Size: now.Size(), State: bytes.Join([][]byte{signed, body}, []byte{0})}, nil
}

func (s *Service) openSnapshot(snap store.Snapshot) (state.State, error) {
	signed, body, _ := bytes.Cut(snap.State, []byte{0})
	n, err := note.Open(signed, note.VerifierList(s.config.Verifier))
	if err != nil {
		return state.State{}, fmt.Errorf("opening the snapshot: %w", err)
	}
	if n.Text != s.snapshotText(snap.Size, body) {
		return state.State{}, fault.Errorf(fault.Corrupt, "opening the snapshot: it is not what was signed")
	}
	now, err := state.DecodeState(body, s.records.get)
	if err == nil && now.Size() != snap.Size {
		err = fault.Errorf(fault.Corrupt, "opening the snapshot: it is of size %d, not %d", now.Size(), snap.Size)
	}
	return now, err
}

// saveSoon saves a snapshot in the background when there are enough new entries.
func (s *Service) saveSoon(now state.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Size()-s.snapshotAt < s.config.SnapshotEvery {
		return
	}
	s.snapshotAt = now.Size()
	s.saving.Go(func() {
		if err := s.save(context.Background(), now); err != nil {
			s.config.Log.Warn("the state was not saved; the next start takes longer", "size", now.Size(), "error", err)
		}
	})
}

// save stores a snapshot, unless a newer one is there.
func (s *Service) save(ctx context.Context, now state.State) error {
	snap, err := s.seal(now)
	if err != nil {
		return err
	}
	s.saveMu.Lock()
	defer s.saveMu.Unlock()
	if now.Size() <= s.savedAt {
		return nil
	}
	if err := s.config.Store.PutSnapshot(ctx, snap); err != nil {
		return fmt.Errorf("storing the state at %d: %w", now.Size(), err)
	}
	s.savedAt = now.Size()
	return nil
}

// Close records the stop, saves a snapshot, and closes the ledger. It does all of it even when a part fails. No
// other call may be running or follow.
func (s *Service) Close(ctx context.Context) error {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.sessions.Wait()
	}()
	select {
	case <-ended:
	case <-ctx.Done(): // the next Service records them as lost
	}
	s.flushRefusals(ctx, s.config.Now().Add(refusalWindow)) // also those whose minute is not over
	_, stop := s.append(ctx, func(state.State) ([]state.Entry, error) {
		return []state.Entry{s.entry(operator, "", state.LogStop{})}, nil
	})
	s.saving.Wait()
	var save error
	if s.health() == nil {
		save = s.save(ctx, s.State())
	}
	return errors.Join(stop, save, s.log.Close())
}
