package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// ReproductionPredicate is the type of statements about a release that was made again. docs/reproduce.md describes it.
const ReproductionPredicate = "https://github.com/invarhq/invar/reproduction/v1"

// Limits of what is said of a reproduction.
const (
	MaxDifferences     = 200
	maxDifferenceBytes = 2000
)

// Reproduction is what somebody says came of making a release again.
type Reproduction struct {
	Parts       []ReproducedPart
	Differences []string // in sentences, where a part is not the same
	Builder     state.Builder
}

// ReproducedPart is something that was compared: "release", "bundle", "image NAME" or "root NAME".
type ReproducedPart struct {
	Name     string        `json:"name"`
	Recorded digest.Digest `json:"recorded"`
	Made     digest.Digest `json:"made,omitempty"` // unset: nothing was made
}

// Result is state.Same when all parts are the same and nothing else differs.
func (r Reproduction) Result() string {
	if len(r.Differences) > 0 || slices.ContainsFunc(r.Parts, func(p ReproducedPart) bool { return p.Recorded != p.Made }) {
		return state.Different
	}
	return state.Same
}

// ReproductionStatement is the statement about a release that was made again. Its subjects are what was compared, by what is recorded.
type ReproductionStatement = attest.Statement[reproductionPredicate]

type reproductionPredicate struct {
	Result      string           `json:"result"`
	Release     digest.Digest    `json:"release"`
	Bundle      digest.Digest    `json:"bundle"`
	Parts       []ReproducedPart `json:"parts"`
	Differences []string         `json:"differences,omitempty"`
	Builder     state.Builder    `json:"builder"`
	Who         string           `json:"who"`     // as the server authenticated him
	By          string           `json:"by"`      // the name of the server's ledger, whose key signs
	Checked     []string         `json:"checked"` // by the signer, in sentences
	Claimed     []string         `json:"claimed"` // by whoever made it again, and not checked
}

// Attest records that the actor says to have made a release again, and returns the index of the entry. The server checks that what is said to be
// recorded is so, signs who said what, and says itself that it has not seen it done. It fails with fault.Invalid for what contradicts
// itself or the record.
func (s *Service) Attest(ctx context.Context, by Actor, d digest.Digest, r Reproduction) (int64, digest.Digest, error) {
	index, statement, err := s.attest(ctx, by, d, r)
	if err != nil {
		return 0, "", fmt.Errorf("attesting release %s: %w", d.Short(), err)
	}
	return index, statement, nil
}

func (s *Service) attest(ctx context.Context, by Actor, d digest.Digest, r Reproduction) (int64, digest.Digest, error) {
	known, err := s.State().Release(d)
	if err != nil {
		return 0, "", err
	}
	if err := s.checkReproduction(known, r); err != nil {
		return 0, "", err
	}
	body, _, err := sign(ctx, s, reproduction(by, s.config.Origin, known, r))
	if err != nil {
		return 0, "", err
	}
	e := s.entry(by, known.Env, state.AttestReproduced{Release: d, Bundle: known.Bundle, Result: r.Result(), Builder: r.Builder})
	e.Body = body
	for _, p := range r.Parts {
		e.Subject = append(e.Subject, state.Subject{Name: p.Name, Digest: p.Recorded})
	}
	index, err := s.append(ctx, func(state.State) ([]state.Entry, error) { return []state.Entry{e}, nil })
	return index, body.Digest, err
}

// checkReproduction refuses parts that the release does not have or that are recorded otherwise, and differences without end.
func (s *Service) checkReproduction(known state.KnownRelease, r Reproduction) error {
	recorded, err := s.partsOf(known)
	if err != nil {
		return err
	}
	if len(r.Differences) > MaxDifferences {
		return fault.Errorf(fault.Invalid, "%d differences; %d are allowed", len(r.Differences), MaxDifferences)
	}
	if len(r.Parts) != len(recorded) {
		return fault.Errorf(fault.Invalid, "%d parts are compared, the release has %d: what is attested is the whole of it", len(r.Parts), len(recorded))
	}
	seen := map[string]bool{}
	for _, p := range r.Parts {
		if want, ok := recorded[p.Name]; !ok || want != p.Recorded {
			return fault.Errorf(fault.Invalid, "%q is not recorded as %s", p.Name, p.Recorded)
		}
		if seen[p.Name] {
			return fault.Errorf(fault.Invalid, "%q is said twice", p.Name)
		}
		if _, err := digest.Parse(string(p.Made)); p.Made != "" && err != nil {
			return err
		}
		seen[p.Name] = true
	}
	for _, text := range r.Differences {
		if len(text) > maxDifferenceBytes {
			return fault.Errorf(fault.Invalid, "a difference of %d bytes; %d are allowed", len(text), maxDifferenceBytes)
		}
	}
	return nil
}

// partsOf are the parts of a release, by name.
func (s *Service) partsOf(known state.KnownRelease) (map[string]digest.Digest, error) {
	raw, err := s.read(known.Bundle, release.MaxBundleBytes)
	if err != nil {
		return nil, err
	}
	b, err := release.DecodeBundle(raw)
	if err != nil {
		return nil, err
	}
	out := map[string]digest.Digest{"release": known.Digest, "bundle": known.Bundle}
	for name, img := range b.Images {
		out[imagePart(name)], out[rootPart(name)] = img.Manifest, img.Root
	}
	return out, nil
}

func imagePart(name spec.ImageName) string { return "image " + string(name) }
func rootPart(name spec.ImageName) string  { return "root " + string(name) }

// reproduction is the statement.
func reproduction(by Actor, ledger string, known state.KnownRelease, r Reproduction) ReproductionStatement {
	parts := slices.SortedFunc(slices.Values(r.Parts), func(a, b ReproducedPart) int { return cmp.Compare(a.Name, b.Name) })
	var about []attest.Subject
	for _, p := range parts {
		about = append(about, attest.Of(p.Name, p.Recorded))
	}
	return attest.New(ReproductionPredicate, reproductionPredicate{
		Result: r.Result(), Release: known.Digest, Bundle: known.Bundle, Parts: parts, Differences: r.Differences, Builder: r.Builder,
		Who: by.Who(), By: ledger,
		Checked: []string{"the release is in the ledger, and the parts are recorded with these digests", "who said it was authenticated by the server"},
		Claimed: []string{"the release was made again from its bundle, with this outcome; the server has not done it, nor seen it done"},
	}, about...)
}

// sign signs a statement with the ledger's key, stores it, and returns it, also as an entry's body.
func sign[P any](ctx context.Context, s *Service, statement attest.Statement[P]) (*state.Body, []byte, error) {
	if s.config.SignStatement == nil {
		return nil, nil, fault.Errorf(fault.Invalid, "this server signs no statements")
	}
	raw, err := statement.Encode()
	if err != nil {
		return nil, nil, err
	}
	envelope, err := s.config.SignStatement(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("signing the statement: %w", err)
	}
	b := &state.Body{Digest: digest.Of(envelope), Size: int64(len(envelope)), Type: attest.TypeEnvelope}
	if err := s.put(ctx, b.Digest, envelope); err != nil {
		return nil, nil, fmt.Errorf("storing the statement: %w", err)
	}
	return b, envelope, nil
}
