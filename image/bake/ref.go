package bake

import (
	"context"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/spec"
)

func (r Request) source(ref string, pinned digest.Digest) registry.Source {
	return registry.Source{Ref: ref, Dir: r.Dir, Digest: pinned, Platform: r.Platform}
}

// lockRef resolves a reference to what it means now.
func lockRef(ctx context.Context, req Request, ref string, report func(Event)) (image.LockedImage, error) {
	report(Event{Step: Locking, Detail: ref})
	d, err := req.Store.Find(ctx, req.source(ref, ""))
	if err != nil {
		return image.LockedImage{}, err
	}
	return image.LockedImage{Ref: ref, Digest: d}, nil
}

// fetch pulls the image that the lock pins, or that the reference names by digest.
func (b *baker) fetch(ctx context.Context, img spec.Image, report func(Event)) (digest.Digest, error) {
	report(Event{Step: Fetching, Detail: img.Ref})
	src := b.req.source(img.Ref, b.lock.Images[string(img.Name)].Digest)
	p, err := b.req.Store.Pull(ctx, src, func(d digest.Digest, size int64) {
		report(Event{Step: Fetching, Detail: "layer " + d.Short(), Total: size})
	})
	return p.Manifest, err
}
