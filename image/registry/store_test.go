package registry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/registry"
)

var amd64 = image.Platform{OS: "linux", Architecture: "amd64"}

func open(t *testing.T) *registry.Store {
	t.Helper()
	s, err := registry.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func serve(t *testing.T, s *registry.Store) string {
	t.Helper()
	srv := httptest.NewServer(s.Handler(t.Context()))
	t.Cleanup(srv.Close)
	return srv.URL
}

func randomImage(t *testing.T, p image.Platform) v1.Image {
	t.Helper()
	return sizedImage(t, p, 2000)
}

func bigImage(t *testing.T) v1.Image {
	t.Helper()
	return sizedImage(t, amd64, 1<<20)
}

// sizedImage has three layers of random bytes.
func sizedImage(t *testing.T, p image.Platform, layerBytes int64) v1.Image {
	t.Helper()
	img, err := random.Image(layerBytes, 3)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c.OS, c.Architecture = p.OS, p.Architecture
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

// twoPlatforms is an index of an amd64 and an arm64 image.
func twoPlatforms(t *testing.T) (v1.ImageIndex, v1.Image) {
	t.Helper()
	here := randomImage(t, amd64)
	there := randomImage(t, image.Platform{OS: "linux", Architecture: "arm64"})
	return mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: there, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: here, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
	), here
}

func hash(t *testing.T, i interface{ Digest() (v1.Hash, error) }) digest.Digest {
	t.Helper()
	h, err := i.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.Digest(h.String())
}

func TestPutReadsBackWhatWasPut(t *testing.T) {
	s := open(t)
	for _, content := range [][]byte{nil, []byte("a"), bytes.Repeat([]byte("0123456789"), 100_000)} {
		d, n, err := s.Put(t.Context(), bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		if d != digest.Of(content) || n != int64(len(content)) {
			t.Errorf("Put = %s, %d", d, n)
		}
		got, err := s.Bytes(d)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("Bytes(%s) = %d bytes, %v", d, len(got), err)
		}
	}
	all, err := s.Digests()
	if err != nil || len(all) != 3 {
		t.Errorf("Digests = %v, %v; want 3", all, err)
	}
}

func TestBlobThatIsNotItsNameIsRefused(t *testing.T) {
	s := open(t)
	want := digest.Of([]byte("right"))
	if _, err := s.PutBlob(t.Context(), want, strings.NewReader("wrong")); !errors.Is(err, fault.Corrupt) {
		t.Errorf("PutBlob: %v, want corrupt", err)
	}
	if s.Has(want) {
		t.Error("the blob is in the store")
	}
	left, err := os.ReadDir(filepath.Join(s.Dir(), "staging"))
	if err != nil || len(left) != 0 {
		t.Errorf("left in staging: %v, %v", left, err)
	}
}

func TestDamagedBlobIsNoticedWhenRead(t *testing.T) {
	s := open(t)
	d, _, err := s.Put(t.Context(), strings.NewReader("content"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.Path(d), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Path(d), []byte("c0ntent"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Bytes(d); !errors.Is(err, fault.Corrupt) {
		t.Errorf("Bytes: %v, want corrupt", err)
	}
}

func TestMissingBlobIsNotFound(t *testing.T) {
	s := open(t)
	if _, err := s.Bytes(digest.Of(nil)); !errors.Is(err, fault.NotFound) {
		t.Errorf("Bytes: %v, want not found", err)
	}
	if err := s.Tag(t.Context(), "shop", "v1", digest.Of(nil)); !errors.Is(err, fault.NotFound) {
		t.Errorf("Tag: %v, want not found", err)
	}
	if _, err := s.Resolve(t.Context(), "shop", "v1"); !errors.Is(err, fault.NotFound) {
		t.Errorf("Resolve: %v, want not found", err)
	}
}

func TestOpenRemovesWhatACrashLeft(t *testing.T) {
	s := open(t)
	left := filepath.Join(s.Dir(), "staging", "blob-1")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Open(s.Dir()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Open: %v", err)
	}
}

// A public client pushes an index to the store's registry, and another one finds all of it there.
func TestPublicClientPushesAndPullsAnIndex(t *testing.T) {
	s := open(t)
	host := strings.TrimPrefix(serve(t, s), "http://")
	index, _ := twoPlatforms(t)
	ref, err := name.ParseReference(host + "/shop/prod:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Resolve(t.Context(), "shop/prod", "v1"); err != nil || got != hash(t, index) {
		t.Errorf("Resolve = %s, %v; want %s", got, err, hash(t, index))
	}
	back, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(back); err != nil {
		t.Errorf("what came back: %v", err)
	}
	if tags, err := remote.List(ref.Context()); err != nil || !cmp.Equal(tags, []string{"v1"}) {
		t.Errorf("tags = %v, %v", tags, err)
	}
}

// What the server puts in process, a public client pulls, from any repository.
func TestPublicClientPullsWhatWasPutInProcess(t *testing.T) {
	s := open(t)
	img := randomImage(t, amd64)
	dir := writeLayout(t, img)
	pulled, err := s.Pull(t.Context(), registry.Source{Ref: "oci:" + dir, Platform: amd64}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(t.Context(), "shop", "v1", pulled.Manifest); err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(serve(t, s), "http://")
	for _, spelling := range []string{host + "/shop:v1", host + "/other@" + pulled.Manifest.String()} {
		ref, err := name.ParseReference(spelling)
		if err != nil {
			t.Fatal(err)
		}
		back, err := remote.Image(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(back); err != nil {
			t.Errorf("%s: %v", spelling, err)
		}
	}
}

func writeLayout(t *testing.T, images ...v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for i, img := range images {
		tag := layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v" + string(rune('1'+i))})
		if err := p.AppendImage(img, tag); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPullTakesThePlatformsImageOfAnIndex(t *testing.T) {
	from, to := open(t), open(t)
	host := strings.TrimPrefix(serve(t, from), "http://")
	index, here := twoPlatforms(t)
	ref, err := name.ParseReference(host + "/cache:7")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	got, err := to.Pull(t.Context(), registry.Source{Ref: ref.String(), Platform: amd64}, nil)
	want := registry.Pulled{Pinned: hash(t, index), Manifest: hash(t, here)}
	if err != nil || got != want {
		t.Fatalf("Pull = %+v, %v; want %+v", got, err, want)
	}
	again, err := to.Pull(t.Context(), registry.Source{Ref: ref.String(), Digest: got.Pinned, Platform: amd64}, nil)
	if err != nil || again != got {
		t.Errorf("pinned Pull = %+v, %v", again, err)
	}
	_, err = to.Pull(t.Context(), registry.Source{Ref: ref.String(), Platform: image.Platform{OS: "linux", Architecture: "riscv64"}}, nil)
	if !errors.Is(err, fault.Invalid) || fault.Hint(err) == "" || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("other architecture: %v (hint %q)", err, fault.Hint(err))
	}
}

func TestPullReadsLayoutsAndArchives(t *testing.T) {
	s := open(t)
	one, two := randomImage(t, amd64), randomImage(t, amd64)
	dir := writeLayout(t, one, two)
	single := writeLayout(t, one)
	archive := filepath.Join(t.TempDir(), "image.tar")
	tarDir(t, single, archive)
	for ref, want := range map[string]digest.Digest{
		"oci:" + dir + ":v2":                       hash(t, two),
		"oci:" + dir + "@" + hash(t, one).String(): hash(t, one),
		"oci:" + single:                            hash(t, one),
		"oci-archive:" + archive:                   hash(t, one),
	} {
		got, err := s.Pull(t.Context(), registry.Source{Ref: ref, Platform: amd64}, nil)
		if err != nil || got.Manifest != want || got.Pinned != want {
			t.Errorf("Pull(%s) = %+v, %v; want %s", ref, got, err, want)
		}
	}
	_, err := s.Pull(t.Context(), registry.Source{Ref: "oci:" + dir, Platform: amd64}, nil)
	if !errors.Is(err, fault.Invalid) {
		t.Errorf("layout with two images: %v, want invalid", err)
	}
}

func TestPullOfAnArchiveThatChangedNamesTheLock(t *testing.T) {
	s := open(t)
	dir := writeLayout(t, randomImage(t, amd64))
	_, err := s.Pull(t.Context(), registry.Source{Ref: "oci:" + dir, Digest: digest.Of([]byte("old")), Platform: amd64}, nil)
	if !errors.Is(err, fault.Invalid) || !strings.Contains(fault.Hint(err), "invar lock --update") {
		t.Errorf("Pull: %v (hint %q)", err, fault.Hint(err))
	}
}

func TestPullReadsDockerArchivesReproducibly(t *testing.T) {
	img := randomImage(t, amd64)
	tag, err := name.NewTag("shop/web:1")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		t.Fatal(err)
	}
	var first registry.Pulled
	for i := range 2 {
		got, err := open(t).Pull(t.Context(), registry.Source{Ref: "docker-archive:" + filepath.Base(file), Dir: filepath.Dir(file), Platform: amd64}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 && got != first {
			t.Errorf("pulled again: %+v, first %+v", got, first)
		}
		first = got
	}
}

func TestCorruptLayerIsNamed(t *testing.T) {
	s := open(t)
	img := randomImage(t, amd64)
	dir := writeLayout(t, img)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	h, err := layers[1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "blobs", "sha256", h.Hex)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = s.Pull(t.Context(), registry.Source{Ref: "oci:" + dir, Platform: amd64}, nil)
	if !errors.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), h.Hex) {
		t.Errorf("Pull: %v, want corrupt and the layer's name", err)
	}
	if s.Has(hash(t, img)) {
		t.Error("the manifest is in the store without its layer")
	}
}

func TestUnreachableRegistryIsUnavailable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	s := open(t)
	_, err = s.Pull(t.Context(), registry.Source{Ref: host + "/cache:7", Platform: amd64}, nil)
	if !errors.Is(err, fault.Unavailable) || fault.Hint(err) == "" {
		t.Errorf("Pull: %v (hint %q), want unavailable", err, fault.Hint(err))
	}
	d, _, err := s.Put(t.Context(), strings.NewReader(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	err = s.Push(t.Context(), registry.Remote{URL: "http://" + host, Repository: "shop"}, d, "", nil)
	if !errors.Is(err, fault.Unavailable) {
		t.Errorf("Push: %v, want unavailable", err)
	}
}

// The client's store and the server's exchange a release over a unix socket.
func TestPushAndFetchOverAUnixSocket(t *testing.T) {
	client, server, third := open(t), open(t), open(t)
	index, _ := twoPlatforms(t)
	dir := t.TempDir()
	if _, err := layout.Write(dir, index); err != nil {
		t.Fatal(err)
	}
	copyBlobs(t, dir, client)
	raw, err := index.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	d, _, err := client.Put(t.Context(), bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	remote := registry.Remote{URL: "http://local", Repository: "shop", Transport: unixTransport(t, server)}
	sent := 0
	if err := client.Push(t.Context(), remote, d, "v1", func(digest.Digest, int64) { sent++ }); err != nil {
		t.Fatal(err)
	}
	if got, err := server.Resolve(t.Context(), "shop", "v1"); err != nil || got != d {
		t.Errorf("server has %s, %v; want %s", got, err, d)
	}
	if sent == 0 {
		t.Error("no progress")
	}
	sent = 0
	if err := client.Push(t.Context(), remote, d, "v1", func(digest.Digest, int64) { sent++ }); err != nil || sent != 0 {
		t.Errorf("second Push sent %d, %v; want nothing", sent, err)
	}
	if err := third.Fetch(t.Context(), remote, d, nil); err != nil {
		t.Fatal(err)
	}
	want, _ := client.Digests()
	got, err := third.Digests()
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("fetched (-want +got):\n%s%v", diff, err)
	}
	if err := third.Fetch(t.Context(), remote, digest.Of([]byte("none")), nil); !errors.Is(err, fault.NotFound) {
		t.Errorf("Fetch of nothing: %v", err)
	}
	if b, err := remote.Blob(t.Context(), d, int64(len(raw))); err != nil || !bytes.Equal(b, raw) {
		t.Errorf("Blob: %q, %v", b, err)
	}
	if _, err := remote.Blob(t.Context(), d, int64(len(raw))-1); !errors.Is(err, fault.Invalid) {
		t.Errorf("Blob beyond its limit: %v", err)
	}
	if _, err := remote.Blob(t.Context(), digest.Of([]byte("none")), 1); !errors.Is(err, fault.NotFound) {
		t.Errorf("Blob of nothing: %v", err)
	}
}

func unixTransport(t *testing.T, s *registry.Store) http.RoundTripper {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(s.Handler(t.Context()))
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func copyBlobs(t *testing.T, dir string, s *registry.Store) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, "blobs", "sha256", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Put(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}

func TestRefusedPushLeavesNothing(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusForbidden)
	}))
	defer srv.Close()
	s := open(t)
	d, _, err := s.Put(t.Context(), strings.NewReader(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	err = s.Push(t.Context(), registry.Remote{URL: srv.URL, Repository: "shop"}, d, "v1", nil)
	if !errors.Is(err, fault.Denied) {
		t.Errorf("Push: %v, want denied", err)
	}
}
