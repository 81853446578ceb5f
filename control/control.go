// Package control has the use cases: plan, apply, roll back, destroy, record what a rollout does, and who may
// speak to the server. It is the one writer of the ledger.
//
// Every use case that changes anything is decided on the newest state inside the ledger's writer, where nothing
// can come between: the decision is the compare-and-swap. What it decides becomes entries; when a method returns without
// error, they are durable and in a signed tree, and the state that State returns has them. When it fails, nothing has
// happened, but for fault.Unavailable from a store that can't say whether it failed: then read again.
//
// Whoever acts on an entry (package reconcile) reads it from State, and so never acts on what is not durable.
package control

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/secret"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
	"github.com/invarhq/invar/store"
)

// Blobs keeps content by digest: bundles, sources, release records, images, roots.
type Blobs interface {
	// Put stores what r holds, durably, and returns its name and size.
	Put(ctx context.Context, r io.Reader) (digest.Digest, int64, error)
	// Open returns a reader of the blob and its size. It fails with fault.NotFound, and a read that finds damage with fault.Corrupt.
	Open(d digest.Digest) (io.ReadCloser, int64, error)
	// Has reports whether the blob is there.
	Has(d digest.Digest) bool
}

// Evaluate evaluates a bundle's sources (the deterministic tar, compressed) for an environment. It is pure but for
// reading source. The bundle's digest is given too, for the record, and the newest versions of the environment's secrets. With the
// record it returns the environment that the sources let bundles come from; "" is any.
type Evaluate func(ctx context.Context, source io.Reader, env spec.EnvName, bundle release.Bundle, name digest.Digest, pins release.Pins) (r release.Record, from spec.EnvName, err error)

// Secrets encrypts and keeps the values of secrets.
type Secrets interface {
	// Put makes a version with this value, durably, and returns its name. It does not keep the value.
	Put(r secret.Ref, value []byte) (digest.Digest, error)
	// Has reports whether a version is there.
	Has(version digest.Digest) bool
}

// Config is what a Service is made of. Every field is required but those that say otherwise.
type Config struct {
	Store    store.Store // the ledger's; the caller closes it after the Service
	Blobs    Blobs
	Attached func(manifest digest.Digest) ([]digest.Digest, error) // all that is attached to an image: SBOM, provenance; nil: nothing is
	Evaluate Evaluate
	Images   Images  // what policies are told of images; nil: nothing
	Secrets  Secrets // nil: no secret can be set

	SignStatement func(statement []byte) (envelope []byte, err error) // with the ledger's key, as DSSE has it; nil: nothing is attested
	Measure       Measure                                             // nil: nothing can be verified

	Origin   string        // the ledger's name
	Signer   note.Signer   // of the ledger's checkpoints, and of the snapshots of the state
	Verifier note.Verifier // of what Signer signs
	VKey     string        // Verifier as text, for the genesis entry
	User     string        // user name that the server runs as: beside root, the owner of a server without a definition; may be ""
	Version  string        // of invar, for log.start entries
	Compares string        // how often every instance is compared with its release, for log.start entries: state.Never, or a duration; "": not told

	Recordings Recordings // nil: no session can be opened

	// Init makes a new ledger in an empty store. Without it an empty store is refused: a ledger that
	// is missing must not be taken for one that is new. With it, a store that has a ledger is refused.
	Init bool

	Now           func() time.Time     // time.Now when nil
	NewID         func() state.EntryID // a UUID of version 7, uuid.NewV7 when nil
	Random        io.Reader            // for the secrets of tokens, crypto/rand when nil
	Log           *slog.Logger         // discards when nil
	SnapshotEvery int64                // entries between snapshots of the state; 10,000 when 0
}

// Actor is who asks for something. For State it is the actor of an entry.
type Actor = state.Actor

// Service is an open ledger with its use cases. Its methods may be called by any number of goroutines.
type Service struct {
	config  Config
	log     *ledger.Log
	live    *state.Live
	records *records

	evaluations evaluations
	refusals    refusals
	rules       atomic.Pointer[compiledRules]
	policies    policies

	pending state.State // the newest that anything was decided on, durable or not; only the ledger's writer uses it

	mu         sync.Mutex
	broken     error // entries were committed that the state refuses: nothing can be decided any more
	snapshotAt int64 // size at which a snapshot was last begun

	saveMu  sync.Mutex
	savedAt int64 // size of the newest snapshot that this Service stored

	saving   sync.WaitGroup
	sessions sync.WaitGroup // under way; Close waits for their ends to be recorded
}

// entry returns an entry by the actor, now.
func (s *Service) entry(by Actor, env spec.EnvName, data state.Data) state.Entry {
	return state.Entry{ID: s.config.NewID(), Time: state.Millis(s.config.Now()), Actor: by, Env: env, Data: data}
}

// append decides on the newest state and makes what was decided durable. It returns the index of the first entry. When
// decide returns no entries, append returns once all that decide saw is durable.
func (s *Service) append(ctx context.Context, decide func(now state.State) ([]state.Entry, error)) (int64, error) {
	if err := s.health(); err != nil {
		return 0, err
	}
	return s.log.Append(ctx, func(next int64) ([][]byte, error) {
		entries, err := decide(s.pending)
		if err != nil || len(entries) == 0 {
			return nil, err
		}
		leaves := make([][]byte, len(entries))
		for i, e := range entries {
			if leaves[i], err = state.Encode(e); err != nil {
				return nil, err
			}
		}
		after, err := s.pending.ApplyAll(next, entries)
		if err != nil {
			return nil, err
		}
		s.pending = after
		return leaves, nil
	})
}

// committed publishes entries that have become durable: all that were decided. The writer calls it.
func (s *Service) committed(first int64, leaves [][]byte) {
	end := first + int64(len(leaves))
	err := s.live.Publish(s.pending)
	if err == nil && s.pending.Size() != end {
		err = fault.Errorf(fault.Corrupt, "the state is of size %d", s.pending.Size())
	}
	s.pending = s.live.Now()
	if err != nil {
		s.fail(fmt.Errorf("publishing the state after %d entries: %w", end, err))
		return
	}
	s.saveSoon(s.pending)
}

// abandoned forgets what was decided on entries that never came to be. The writer calls it.
func (s *Service) abandoned() { s.pending = s.live.Now() }

func (s *Service) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = err
	s.config.Log.Error("the state does not follow the ledger; restart to fold it again", "error", err)
}

func (s *Service) health() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}
