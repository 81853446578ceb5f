package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// evaluated is a release as this server evaluated it.
type evaluated struct {
	digest     digest.Digest
	record     release.Record
	encoded    []byte
	from       spec.EnvName // only bundles that completed there; "": any
	bundle     release.Bundle
	bundleSize int64
}

// maxEvaluations bounds the memory of evaluations. An apply follows its plan, so the newest few are what is asked for.
const maxEvaluations = 16

// evaluations remembers what bundles evaluated to: evaluation is pure, so the same arguments need not be evaluated twice.
type evaluations struct {
	mu    sync.Mutex
	known map[evaluation]evaluated
}

type evaluation struct {
	bundle digest.Digest
	env    spec.EnvName
	pins   digest.Digest // of the environment's pins
}

func (e *evaluations) get(key evaluation) (evaluated, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	got, ok := e.known[key]
	return got, ok
}

func (e *evaluations) add(key evaluation, got evaluated) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.known) >= maxEvaluations {
		clear(e.known)
	}
	e.known[key] = got
}

// pinsOf returns with what versions of secrets a bundle was evaluated to a release, if that is remembered.
func (e *evaluations) pinsOf(p Proposal) (release.Pins, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for key, got := range e.known {
		if key.bundle == p.Bundle && key.env == p.Env && got.digest == p.Release {
			return release.PinsOf(got.record), true
		}
	}
	return nil, false
}

// evaluate evaluates the proposal's bundle, with the secrets that its environment has now, and compares the result with what the
// client has.
func (s *Service) evaluate(ctx context.Context, p Proposal) (evaluated, error) {
	if err := spec.CheckName(string(p.Env)); err != nil {
		return evaluated{}, err
	}
	pins := s.State().Pins(p.Env)
	name, err := digest.OfValue(pins)
	if err != nil {
		return evaluated{}, err
	}
	key := evaluation{p.Bundle, p.Env, name}
	got, ok := s.evaluations.get(key)
	if !ok {
		if got, err = s.evaluateBundle(ctx, p, pins); err != nil {
			return evaluated{}, err
		}
		s.evaluations.add(key, got)
	}
	if p.Release != "" && p.Release != got.digest {
		if err := s.outdated(p, pins); err != nil {
			return evaluated{}, err
		}
		return evaluated{}, fault.WithHint(fault.Errorf(fault.Invalid, "the bundle evaluates to release %s here, the client has %s", got.digest, p.Release),
			"use the same version of invar on both sides, and build again")
	}
	if err := errors.Join(s.lasting(got.record), s.compiles(got.record)); err != nil {
		return evaluated{}, err
	}
	return got, s.presentAll(got.record)
}

func (s *Service) evaluateBundle(ctx context.Context, p Proposal, pins release.Pins) (evaluated, error) {
	raw, err := s.read(p.Bundle, release.MaxBundleBytes)
	if err != nil {
		return evaluated{}, fmt.Errorf("reading bundle %s: %w", p.Bundle, err)
	}
	bundle, err := release.DecodeBundle(raw)
	if err != nil {
		return evaluated{}, fmt.Errorf("reading bundle %s: %w", p.Bundle, err)
	}
	record, from, err := s.evaluateSource(ctx, p, bundle, pins)
	if err != nil {
		return evaluated{}, fmt.Errorf("evaluating bundle %s: %w", p.Bundle, err)
	}
	encoded, err := release.Encode(record)
	if err != nil {
		return evaluated{}, fmt.Errorf("evaluating bundle %s: %w", p.Bundle, err)
	}
	return evaluated{digest.Of(encoded), record, encoded, from, bundle, int64(len(raw))}, nil
}

func (s *Service) evaluateSource(ctx context.Context, p Proposal, b release.Bundle, pins release.Pins) (release.Record, spec.EnvName, error) {
	source, _, err := s.config.Blobs.Open(b.Source)
	if err != nil {
		return release.Record{}, "", fmt.Errorf("reading its sources: %w", err)
	}
	defer source.Close()
	r, from, err := s.config.Evaluate(ctx, source, p.Env, b, p.Bundle, pins)
	if err != nil {
		return release.Record{}, "", err
	}
	if r.Env != p.Env || r.App != b.App || r.Bundle != p.Bundle {
		return release.Record{}, "", fault.Errorf(fault.Invalid, "its sources are of app %s for environment %s, not of app %s for %s", r.App, r.Env, b.App, p.Env)
	}
	return r, from, nil
}

