package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
)

// Source is an image somewhere else.
type Source struct {
	Ref       string            // as spec.Image.Ref has it
	Dir       string            // what relative paths in Ref are relative to
	Digest    digest.Digest     // what Ref must resolve to; "" accepts anything
	Platform  image.Platform    // which image of an index
	Transport http.RoundTripper // nil: the default one
}

// Pulled is an image that is in the store, whole.
type Pulled struct {
	Pinned   digest.Digest // of the manifest or index that Ref resolved to: what a lock pins
	Manifest digest.Digest // of the image's manifest
}

// resolved is what a reference leads to: exactly one of index and image is set.
type resolved struct {
	pinned v1.Hash
	index  v1.ImageIndex
	image  v1.Image
	done   func()
}

// Pull copies the image of the wanted platform, with all its layers, into the store. progress, when not nil, is
// told of each blob before it is read.
//
// It fails with fault.Invalid for a reference that makes no sense, an image of another platform, or one that is not what
// Digest pins; fault.NotFound; fault.Denied; fault.Unavailable for a registry that can't be reached; and
// fault.Corrupt for content that is not what its digest says.
func (s *Store) Pull(ctx context.Context, src Source, progress func(d digest.Digest, sizeBytes int64)) (Pulled, error) {
	p, err := s.pull(ctx, src, progress)
	if err != nil {
		return Pulled{}, fmt.Errorf("pulling %s: %w", src.Ref, err)
	}
	return p, nil
}

// Find returns what the reference resolves to now, without pulling it. It fails as Pull does.
func (s *Store) Find(ctx context.Context, src Source) (digest.Digest, error) {
	from, err := s.find(ctx, src)
	if err != nil {
		return "", fmt.Errorf("resolving %s: %w", src.Ref, err)
	}
	if from.done != nil {
		from.done()
	}
	return digest.Digest(from.pinned.String()), nil
}

// pulledAs is the tag by which the store finds what was pulled before.
func pulledAs(pinned digest.Digest, p image.Platform) (Repository, string) {
	return Repository("pulled/" + p.OS + "-" + p.Architecture), pinned.Hex()
}

// local returns what an earlier Pull brought, if all of it is there still.
func (s *Store) local(ctx context.Context, src Source) (Pulled, bool) {
	if src.Digest == "" {
		return Pulled{}, false
	}
	repo, tag := pulledAs(src.Digest, src.Platform)
	manifest, err := s.Resolve(ctx, repo, tag)
	if err != nil || !s.Complete(manifest) {
		return Pulled{}, false
	}
	return Pulled{Pinned: src.Digest, Manifest: manifest}, true
}

// Complete reports whether the manifest and all that it names are in the store.
func (s *Store) Complete(manifest digest.Digest) bool {
	raw, err := s.Bytes(manifest)
	if err != nil {
		return false
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return false
	}
	for _, d := range append(m.Layers, m.Config) {
		if !s.Has(digest.Digest(d.Digest.String())) {
			return false
		}
	}
	return true
}

func (s *Store) pull(ctx context.Context, src Source, progress func(digest.Digest, int64)) (Pulled, error) {
	if p, ok := s.local(ctx, src); ok {
		return p, nil
	}
	from, err := s.find(ctx, src)
	if err != nil {
		return Pulled{}, err
	}
	if from.done != nil {
		defer from.done()
	}
	if src.Digest != "" && from.pinned.String() != src.Digest.String() {
		return Pulled{}, fault.WithHint(fault.Errorf(fault.Invalid, "it is %s now, and the lock says %s", from.pinned, src.Digest),
			"bring the locked content back, or run invar lock --update for this image")
	}
	img := from.image
	if img == nil {
		if img, err = choose(from.index, src.Platform); err != nil {
			return Pulled{}, err
		}
	}
	if err := checkPlatform(img, src.Platform); err != nil {
		return Pulled{}, err
	}
	manifest, err := s.copyImage(ctx, img, progress)
	if err != nil {
		return Pulled{}, err
	}
	p := Pulled{Pinned: digest.Digest(from.pinned.String()), Manifest: manifest}
	repo, tag := pulledAs(p.Pinned, src.Platform)
	return p, s.Tag(ctx, repo, tag, manifest)
}

// find resolves the reference.
func (s *Store) find(ctx context.Context, src Source) (resolved, error) {
	scheme, rest, ok := strings.Cut(src.Ref, ":")
	switch {
	case ok && scheme == "oci":
		return findLayout(src, rest)
	case ok && scheme == "oci-archive":
		return s.findArchive(src, rest)
	case ok && scheme == "docker-archive":
		return findDockerArchive(src, rest)
	}
	return findRemote(ctx, src)
}

func (src Source) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(src.Dir, p)
}

