package bake

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	godigest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/bake/debian"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/spec"
)

// debianFormat changes when the same lock would give another file system.
const debianFormat = 1

func (r Request) debian() debian.Cache {
	return debian.Cache{Dir: filepath.Join(r.Store.Dir(), "debian")}
}

func lockDebian(ctx context.Context, req Request, img spec.DebianImage, report func(Event)) (image.LockedImage, error) {
	return req.debian().Lock(ctx, img.Suite, req.Platform.Architecture, img.Packages, func(detail string, done, total int64) {
		report(Event{Step: Locking, Detail: detail, Done: done, Total: total})
	})
}

// buildDebian puts the configuration over the file system of the locked packages.
func (b *baker) buildDebian(ctx context.Context, img spec.Image, report func(Event)) (digest.Digest, error) {
	plain, err := b.installed(ctx, b.lock.Images[string(img.Name)], report)
	if err != nil {
		return "", err
	}
	a, err := load(b.req.Store, plain)
	if err != nil {
		return "", err
	}
	d := img.Debian
	a.config = configure(a.config, d.Env, d.User, d.WorkDir, d.Entrypoint, d.Command)
	return a.store(ctx, b.req.Store)
}

// installed returns an image of the locked packages and nothing else. The store remembers it by the lock.
func (b *baker) installed(ctx context.Context, locked image.LockedImage, report func(Event)) (digest.Digest, error) {
	key, err := digest.OfValue(struct {
		Format   int
		Platform image.Platform
		Lock     image.LockedImage
	}{debianFormat, b.req.Platform, locked})
	if err != nil {
		return "", err
	}
	const repo = registry.Repository("baked/debian")
	if d, err := b.req.Store.Resolve(ctx, repo, key.Hex()); err == nil && b.req.Store.Complete(d) {
		return d, nil
	}
	report(Event{Step: Building, Detail: fmt.Sprintf("%d packages of %s", len(locked.Packages), locked.Suite)})
	l, err := b.install(ctx, locked, report)
	if err != nil {
		return "", err
	}
	a := assembly{platform: b.req.Platform, config: ocispec.ImageConfig{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}}
	a.add(l)
	d, err := a.store(ctx, b.req.Store)
	if err != nil {
		return "", err
	}
	return d, b.req.Store.Tag(ctx, repo, key.Hex(), d)
}

func (b *baker) install(ctx context.Context, locked image.LockedImage, report func(Event)) (ocispec.Descriptor, error) {
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(b.req.debian().Build(ctx, b.req.Platform.Architecture, locked, w, func(detail string, done, total int64) {
			step := Building
			if total > 0 {
				step = Fetching
			}
			report(Event{Step: step, Detail: detail, Done: done, Total: total})
		}))
	}()
	d, size, err := b.req.Store.Put(ctx, r)
	r.CloseWithError(err)
	<-done
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: godigest.Digest(d), Size: size}, err
}