// presentAll says whether everything that the release's instances start from is there.
func (s *Service) presentAll(r release.Record) error {
	for _, p := range r.Components {
		c := p.Component
		for _, need := range []struct {
			what string
			name digest.Digest
		}{{"image", c.Image}, {"root", c.Root}} {
			if !s.config.Blobs.Has(need.name) {
				return fault.WithHint(fault.Errorf(fault.NotFound, "component %s: %s %s is not on the server", c.Name, need.what, need.name), "push it again: invar apply %s", r.Env)
			}
		}
		for _, v := range c.Secrets {
			if s.config.Secrets == nil || !s.config.Secrets.Has(v.Version) {
				return fault.WithHint(fault.Errorf(fault.NotFound, "component %s: version %s of secret %s is not on the server", c.Name, v.Version.Short(), v.Name),
					"restore the directory of secrets from a backup, or set it again: invar secret set %s/%s", r.Env, v.Name)
			}
		}
	}
	return nil
}

// present is presentAll of a release that is known by digest.
func (s *Service) present(d digest.Digest) error {
	r, err := s.records.get(d)
	if err != nil {
		return err
	}
	return s.presentAll(r)
}

// keep makes the release's record and the plan durable, before any entry names them.
func (s *Service) keep(ctx context.Context, rel evaluated, plan Planned) error {
	if err := s.put(ctx, rel.digest, rel.encoded); err != nil {
		return fmt.Errorf("storing release %s: %w", rel.digest, err)
	}
	if err := s.put(ctx, plan.Digest, plan.encoded); err != nil {
		return fmt.Errorf("storing plan %s: %w", plan.Digest, err)
	}
	s.records.add(rel.digest, rel.record)
	return nil
}

// put stores a blob unless it is there. What was erased does not come back: it fails with fault.Conflict.
func (s *Service) put(ctx context.Context, d digest.Digest, content []byte) error {
	if err := s.Erased(d); err != nil {
		return fault.As(fault.Conflict, err)
	}
	if s.config.Blobs.Has(d) {
		return nil
	}
	got, _, err := s.config.Blobs.Put(ctx, bytes.NewReader(content))
	if err == nil && got != d {
		err = fault.Errorf(fault.Corrupt, "stored as %s", got)
	}
	return err
}

// read returns a blob whole. Of what was erased it says so, also while the deletion is due.
func (s *Service) read(d digest.Digest, limit int64) ([]byte, error) {
	if err := s.Erased(d); err != nil {
		return nil, err
	}
	return readBlob(s.config.Blobs, d, limit)
}

func readBlob(blobs Blobs, d digest.Digest, limit int64) ([]byte, error) {
	r, n, err := blobs.Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if n > limit {
		return nil, fault.Errorf(fault.Invalid, "%d bytes, %d are allowed", n, limit)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if digest.Of(b) != d {
		return nil, fault.Errorf(fault.Corrupt, "blob %s is damaged", d)
	}
	return b, nil
}

// maxRecords bounds the cache of records. Those of heads are kept by the state in any case.
const maxRecords = 256

// records resolves the digests of releases, and remembers some.
type records struct {
	blobs Blobs

	mu    sync.Mutex
	known map[digest.Digest]release.Record
}

func (r *records) get(d digest.Digest) (release.Record, error) {
	r.mu.Lock()
	rec, ok := r.known[d]
	r.mu.Unlock()
	if ok {
		return rec, nil
	}
	raw, err := readBlob(r.blobs, d, release.MaxRecordBytes)
	if err != nil {
		return release.Record{}, fmt.Errorf("reading release %s: %w", d, err)
	}
	if rec, err = release.Decode(raw); err != nil {
		return release.Record{}, fmt.Errorf("reading release %s: %w", d, err)
	}
	r.add(d, rec)
	return rec, nil
}

func (r *records) add(d digest.Digest, rec release.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.known) >= maxRecords {
		clear(r.known)
	}
	r.known[d] = rec
}