// findRemote asks the registry that the reference names, with the credentials of the Docker configuration.
func findRemote(ctx context.Context, src Source) (resolved, error) {
	ref, err := name.ParseReference(src.Ref)
	if err != nil {
		return resolved{}, fault.As(fault.Invalid, err)
	}
	if src.Digest != "" {
		ref = ref.Context().Digest(src.Digest.String())
	}
	options := []remote.Option{
		remote.WithContext(ctx),
		remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 3, Steps: 3}),
	}
	if src.Transport != nil {
		options = append(options, remote.WithTransport(src.Transport))
	}
	desc, err := remote.Get(ref, options...)
	if err != nil {
		return resolved{}, remoteError(ref.Context().RegistryStr(), err)
	}
	return open(desc.Digest, desc.MediaType, desc.ImageIndex, desc.Image)
}

func open(h v1.Hash, t types.MediaType, index func() (v1.ImageIndex, error), img func() (v1.Image, error)) (resolved, error) {
	switch {
	case t.IsIndex():
		i, err := index()
		return resolved{pinned: h, index: i}, err
	case t.IsImage():
		i, err := img()
		return resolved{pinned: h, image: i}, err
	}
	return resolved{}, fault.Errorf(fault.Invalid, "%s is of type %s, which is neither an image nor an index", h, t)
}

// remoteError gives a registry's answer, or its silence, a kind and a hint.
func remoteError(host string, err error) error {
	var answer *transport.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case !errors.As(err, &answer):
		return fault.WithHint(fault.As(fault.Unavailable, fmt.Errorf("reaching registry %s: %w", host, err)),
			"check the registry's name and the network; an image in a directory (oci:DIR) or an archive (oci-archive:FILE) needs no registry")
	case answer.StatusCode == http.StatusNotFound:
		return fault.As(fault.NotFound, err)
	case answer.StatusCode == http.StatusUnauthorized, answer.StatusCode == http.StatusForbidden:
		return fault.WithHint(fault.As(fault.Denied, err), "log in to %s; credentials are read from the Docker configuration", host)
	case answer.StatusCode >= 500, answer.StatusCode == http.StatusTooManyRequests:
		return fault.WithHint(fault.As(fault.Unavailable, err), "registry %s has a problem of its own; try again later", host)
	}
	return err
}

// findLayout reads an OCI image layout: "DIR", "DIR:TAG" or "DIR@DIGEST".
func findLayout(src Source, rest string) (resolved, error) {
	dir, want, tag := rest, src.Digest.String(), ""
	if d, at, ok := strings.Cut(rest, "@"); ok {
		if _, err := digest.Parse(at); err != nil {
			return resolved{}, err
		}
		dir, want = d, at
	} else if i := strings.LastIndex(rest, ":"); i > strings.LastIndex(rest, "/") {
		dir, tag = rest[:i], rest[i+1:]
	}
	if tag != "" {
		want = ""
	}
	return findInLayout(src.path(dir), want, tag)
}

const annotationName = "org.opencontainers.image.ref.name"

func findInLayout(dir, want, tag string) (resolved, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return resolved{}, layoutError(dir, err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		return resolved{}, fault.As(fault.Corrupt, fmt.Errorf("reading index of %s: %w", dir, err))
	}
	var found []v1.Descriptor
	for _, d := range list.Manifests {
		if (want == "" || d.Digest.String() == want) && (tag == "" || d.Annotations[annotationName] == tag) {
			found = append(found, d)
		}
	}
	if len(found) == 0 && want != "" && tag == "" && len(list.Manifests) == 1 {
		found = list.Manifests // the one image has changed: the caller compares with the lock
	}
	if len(found) == 0 {
		return resolved{}, fault.Errorf(fault.NotFound, "the layout has no image %s%s", want, tag)
	}
	if len(found) > 1 {
		return resolved{}, fault.WithHint(fault.Errorf(fault.Invalid, "the layout has %d images", len(found)),
			"name one, as in oci:DIR:TAG or oci:DIR@sha256:…")
	}
	h := found[0].Digest
	return open(h, found[0].MediaType,
		func() (v1.ImageIndex, error) { return index.ImageIndex(h) },
		func() (v1.Image, error) { return index.Image(h) })
}

func layoutError(dir string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fault.Errorf(fault.NotFound, "no OCI image layout in %s: %v", dir, err)
	}
	return fault.As(fault.Corrupt, fmt.Errorf("reading OCI image layout %s: %w", dir, err))
}

// findArchive unpacks a tar of an OCI image layout beside the store and reads it there.
func (s *Store) findArchive(src Source, file string) (resolved, error) {
	dir, err := os.MkdirTemp(s.staging(), "archive-*")
	if err != nil {
		return resolved{}, diskFull(err)
	}
	done := func() { os.RemoveAll(dir) }
	if err := unpackLayout(src.path(file), dir); err != nil {
		done()
		return resolved{}, fmt.Errorf("reading archive: %w", err)
	}
	r, err := findInLayout(dir, "", "")
	if err != nil {
		done()
		return resolved{}, err
	}
	r.done = done
	return r, nil
}

