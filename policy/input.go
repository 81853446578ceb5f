package policy

import (
	"fmt"
	"time"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// TypeInput is the media type of an input's canonical JSON.
const TypeInput = "application/vnd.invar.policy-input.v1+json"

// MaxInputBytes is the largest input: two releases and the plan between them.
const MaxInputBytes = 192 << 20

// Input is all that a policy decides on. It is written as canonical JSON (RFC 8785); input.schema.json describes it, field
// by field, and is made from the comments here.
type Input struct {
	// The version of this format: 1.
	V int `json:"v"`
	// The time of the decision, UTC in whole milliseconds. There is no other clock.
	Now time.Time `json:"now"`
	// When the question is asked: "plan" before anything is proposed, "request" when a change is proposed, "apply" before it is carried out.
	Phase Phase `json:"phase"`
	// The app that changes.
	App spec.AppName `json:"app"`
	// What is proposed, and who does.
	Change Change `json:"change"`
	// The environment whose head would move.
	Environment Environment `json:"environment"`
	// What would start and stop. It is absent where there is nothing to compare.
	Plan *change.Plan `json:"plan,omitempty"`
	// The release that is the head now. It is absent when the environment has none.
	Before *release.Record `json:"before,omitempty"`
	// The release that would be the head. It is absent when the environment is to be destroyed.
	After *release.Record `json:"after,omitempty"`
	// The images of the release that would be the head, by name.
	Images map[spec.ImageName]Image `json:"images,omitempty"`
}

// Phase says when a policy is asked.
type Phase string

// The phases.
const (
	PhasePlan    Phase = "plan"
	PhaseRequest Phase = "request"
	PhaseApply   Phase = "apply"
)

// Change is what is proposed.
type Change struct {
	// The id of the change. It is absent before anything is proposed.
	ID string `json:"id,omitempty"`
	// What it is: "apply", "rollback", "destroy" or "fork".
	Kind ChangeKind `json:"kind"`
	// Why, in the author's words.
	Reason string `json:"reason,omitempty"`
	// Who proposes it.
	Author Author `json:"author"`
}

// ChangeKind says what is proposed.
type ChangeKind string

// The kinds of change.
const (
	Apply    ChangeKind = "apply"
	Rollback ChangeKind = "rollback"
	Destroy  ChangeKind = "destroy"
	Fork     ChangeKind = "fork" // a release that was evaluated for another environment; before and after have the fork's own routes
)

// Author is who proposes a change.
type Author struct {
	// The name of the principal.
	Name string `json:"name"`
	// How the server knows the principal: "local", "token", and the like.
	Kind string `json:"kind,omitempty"`
	// The groups that the principal is a member of, sorted.
	Groups []string `json:"groups,omitempty"`
}

// Environment is a named place that runs one release at a time.
type Environment struct {
	// The name of the environment.
	Name spec.EnvName `json:"name"`
	// The generation that is the head now; 0 when there never was one.
	Generation int `json:"generation"`
}

// Image is what is known of an image.
type Image struct {
	// The digest of its OCI manifest, which components of the release name.
	Manifest digest.Digest `json:"manifest"`
	// How it comes to be: "ref", "go", "layers" or "debian".
	Kind ImageKind `json:"kind"`
	// The reference as the configuration has it; absent for what is built.
	Reference string `json:"reference,omitempty"`
	// Registry and path of the reference, as registry.example.com/team/web; absent for what is built or comes from a file.
	Repository string `json:"repository,omitempty"`
	// The tag of the reference; absent when it has none.
	Tag string `json:"tag,omitempty"`
	// Whether the reference itself names a digest, so that it can never come to mean another image. True for what is built.
	Immutable bool `json:"immutable"`
	// Whether the lock, or the reference itself, pins it to a digest; for packages, to versions and hashes. True where there is nothing to pin.
	Pinned bool `json:"pinned"`
	// What is inside; absent when the image has no SBOM.
	SBOM *SBOM `json:"sbom,omitempty"`
}

// ImageKind says how an image comes to be.
type ImageKind string

// The kinds of image.
const (
	KindRef    ImageKind = "ref"
	KindGo     ImageKind = "go"
	KindLayers ImageKind = "layers"
	KindDebian ImageKind = "debian"
)

// SBOM is a summary of an image's software bill of materials.
type SBOM struct {
	// The digest of the whole document.
	Digest digest.Digest `json:"digest"`
	// How many packages it lists.
	Packages int `json:"packages"`
	// How many of these have no licence that is known.
	Unlicensed int `json:"unlicensed"`
	// Whether the document says that nothing else is in the image.
	Complete bool `json:"complete"`
	// The licences, as SPDX identifiers or expressions, each once, sorted.
	Licenses []string `json:"licenses"`
	// The names of licences that SPDX does not have, each once, sorted.
	Unknown []string `json:"unknown_licenses,omitempty"`
}

// EncodeInput returns the canonical JSON of an input, after checking it. Its errors are of kind fault.Invalid.
func EncodeInput(in Input) ([]byte, error) {
	if err := in.Check(); err != nil {
		return nil, fmt.Errorf("encoding a policy's input: %w", err)
	}
	b, err := digest.Canonical(in)
	if err != nil {
		return nil, fault.As(fault.Invalid, fmt.Errorf("encoding a policy's input: %w", err))
	}
	if len(b) > MaxInputBytes {
		return nil, fault.Errorf(fault.Invalid, "encoding a policy's input: %d bytes, %d are allowed", len(b), MaxInputBytes)
	}
	return b, nil
}

// DecodeInput reads what EncodeInput wrote, and nothing else. Its errors are of kind fault.Invalid.
func DecodeInput(b []byte) (Input, error) {
	var in Input
	if err := digest.DecodeExact(b, &in, MaxInputBytes, func() ([]byte, error) { return EncodeInput(in) }); err != nil {
		return Input{}, fault.As(fault.Invalid, fmt.Errorf("reading a policy's input: %w", err))
	}
	return in, nil
}

// Check says what is wrong with the input by itself. Its errors are of kind fault.Invalid.
func (in Input) Check() error {
	if in.V != 1 {
		return fault.Errorf(fault.Invalid, "version %d is not known", in.V)
	}
	if err := checkTime(in.Now); err != nil {
		return err
	}
	for _, n := range []string{string(in.App), string(in.Environment.Name)} {
		if err := spec.CheckName(n); err != nil {
			return err
		}
	}
	switch in.Phase {
	case PhasePlan, PhaseRequest, PhaseApply:
	default:
		return fault.Errorf(fault.Invalid, "phase %q is not known", in.Phase)
	}
	switch in.Change.Kind {
	case Apply, Rollback, Destroy, Fork:
	default:
		return fault.Errorf(fault.Invalid, "a change of kind %q is not known", in.Change.Kind)
	}
	if (in.After == nil) != (in.Change.Kind == Destroy) {
		return fault.Errorf(fault.Invalid, "a change of kind %s, with a release that would be the head: %t", in.Change.Kind, in.After != nil)
	}
	return in.checkReleases()
}

// checkReleases sees to it that all is about one app and one environment, so that a policy can't be shown another's.
func (in Input) checkReleases() error {
	for _, r := range []*release.Record{in.Before, in.After} {
		if r == nil {
			continue
		}
		if err := r.Check(); err != nil {
			return err
		}
		if r.App != in.App || r.Env != in.Environment.Name {
			return fault.Errorf(fault.Invalid, "a release of %s for %s, in a question about %s in %s", r.App, r.Env, in.App, in.Environment.Name)
		}
	}
	if p := in.Plan; p != nil && (p.App != in.App || p.Env != in.Environment.Name) {
		return fault.Errorf(fault.Invalid, "a plan of %s for %s, in a question about %s in %s", p.App, p.Env, in.App, in.Environment.Name)
	}
	for name, img := range in.Images {
		if err := spec.CheckName(string(name)); err != nil {
			return err
		}
		if _, err := digest.Parse(string(img.Manifest)); err != nil {
			return fmt.Errorf("image %q: %w", name, err)
		}
		if img.SBOM != nil && img.SBOM.Licenses == nil {
			return fault.Errorf(fault.Invalid, "image %q: licenses is null", name)
		}
	}
	return nil
}

// checkTime wants a time that has one spelling: UTC, in whole milliseconds.
func checkTime(t time.Time) error {
	if t.Location() != time.UTC || !t.Equal(t.Truncate(time.Millisecond)) || t.Year() < 1970 || t.Year() > 9999 {
		return fault.Errorf(fault.Invalid, "time %s: want UTC in whole milliseconds", t.Format(time.RFC3339Nano))
	}
	return nil
}
