package server

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/image/root"
	"github.com/invarhq/invar/image/sbom"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/spec/parse"
)

// maxSourceArchive bounds the sources of a bundle that the server reads.
const maxSourceArchive = 64 << 20

// evaluator evaluates bundles again, and makes the roots that their images need.
type evaluator struct {
	store  *registry.Store
	roots  string
	signer sbom.Signer // of the provenance of images
}

// evaluate is control.Evaluate. It takes nothing on trust: the release follows from the sources, and every root
// is built here from the image's layers and compared with what the bundle says.
func (e *evaluator) evaluate(ctx context.Context, source io.Reader, env spec.EnvName, bundle release.Bundle, name digest.Digest, pins release.Pins) (release.Record, spec.EnvName, error) {
	m, err := loadSource(source)
	if err != nil {
		return release.Record{}, "", err
	}
	if m.App() != bundle.App {
		return release.Record{}, "", fault.Errorf(fault.Invalid, "the bundle says app %q, its sources say %q", bundle.App, m.App())
	}
	if m.IsPlatform() {
		record, err := evaluatePlatform(m, env, name)
		return record, "", err
	}
	app, diags := m.Evaluate(env, nil)
	if err := diags.Err(); err != nil {
		return release.Record{}, "", err
	}
	if err := m.Pinned(app).Err(); err != nil {
		return release.Record{}, "", err
	}
	record, err := release.Evaluate(app, name, bundle.Images, pins)
	if err != nil {
		return release.Record{}, "", err
	}
	if err := e.buildRoots(ctx, bundle, record); err != nil {
		return release.Record{}, "", err
	}
	return record, app.Env.PromoteFrom, e.attest(ctx, app, m.Lock(), bundle, record)
}

// loadSource reads the sources of a bundle (the deterministic tar, compressed).
func loadSource(source io.Reader) (*parse.Module, error) {
	raw, err := io.ReadAll(io.LimitReader(source, maxSourceArchive+1))
	if err != nil {
		return nil, fmt.Errorf("reading the sources: %w", err)
	}
	files, err := release.ReadSource(raw)
	if err != nil {
		return nil, err
	}
	fsys, err := release.SourceFS(files)
	if err != nil {
		return nil, err
	}
	m, diags := parse.Load(fsys)
	return m, diags.Err()
}

// attest makes the bill of materials of every image that a component runs, and signs its provenance, unless that is done.
func (e *evaluator) attest(ctx context.Context, app spec.App, lock image.Lock, bundle release.Bundle, record release.Record) error {
	used := running(record)
	for _, img := range app.Images {
		if !used[bundle.Images[img.Name].Manifest] {
			continue
		}
		build, err := buildOf(app.Images, img, lock, bundle, len(app.Images))
		if err != nil {
			return err
		}
		if build.Resolved, _, err = root.Build(ctx, e.store, e.roots, build.Resolved.Manifest); err != nil { // what this server knows, not what the bundle says
			return err
		}
		if err := (sbom.Maker{Store: e.store, Roots: e.roots}).Endorse(ctx, *build, e.signer); err != nil {
			return err
		}
	}
	return nil
}

// buildOf says how an image was made, as the sources have it, with at most so many bases.
func buildOf(images []spec.Image, img spec.Image, lock image.Lock, bundle release.Bundle, bases int) (*sbom.Build, error) {
	resolved, ok := bundle.Images[img.Name]
	if !ok || bases == 0 {
		return nil, fault.Errorf(fault.Invalid, "image %q is not among the bundle's, or its own base", img.Name)
	}
	b := &sbom.Build{Image: img, Locked: lock.Images[string(img.Name)], Resolved: resolved}
	if img.Layers == nil || img.Layers.Base == "" {
		return b, nil
	}
	i := slices.IndexFunc(images, func(other spec.Image) bool { return other.Name == img.Layers.Base })
	if i < 0 {
		return nil, fault.Errorf(fault.Invalid, "image %q: its base %q does not exist", img.Name, img.Layers.Base)
	}
	base, err := buildOf(images, images[i], lock, bundle, bases-1)
	b.Base = base
	return b, err
}

// running are the images that components run, by the digests of their manifests.
func running(r release.Record) map[digest.Digest]bool {
	used := map[digest.Digest]bool{}
	for _, p := range r.Components {
		used[p.Component.Image] = true
	}
	return used
}

// evaluatePlatform evaluates the platform's definition, which has no images.
func evaluatePlatform(m *parse.Module, env spec.EnvName, name digest.Digest) (release.Record, error) {
	if env != platform.Env {
		return release.Record{}, fault.Errorf(fault.Invalid, "the platform's definition goes to environment %s, not to %s", platform.Env, env)
	}
	def, diags := m.Definition()
	if err := diags.Err(); err != nil {
		return release.Record{}, err
	}
	return release.EvaluatePlatform(def, name)
}

// buildRoots makes the root of every image that a component runs, unless it is there, and refuses one that differs.
func (e *evaluator) buildRoots(ctx context.Context, bundle release.Bundle, record release.Record) error {
	used := running(record)
	for name, img := range bundle.Images {
		if !used[img.Manifest] {
			continue
		}
		built, _, err := root.Build(ctx, e.store, e.roots, img.Manifest)
		if err != nil {
			return fmt.Errorf("building the root of image %q: %w", name, err)
		}
		if built.Root != img.Root {
			return fault.Errorf(fault.Invalid, "image %q: its layers give root %s, the bundle says %s", name, built.Root, img.Root)
		}
	}
	return nil
}

// blobs shows control the registry's content, and the roots beside it.
type blobs struct {
	*registry.Store
	roots string
}

var _ control.Blobs = blobs{}

// Has reports whether a blob or a root is there.
func (b blobs) Has(d digest.Digest) bool {
	if b.Store.Has(d) {
		return true
	}
	_, err := os.Stat(root.Path(b.roots, d))
	return err == nil
}

// attachments lists what is attached to a manifest, for those who want to read it.
func attachments(store *registry.Store) func(digest.Digest) ([]api.Attachment, error) {
	return func(manifest digest.Digest) ([]api.Attachment, error) {
		all, err := store.Referrers(manifest)
		var out []api.Attachment
		for _, r := range all {
			if d := r.Content(); d != "" {
				out = append(out, api.Attachment{Type: r.Type, Content: d})
			}
		}
		return out, err
	}
}

// attached returns the digests of all that is attached to a manifest as referrers, with what these refer to.
func (b blobs) attached(manifest digest.Digest) ([]digest.Digest, error) {
	all, err := b.Referrers(manifest)
	if err != nil {
		return nil, err
	}
	var out []digest.Digest
	for _, r := range all {
		out = append(append(out, r.Digest), r.Blobs...)
	}
	return out, nil
}
