package control

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// State returns the newest durable state: environments, histories, releases, tokens, and channels that tell of changes.
func (s *Service) State() state.State { return s.live.Now() }

// Ledger returns the ledger for reading: entries, proofs, checkpoints, tiles. Nothing but the Service may append to it.
func (s *Service) Ledger() *ledger.Log { return s.log }

// Release returns a release that was applied once. It fails with fault.NotFound.
func (s *Service) Release(ctx context.Context, d digest.Digest) (release.Record, error) {
	if _, err := s.State().Release(d); err != nil {
		return release.Record{}, err
	}
	return s.records.get(d)
}

// Bundle returns a bundle that was applied once. It fails with fault.NotFound.
func (s *Service) Bundle(ctx context.Context, d digest.Digest) (release.Bundle, error) {
	if _, err := s.State().Bundle(d); err != nil {
		return release.Bundle{}, err
	}
	raw, err := s.read(d, release.MaxBundleBytes)
	if err != nil {
		return release.Bundle{}, fmt.Errorf("reading bundle %s: %w", d, err)
	}
	return release.DecodeBundle(raw)
}

// ReleaseOf returns the digest of the release of an environment's generation, 0 for the head. It fails with
// fault.NotFound, also when that generation destroyed the environment.
func (s *Service) ReleaseOf(name spec.EnvName, generation int) (digest.Digest, error) {
	now := s.State()
	env, err := now.Environment(name)
	if err != nil {
		return "", err
	}
	if generation == 0 {
		generation = env.Head.Number
	}
	g, err := now.Generation(name, generation)
	if err == nil && g.Release == "" {
		err = fault.Errorf(fault.NotFound, "environment %s was destroyed by generation %d", name, generation)
	}
	return g.Release, err
}

// Diff returns how release b differs from a; "" is no release.
func (s *Service) Diff(ctx context.Context, a, b digest.Digest) (release.Changes, error) {
	var recs [2]release.Record
	for i, d := range []digest.Digest{a, b} {
		if d == "" {
			continue
		}
		r, err := s.Release(ctx, d)
		if err != nil {
			return release.Changes{}, err
		}
		recs[i] = r
	}
	return release.Diff(recs[0], recs[1]), nil
}

// Indexed is an entry of the ledger.
type Indexed struct {
	Index int64
	Entry state.Entry
	Leaf  []byte // its exact bytes
}

// Entry returns an entry. It fails with fault.NotFound beyond the end.
func (s *Service) Entry(ctx context.Context, i int64) (Indexed, error) {
	leaf, err := s.log.Entry(ctx, i)
	if err != nil {
		return Indexed{}, err
	}
	e, err := state.Decode(leaf)
	if err != nil {
		return Indexed{}, fmt.Errorf("entry %d: %w", i, err)
	}
	return Indexed{i, e, leaf}, nil
}

// Entries yields the entries from the index from up to but not including to, in order. After an error nothing more is yielded.
func (s *Service) Entries(ctx context.Context, from, to int64) iter.Seq2[Indexed, error] {
	return func(yield func(Indexed, error) bool) {
		i := from
		for raw, err := range s.log.Entries(ctx, from, to) {
			if err != nil {
				yield(Indexed{}, err)
				return
			}
			leaf := append([]byte(nil), raw...)
			e, err := state.Decode(leaf)
			if err != nil {
				yield(Indexed{}, fmt.Errorf("entry %d: %w", i, err))
				return
			}
			if !yield(Indexed{i, e, leaf}, nil) {
				return
			}
			i++
		}
	}
}

// RanIn reports whether an instance was created for the environment, however long ago: it reads the ledger, from its end.
func (s *Service) RanIn(ctx context.Context, env spec.EnvName, id instance.ID) (bool, error) {
	const stretch = 1024
	for to := s.State().Size(); to > 0; to -= stretch {
		for e, err := range s.Entries(ctx, max(0, to-stretch), to) {
			if err != nil {
				return false, fmt.Errorf("looking for instance %s: %w", id, err)
			}
			if d, ok := e.Entry.Data.(state.Step); ok && d.Instance != nil && d.Instance.ID == id {
				return e.Entry.Env == env, nil
			}
		}
	}
	return false, nil
}

// Watch yields the entries from the index from on, and goes on with those to come until ctx is done.
func (s *Service) Watch(ctx context.Context, from int64) iter.Seq2[Indexed, error] {
	return func(yield func(Indexed, error) bool) {
		for {
			now := s.State()
			for e, err := range s.Entries(ctx, from, max(from, now.Size())) {
				if !yield(e, err) || err != nil {
					return
				}
				from = e.Index + 1
			}
			select {
			case <-now.Changed():
			case <-ctx.Done():
				return
			}
		}
	}
}

// References yields the digests of all content that the ledger names and an environment may ever need again: bundles with
// their sources and images down to the layers with what is attached to them, releases, and plans. What it yields must not be removed. A
// digest may come more than once. What was erased is not among them.
func (s *Service) References(ctx context.Context) iter.Seq2[digest.Digest, error] {
	return func(all func(digest.Digest, error) bool) {
		now := s.State()
		yield := func(d digest.Digest, err error) bool {
			return err == nil && now.Erased(d) != nil || all(d, err)
		}
		for known := range now.Bundles() {
			b, err := s.Bundle(ctx, known.Digest)
			if err != nil {
				yield("", err)
				return
			}
			refs, err := s.bundleReferences(known, b)
			if err != nil {
				yield("", err)
				return
			}
			for _, d := range refs {
				if !yield(d, nil) {
					return
				}
			}
		}
		for env := range now.Environments() {
			for g := range now.History(env.Name) {
				if g.Plan != "" && !yield(g.Plan, nil) {
					return
				}
			}
		}
		for c := range now.Changes() {
			for _, d := range changeReferences(c) {
				if !yield(d, nil) {
					return
				}
			}
		}
		for r := range now.Releases() {
			if !yield(r.Digest, nil) {
				return
			}
		}
	}
}

// changeReferences is what a change, and what was decided of it, can be looked at with.
func changeReferences(c state.Change) []digest.Digest {
	out := []digest.Digest{c.Plan}
	for _, d := range c.Decisions {
		out = append(out, d.Bundle, d.Input, d.Decision)
	}
	return out
}

func (s *Service) bundleReferences(known state.KnownBundle, b release.Bundle) ([]digest.Digest, error) {
	out := []digest.Digest{known.Digest, known.Source}
	for name, img := range b.Images {
		out = append(out, img.Manifest, img.Root)
		if !s.config.Blobs.Has(img.Manifest) {
			continue // of an image that only others are built on
		}
		raw, err := s.read(img.Manifest, maxManifest)
		if err != nil {
			return nil, fmt.Errorf("reading the manifest of image %s: %w", name, err)
		}
		var m manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, fault.Errorf(fault.Corrupt, "reading the manifest of image %s: %w", name, err)
		}
		for _, d := range append(m.Layers, m.Config) {
			out = append(out, d.Digest)
		}
		if s.config.Attached == nil {
			continue
		}
		attached, err := s.config.Attached(img.Manifest)
		if err != nil {
			return nil, fmt.Errorf("listing what is attached to image %s: %w", name, err)
		}
		out = append(out, attached...)
	}
	return out, nil
}

// maxManifest bounds a manifest, as the distribution specification suggests.
const maxManifest = 4 << 20

// manifest is what an OCI image manifest refers to.
type manifest struct {
	Config descriptor   `json:"config"`
	Layers []descriptor `json:"layers"`
}

type descriptor struct {
	Digest digest.Digest `json:"digest"`
}
