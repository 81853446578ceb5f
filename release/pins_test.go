package release_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

func version(text string) digest.Digest { return digest.Of([]byte("ciphertext of " + text)) }

// An auditor has a bundle and the record: the pins in it are all that the evaluation needs beside the bundle.
func TestReleaseFollowsFromItsPins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := app()
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z][a-z0-9]{0,8}`), 0, 6, rapid.ID).Draw(t, "secrets")
		pins := release.Pins{"db": version("db")}
		for i, n := range names {
			to := &a.Components[i%2]
			to.Secrets = append(to.Secrets, spec.Secret{Path: "/run/more/" + n, Name: n, Mode: 0o400})
			pins[n] = version(rapid.StringN(0, 3, -1).Draw(t, "version"))
		}
		r, err := release.Evaluate(a, digest.Of(nil), images(), pins)
		if err != nil {
			t.Fatal(err)
		}
		if got := release.PinsOf(r); !maps.Equal(got, pins) {
			t.Fatalf("pins of the record: %v, want %v", got, pins)
		}
		more := maps.Clone(pins)
		more["zz-of-another-app"] = version("other")
		again, err := release.Evaluate(a, digest.Of(nil), images(), more)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := r.Digest()
		if got, _ := again.Digest(); got != want {
			t.Fatalf("with a secret that nothing names: release %s, want %s", got, want)
		}
		rotated := maps.Clone(pins)
		rotated["db"] = version("another db")
		other, err := release.Evaluate(a, digest.Of(nil), images(), rotated)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := other.Digest(); got == want {
			t.Fatal("another version gives the same release")
		}
		b, err := release.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		if read, err := release.Decode(b); err != nil || !maps.Equal(release.PinsOf(read), pins) {
			t.Fatalf("read back: %v", err)
		}
	})
}

func TestEverySecretWithoutAVersionIsNamed(t *testing.T) {
	a := app()
	a.Components[0].Secrets = []spec.Secret{{Path: "/run/secrets/tls", Name: "tls", Mode: 0o400}}
	_, err := release.Evaluate(a, digest.Of(nil), images(), nil)
	if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "db, tls") || fault.Hint(err) != "invar secret set prod/db" {
		t.Errorf("got %v (hint %q)", err, fault.Hint(err))
	}
}

func TestARecordHasOneVersionOfASecret(t *testing.T) {
	r := record(t, app())
	web := r.Components[1].Component
	web.Secrets = append(web.Secrets, release.Secret{Path: "/run/secrets/again", Name: "db", Version: version("older"), Mode: 0o400})
	r.Components[1].Component = web
	if _, err := release.Encode(r); !errors.Is(err, fault.Invalid) {
		t.Errorf("two versions: %v, want invalid", err)
	}
	web.Secrets[1].Version = "sha256:short"
	if _, err := release.Encode(r); !errors.Is(err, fault.Invalid) {
		t.Errorf("no digest: %v, want invalid", err)
	}
}

func TestRotationIsACauseOfItsOwn(t *testing.T) {
	a := app()
	before := record(t, a)
	after, err := release.Evaluate(a, before.Bundle, images(), release.Pins{"db": version("newer")})
	if err != nil {
		t.Fatal(err)
	}
	d := release.Diff(before, after)
	if len(d.Components) != 1 || len(d.Components[0].Causes) != 1 || d.Components[0].Causes[0].Field != "secret db version" {
		t.Errorf("got %+v, want one component with one cause", d.Components)
	}
}
