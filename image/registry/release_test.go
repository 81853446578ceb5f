package registry_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// putArtifact stores an artifact's blobs and manifest.
func putArtifact(t *testing.T, s *registry.Store, a release.Artifact) digest.Digest {
	t.Helper()
	for _, b := range a.Blobs {
		if _, err := s.PutBlob(t.Context(), digest.Digest(b.Descriptor.Digest), bytes.NewReader(b.Content)); err != nil {
			t.Fatal(err)
		}
	}
	d := digest.Digest(a.Descriptor.Digest)
	if _, err := s.PutBlob(t.Context(), d, bytes.NewReader(a.Manifest)); err != nil {
		t.Fatal(err)
	}
	return d
}

// pullImage brings a random image into the store.
func pullImage(t *testing.T, s *registry.Store) image.Resolved {
	t.Helper()
	p, err := s.Pull(t.Context(), registry.Source{Ref: "oci:" + writeLayout(t, randomImage(t, amd64)), Platform: amd64}, nil)
	if err != nil {
		t.Fatal(err)
	}
	size, err := s.Size(p.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	return image.Resolved{Manifest: p.Manifest, Size: size, MediaType: "application/vnd.docker.distribution.manifest.v2+json", Root: digest.Of([]byte("root")), RootSize: 4096, Platform: amd64}
}

// storeRelease puts a release of two images into the store and returns its index.
func storeRelease(t *testing.T, s *registry.Store) digest.Digest {
	t.Helper()
	source := []byte("sources")
	bundle := release.Bundle{V: 1, App: "shop", Source: digest.Of(source), Images: map[spec.ImageName]image.Resolved{"web": pullImage(t, s), "db": pullImage(t, s)}}
	record := release.Record{V: 1, App: "shop", Env: "prod", Routes: []release.Route{}, Rollout: release.Rollout{MaxParallel: 1}}
	var err error
	if record.Bundle, err = bundle.Digest(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []spec.ImageName{"db", "web"} {
		c := release.Component{Name: spec.ComponentName(n), Image: bundle.Images[n].Manifest, Root: bundle.Images[n].Root, Args: []string{"/x"}}
		record.Components = append(record.Components, release.Placed{Component: c, Replicas: 1})
	}
	b, err := release.BundleManifest(bundle, source)
	if err != nil {
		t.Fatal(err)
	}
	putArtifact(t, s, b)
	index, rec, err := release.ReleaseIndex(record, b.Descriptor, bundle.Images)
	if err != nil {
		t.Fatal(err)
	}
	putArtifact(t, s, rec)
	return putArtifact(t, s, index)
}

// A release that the client pushed can be pulled by a public client, with everything that it refers to.
func TestPublicClientPullsAReleaseAndAllThatItRefersTo(t *testing.T) {
	client, server := open(t), open(t)
	d := storeRelease(t, client)
	url := serve(t, server)
	if err := client.Push(t.Context(), registry.Remote{URL: url, Repository: "shop/prod"}, d, "g1", nil); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(strings.TrimPrefix(url, "http://") + "/shop/prod:g1")
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(ref, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(list.Manifests), 4; got != want { // record, bundle, two images
		t.Errorf("the release has %d manifests, want %d", got, want)
	}
	read := 0
	for _, m := range list.Manifests {
		read += readManifest(t, ref.Context(), m)
	}
	if want := 2*4 + 2 + 2; read != want { // images: configuration and three layers; record and bundle: config and layer
		t.Errorf("read %d blobs, want %d", read, want)
	}
}

// readManifest reads every blob of a manifest and returns how many there are. The client checks their digests.
func readManifest(t *testing.T, repo name.Repository, d v1.Descriptor) int {
	t.Helper()
	got, err := remote.Get(repo.Digest(d.Digest.String()), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(got.Manifest))
	if err != nil {
		t.Fatal(err)
	}
	blobs := append(m.Layers, m.Config)
	for _, b := range blobs {
		l, err := remote.Layer(repo.Digest(b.Digest.String()), remote.WithContext(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Errorf("blob %s: %v", b.Digest, err)
		}
		r.Close()
	}
	return len(blobs)
}