// unpackLayout takes out of a tar what an OCI image layout has: index.json, oci-layout and blobs.
func unpackLayout(file, dir string) error {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return fault.As(fault.NotFound, err)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return unpackTar(f, root)
}

func unpackTar(r io.Reader, root *os.Root) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fault.As(fault.Corrupt, err)
		}
		clean := filepath.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || (clean != "index.json" && clean != "oci-layout" && !strings.HasPrefix(clean, "blobs/")) {
			continue
		}
		if err := unpackFile(root, clean, tr); err != nil {
			return err
		}
	}
}

func unpackFile(root *os.Root, clean string, r io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(clean), 0o700); err != nil {
		return err
	}
	out, err := root.Create(clean)
	if err != nil {
		return diskFull(err)
	}
	if _, err := io.Copy(out, r); err != nil {
		out.Close()
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrHeader) {
			return fault.As(fault.Corrupt, err)
		}
		return diskFull(err)
	}
	return out.Close()
}

// findDockerArchive reads what docker save writes. Its layers stay as they are in the archive, uncompressed, so that
// the manifest's digest depends on nothing but the image.
func findDockerArchive(src Source, file string) (resolved, error) {
	file = src.path(file)
	if _, err := os.Stat(file); err != nil {
		return resolved{}, fault.As(fault.NotFound, err)
	}
	img, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		return resolved{}, fault.As(fault.Invalid, err)
	}
	img = plainImage{img}
	h, err := img.Digest()
	if err != nil {
		return resolved{}, fault.As(fault.Corrupt, err)
	}
	return resolved{pinned: h, image: img}, nil
}

// choose returns the index's image of the platform.
func choose(index v1.ImageIndex, want image.Platform) (v1.Image, error) {
	list, err := index.IndexManifest()
	if err != nil {
		return nil, fault.As(fault.Corrupt, err)
	}
	var others []string
	for _, d := range list.Manifests {
		if d.Platform == nil || !d.MediaType.IsImage() {
			continue
		}
		if d.Platform.OS == want.OS && d.Platform.Architecture == want.Architecture {
			return index.Image(d.Digest)
		}
		if d.Platform.OS != "unknown" {
			others = append(others, d.Platform.OS+"/"+d.Platform.Architecture)
		}
	}
	return nil, wrongPlatform(want, strings.Join(others, ", "))
}

func wrongPlatform(want image.Platform, have string) error {
	return fault.WithHint(fault.Errorf(fault.Invalid, "the image is for %s, not for %s", have, want),
		"use a reference that has an image for %s", want)
}

// checkPlatform compares what the image's configuration says of itself.
func checkPlatform(img v1.Image, want image.Platform) error {
	c, err := img.ConfigFile()
	if err != nil {
		return contentError(err)
	}
	if c.OS != want.OS || c.Architecture != want.Architecture {
		return wrongPlatform(want, c.OS+"/"+c.Architecture)
	}
	return nil
}

// copyImage stores layers, configuration and manifest, in that order: a manifest in the store has all that it names.
func (s *Store) copyImage(ctx context.Context, img v1.Image, progress func(digest.Digest, int64)) (digest.Digest, error) {
	layers, err := img.Layers()
	if err != nil {
		return "", contentError(err)
	}
	for _, l := range layers {
		if err := s.copyLayer(ctx, l, progress); err != nil {
			return "", err
		}
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return "", contentError(err)
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return "", contentError(err)
	}
	if _, _, err := s.Put(ctx, bytes.NewReader(config)); err != nil {
		return "", err
	}
	d, _, err := s.Put(ctx, bytes.NewReader(manifest))
	return d, err
}

func (s *Store) copyLayer(ctx context.Context, l v1.Layer, progress func(digest.Digest, int64)) error {
	h, err := l.Digest()
	if err != nil {
		return contentError(err)
	}
	d, err := digest.Parse(h.String())
	if err != nil {
		return err
	}
	size, err := l.Size()
	if err != nil {
		return contentError(err)
	}
	if s.Has(d) {
		return nil
	}
	if progress != nil {
		progress(d, size)
	}
	r, err := l.Compressed()
	if err != nil {
		return fmt.Errorf("reading layer %s: %w", d, contentError(err))
	}
	defer r.Close()
	if _, err := s.PutBlob(ctx, d, r); err != nil {
		return fmt.Errorf("reading layer %s: %w", d, contentError(err))
	}
	return nil
}

// contentError gives an error from reading content its kind, unless it has one.
func contentError(err error) error {
	var answer *transport.Error
	switch {
	case fault.KindOf(err) != "" || errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &answer):
		return remoteError(answer.Request.URL.Host, err)
	case errors.Is(err, os.ErrNotExist):
		return fault.As(fault.NotFound, err)
	case strings.Contains(err.Error(), "error verifying"):
		return fault.As(fault.Corrupt, err)
	}
	return fault.As(fault.Unavailable, err)
}
