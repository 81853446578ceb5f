package registry_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image/registry"
)

// discover asks a registry for the referrers of a manifest, as a public client does.
func discover(t *testing.T, host string, of digest.Digest, options ...remote.Option) []v1.Descriptor {
	t.Helper()
	ref, err := name.NewDigest(strings.TrimPrefix(host, "http://")+"/shop@"+of.String(), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(ref, append(options, remote.WithContext(t.Context()))...)
	if err != nil {
		t.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	return list.Manifests
}

func TestPublicClientDiscoversWhatIsAttached(t *testing.T) {
	s := open(t)
	img := pullImage(t, s)
	host := serve(t, s)
	if got := discover(t, host, img.Manifest); len(got) != 0 {
		t.Errorf("before: %v", got)
	}
	var want []registry.Referrer
	for _, kind := range []string{"application/vnd.cyclonedx+json", "application/vnd.in-toto+json"} {
		r, err := s.Refer(t.Context(), img.Manifest, kind, []byte(kind), map[string]string{"a": "b"})
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.Refer(t.Context(), img.Manifest, kind, []byte(kind), map[string]string{"a": "b"})
		if diff := cmp.Diff(r, again); err != nil || diff != "" {
			t.Errorf("attached twice: %v %s", err, diff)
		}
		want = append(want, r)
	}
	if got := discover(t, host, img.Manifest); len(got) != 2 {
		t.Fatalf("discovered %d, want 2", len(got))
	}
	filtered := discover(t, host, img.Manifest, remote.WithFilter("artifactType", want[0].Type))
	if len(filtered) != 1 || filtered[0].Digest.String() != want[0].Digest.String() || filtered[0].ArtifactType != want[0].Type || filtered[0].Annotations["a"] != "b" {
		t.Errorf("filtered: %+v", filtered)
	}
	ref, err := name.NewDigest(strings.TrimPrefix(host, "http://")+"/shop@"+want[0].Digest.String(), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	artifact, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := artifact.Manifest()
	if err != nil || m.Subject.Digest.String() != img.Manifest.String() || len(m.Layers) != 1 || string(m.Layers[0].MediaType) != want[0].Type {
		t.Errorf("manifest %+v, %v", m, err)
	}
	content, err := s.Bytes(want[0].Content())
	if err != nil || string(content) != want[0].Type {
		t.Errorf("content %q, %v", content, err)
	}
}

func TestReferrerThatAPublicClientPushesIsListed(t *testing.T) {
	s := open(t)
	img := pullImage(t, s)
	host := serve(t, s)
	subject, err := partial.Descriptor(mustImage(t, host, img.Manifest))
	if err != nil {
		t.Fatal(err)
	}
	signature := mutate.Subject(mutate.MediaType(mutate.ConfigMediaType(empty.Image, "application/vnd.example.signature"), types.OCIManifestSchema1), *subject).(v1.Image)
	tag, err := name.NewTag(strings.TrimPrefix(host, "http://")+"/shop:sig", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, signature, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	got := discover(t, host, img.Manifest)
	if len(got) != 1 || got[0].ArtifactType != "application/vnd.example.signature" {
		t.Fatalf("discovered %+v", got)
	}
	listed, err := s.Referrers(img.Manifest)
	if err != nil || len(listed) != 1 || listed[0].Digest != hash(t, signature) {
		t.Errorf("Referrers: %+v, %v", listed, err)
	}
}

func mustImage(t *testing.T, host string, d digest.Digest) v1.Image {
	t.Helper()
	ref, err := name.NewDigest(strings.TrimPrefix(host, "http://")+"/shop@"+d.String(), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestPushBringsAReferrerWithoutItsSubjectAgain(t *testing.T) {
	from, to := open(t), open(t)
	img := pullImage(t, from)
	remote := registry.Remote{URL: serve(t, to), Repository: "shop"}
	if err := from.Push(t.Context(), remote, img.Manifest, "", nil); err != nil {
		t.Fatal(err)
	}
	r, err := from.Refer(t.Context(), img.Manifest, "application/vnd.cyclonedx+json", []byte("{}x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var sent []digest.Digest
	for range 2 {
		if err := from.Push(t.Context(), remote, r.Digest, "", func(d digest.Digest, _ int64) { sent = append(sent, d) }); err != nil {
			t.Fatal(err)
		}
	}
	if len(sent) != 3 { // config, content, manifest
		t.Errorf("sent %v", sent)
	}
	got, err := to.Referrers(img.Manifest)
	if diff := cmp.Diff([]registry.Referrer{r}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	asked, err := remote.Referrers(t.Context(), img.Manifest)
	if diff := cmp.Diff([]registry.Referrer{r}, asked); err != nil || diff != "" {
		t.Errorf("asked the remote: %v (-want +got):\n%s", err, diff)
	}
	fetched := open(t)
	if err := fetched.Fetch(t.Context(), remote, r.Digest, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := fetched.Referrers(img.Manifest); err != nil || len(got) != 1 {
		t.Errorf("fetched: %v, %v", got, err)
	}
}

func TestSubjectIsAnnouncedAndJudged(t *testing.T) {
	s := open(t)
	img := pullImage(t, s)
	host := serve(t, s)
	r, err := s.Refer(t.Context(), img.Manifest, "application/vnd.example", []byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := s.Bytes(r.Digest)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Replace(raw, []byte(img.Manifest), []byte("sha256:../../etc"), 1)
	for _, c := range []struct {
		body    []byte
		status  int
		subject string
	}{{raw, http.StatusCreated, img.Manifest.String()}, {bad, http.StatusBadRequest, ""}, {[]byte("{"), http.StatusBadRequest, ""}} {
		resp := send(t, "PUT", host+"/v2/shop/manifests/tag", c.body)
		if resp.StatusCode != c.status || resp.Header.Get("OCI-Subject") != c.subject {
			t.Errorf("%.40s…: %s, subject %q", c.body, resp.Status, resp.Header.Get("OCI-Subject"))
		}
	}
	if resp := send(t, "GET", host+"/v2/shop/referrers/sha256:0", nil); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("bad digest: %s", resp.Status)
	}
}

func send(t *testing.T, method, url string, body []byte) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

func TestRemovedReferrerIsListedNoMore(t *testing.T) {
	s := open(t)
	img := pullImage(t, s)
	r, err := s.Refer(t.Context(), img.Manifest, "application/vnd.example", []byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(r.Digest); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Referrers(img.Manifest); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := s.Refer(t.Context(), digest.Of([]byte("nothing")), "application/vnd.example", []byte("x"), nil); !errors.Is(err, fault.NotFound) {
		t.Errorf("attached to what is not there: %v", err)
	}
}
