package policy_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/policy"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// record is a sound release of n components.
func record(env spec.EnvName, n int) release.Record {
	r := release.Record{V: 1, App: "shop", Env: env, Bundle: digest.Of([]byte("bundle")), Routes: []release.Route{}, Rollout: release.Rollout{MaxParallel: 1}}
	for i := range n {
		r.Components = append(r.Components, release.Placed{Replicas: 2, Component: release.Component{
			Name: spec.ComponentName(fmt.Sprintf("web-%03d", i)), Image: digest.Of([]byte("web")), Root: digest.Of([]byte("root")),
			Args: []string{"/app"}, User: "65532:65532", Env: map[string]string{"LOG_LEVEL": "info"},
			Files:     []release.File{{Path: "/etc/app.json", Text: "{}\n", Mode: 0o444}},
			Secrets:   []release.Secret{{Path: "/run/secrets/db", Name: "db", Version: digest.Of([]byte("v1")), Mode: 0o400}},
			Ports:     []release.Port{{Name: "http", Number: 8080}},
			Resources: release.Resources{CPUMillis: 500, MemoryBytes: 128 << 20},
		}})
	}
	return r
}

// sampleOf is a sound request to apply a first release of n components.
func sampleOf(env spec.EnvName, n int) policy.Input {
	after := record(env, n)
	d, err := after.Digest()
	if err != nil {
		panic(err) // the program text is wrong
	}
	plan := change.MakePlan(change.Current{}, change.Proposed{Digest: d, Record: after})
	return policy.Input{V: 1, Now: noon, Phase: policy.PhaseRequest, App: "shop",
		Change:      policy.Change{ID: "01", Kind: policy.Apply, Reason: "first", Author: policy.Author{Name: "alice", Kind: "local", Groups: []string{"dev"}}},
		Environment: policy.Environment{Name: env, Generation: 0}, Plan: &plan, After: &after,
		Images: map[spec.ImageName]policy.Image{
			"web": {Manifest: digest.Of([]byte("web")), Kind: policy.KindRef, Reference: "registry.example.com/web:1.2", Repository: "registry.example.com/web", Tag: "1.2", Pinned: true,
				SBOM: &policy.SBOM{Digest: digest.Of([]byte("sbom")), Packages: 2, Complete: true, Licenses: []string{"BSD-3-Clause", "MIT"}}},
		}}
}

func sample() policy.Input { return sampleOf("prod", 2) }

// inputs are inputs of each kind.
func inputs() map[string]policy.Input {
	next := sample()
	before := record("prod", 1)
	next.Before, next.Environment.Generation = &before, 3
	rollback := next
	rollback.Change.Kind, rollback.Phase, rollback.Plan = policy.Rollback, policy.PhaseApply, nil
	destroy := policy.Input{V: 1, Now: noon, Phase: policy.PhasePlan, App: "shop", Change: policy.Change{Kind: policy.Destroy, Author: policy.Author{Name: "bob"}},
		Environment: policy.Environment{Name: "prod", Generation: 3}, Before: &before}
	return map[string]policy.Input{"first": sample(), "next": next, "rollback": rollback, "destroy": destroy}
}

func encoded(t testing.TB, in policy.Input) []byte {
	t.Helper()
	b, err := policy.EncodeInput(in)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// compiled is a bundle of one file, or of the files of the map.
func compiled(t testing.TB, rego string) *policy.Bundle {
	t.Helper()
	return bundle(t, policy.Files{"p.rego": []byte(rego)})
}

func bundle(t testing.TB, files policy.Files) *policy.Bundle {
	t.Helper()
	b, err := policy.Compile("baseline", files)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decided(t testing.TB, b *policy.Bundle, in policy.Input, exceptions ...policy.Exception) policy.Decision {
	t.Helper()
	d, err := b.Decide(t.Context(), in, exceptions)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Check(); err != nil {
		t.Fatalf("the decision contradicts itself: %v", err)
	}
	return d
}

// lines is a decision as a few lines of text.
func lines(d policy.Decision) []string {
	out := []string{fmt.Sprintf("allowed: %t", d.Allowed)}
	if d.Failure != nil {
		out = append(out, fmt.Sprintf("failure %s: %s", d.Failure.Kind, d.Failure.Cause))
	}
	for _, r := range d.Results {
		line := fmt.Sprintf("%s %s: %s", r.Kind, r.Rule, r.Message)
		if r.Subject != "" {
			line += " [" + r.Subject + "]"
		}
		if len(r.Controls) > 0 {
			line += fmt.Sprint(" ", r.Controls)
		}
		if len(r.Details) > 0 {
			line += " " + string(r.Details)
		}
		if r.Exempted != "" {
			line += " exempted by " + r.Exempted
		}
		if len(r.Expired) > 0 {
			line += fmt.Sprint(" expired ", r.Expired)
		}
		out = append(out, line)
	}
	return out
}
