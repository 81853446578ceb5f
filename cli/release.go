package cli

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/spec/parse"
)

// made is a release with its artifacts in a store.
type made struct {
	bundle, release digest.Digest   // identities
	artifact        digest.Digest   // of the OCI index that holds all of it
	images          []digest.Digest // of the index, by the digests of their manifests
	record          release.Record
}

// pinner tells the versions of the secrets that an app names, as it was evaluated for an environment.
type pinner func(context.Context, spec.App) (release.Pins, error)

// makeRelease bundles the sources, evaluates the bundle for env as the server will, and stores the artifacts.
func makeRelease(ctx context.Context, env spec.EnvName, files map[string][]byte, images map[spec.ImageName]image.Resolved, store *registry.Store, pins pinner) (made, error) {
	source, sourceDigest, err := release.SourceTar(files)
	if err != nil {
		return made{}, err
	}
	fsys, err := release.SourceFS(files)
	if err != nil {
		return made{}, err
	}
	m, _ := parse.Load(fsys)
	bundle := release.Bundle{V: 1, App: m.App(), Source: sourceDigest, Images: images}
	bundleDigest, err := bundle.Digest()
	if err != nil {
		return made{}, err
	}
	record, err := evaluate(ctx, m, env, bundleDigest, images, pins)
	if err != nil {
		return made{}, err
	}
	releaseDigest, err := record.Digest()
	if err != nil {
		return made{}, err
	}
	bundleArtifact, err := release.BundleManifest(bundle, source)
	if err != nil {
		return made{}, err
	}
	index, recordArtifact, err := release.ReleaseIndex(record, bundleArtifact.Descriptor, images)
	if err != nil {
		return made{}, err
	}
	for _, a := range []release.Artifact{bundleArtifact, recordArtifact, index} {
		if err := keep(ctx, store, a); err != nil {
			return made{}, err
		}
	}
	return made{bundleDigest, releaseDigest, digest.Digest(index.Descriptor.Digest), running(record), record}, nil
}

// running are the images that the release's components run, each once, sorted.
func running(r release.Record) []digest.Digest {
	all := map[digest.Digest]bool{}
	for _, p := range r.Components {
		all[p.Component.Image] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// evaluate makes the release of a directory's app, or of the platform's definition.
func evaluate(ctx context.Context, m *parse.Module, env spec.EnvName, bundle digest.Digest, images map[spec.ImageName]image.Resolved, pins pinner) (release.Record, error) {
	if m.IsPlatform() {
		def, diags := m.Definition()
		if err := diags.Err(); err != nil {
			return release.Record{}, err
		}
		return release.EvaluatePlatform(def, bundle)
	}
	app, diags := m.Evaluate(env, nil)
	if err := diags.Err(); err != nil {
		return release.Record{}, err
	}
	pinned, err := pins(ctx, app)
	if err != nil {
		return release.Record{}, err
	}
	return release.Evaluate(app, bundle, images, pinned)
}

// keep puts an artifact into a store.
func keep(ctx context.Context, store *registry.Store, a release.Artifact) error {
	for _, b := range a.Blobs {
		if _, err := store.PutBlob(ctx, digest.Digest(b.Descriptor.Digest), bytes.NewReader(b.Content)); err != nil {
			return fmt.Errorf("keeping %s: %w", b.Descriptor.Digest, err)
		}
	}
	if _, err := store.PutBlob(ctx, digest.Digest(a.Descriptor.Digest), bytes.NewReader(a.Manifest)); err != nil {
		return fmt.Errorf("keeping %s: %w", a.Descriptor.Digest, err)
	}
	return nil
}

// push brings a release, and the images that the server does not have yet, to the server; then what is attached to them.
func (a *app) push(ctx context.Context, cl *client.Client, app spec.AppName, store *registry.Store, m made) error {
	to := a.registry(cl, app)
	if err := store.Push(ctx, to, m.artifact, "", nil); err != nil {
		return err
	}
	for _, img := range m.images {
		attached, err := store.Referrers(img)
		if err != nil {
			return err
		}
		for _, r := range attached {
			if err := store.Push(ctx, to, r.Digest, "", nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// registry is the server's, with what it has of an app.
func (a *app) registry(cl *client.Client, app spec.AppName) registry.Remote {
	return registry.Remote{URL: cl.Base().String(), Repository: registry.Repository(app), Transport: cl.Transport()}
}

// sources reads the sources of a bundle from the server, and believes none of it that its digest does not say.
func (a *app) sources(ctx context.Context, cl *client.Client, app spec.AppName, bundle digest.Digest) (map[string][]byte, error) {
	from := a.registry(cl, app)
	raw, err := from.Blob(ctx, bundle, release.MaxBundleBytes)
	if err != nil {
		return nil, err
	}
	b, err := release.DecodeBundle(raw)
	if err != nil {
		return nil, err
	}
	source, err := from.Blob(ctx, b.Source, 2*release.MaxSourceBytes)
	if err != nil {
		return nil, err
	}
	return release.ReadSource(source)
}
