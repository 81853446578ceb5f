package server

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image/sbom"
	"github.com/invarhq/invar/policy"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/spec/parse"
)

// images is control.Images: what the sources say of a bundle's images, with what this server attested of their content.
func (e *evaluator) images(ctx context.Context, name digest.Digest, env spec.EnvName) (map[spec.ImageName]policy.Image, error) {
	bundle, m, err := e.bundle(name)
	if err != nil {
		return nil, fmt.Errorf("reading bundle %s: %w", name.Short(), err)
	}
	app, diags := m.Evaluate(env, nil)
	if err := diags.Err(); err != nil {
		return nil, err
	}
	sboms := map[spec.ImageName]policy.SBOM{}
	for image, r := range bundle.Images {
		a, err := sbom.Find(ctx, e.store, r.Manifest, image, e.signer.Key.Public().(ed25519.PublicKey))
		if fault.KindOf(err) == fault.NotFound {
			continue // of an image that only others are built on
		}
		if err != nil {
			return nil, err
		}
		sboms[image] = policy.SBOM{Digest: a.SBOMDigest, Packages: a.Summary.Packages, Unlicensed: a.Summary.Unlicensed,
			Complete: a.Summary.Complete, Licenses: a.Summary.Licenses, Unknown: a.Summary.Unknown}
	}
	return policy.Images(app.Images, m.Lock(), bundle.Images, sboms), nil
}

// bundle reads a bundle and its sources from the content store.
func (e *evaluator) bundle(name digest.Digest) (release.Bundle, *parse.Module, error) {
	r, n, err := e.store.Open(name)
	if err != nil {
		return release.Bundle{}, nil, err
	}
	defer r.Close()
	if n > release.MaxBundleBytes {
		return release.Bundle{}, nil, fault.Errorf(fault.Invalid, "it has %d bytes, %d are allowed", n, release.MaxBundleBytes)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		return release.Bundle{}, nil, err
	}
	b, err := release.DecodeBundle(raw)
	if err != nil {
		return release.Bundle{}, nil, err
	}
	source, _, err := e.store.Open(b.Source)
	if err != nil {
		return b, nil, err
	}
	defer source.Close()
	m, err := loadSource(source)
	return b, m, err
}
