package registry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	godigest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// Referrer is a manifest that says something about another one, its subject (image-spec 1.1): an SBOM, a signature.
type Referrer struct {
	Digest    digest.Digest
	MediaType string // of the manifest itself
	SizeBytes int64
	// Type says what it is: the manifest's artifact type, or else its config's media type.
	Type        string
	Annotations map[string]string
	Blobs       []digest.Digest // what the manifest names: its config, then its layers
}

// Content returns the digest of what the referrer holds, its first layer, or "" without one.
func (r Referrer) Content() digest.Digest {
	if len(r.Blobs) < 2 {
		return ""
	}
	return r.Blobs[1]
}

func (s *Store) referrersDir() string { return filepath.Join(s.dir, "referrers") }

// described is what a manifest or an index says about another one.
type described struct {
	MediaType    string               `json:"mediaType"`
	ArtifactType string               `json:"artifactType"`
	Config       *ocispec.Descriptor  `json:"config"`
	Layers       []ocispec.Descriptor `json:"layers"`
	Subject      *ocispec.Descriptor  `json:"subject"`
	Annotations  map[string]string    `json:"annotations"`
}

// subject returns the digest of the manifest's subject, or "" when it has none.
func subject(manifest []byte) (digest.Digest, error) {
	var m described
	if err := json.Unmarshal(manifest, &m); err != nil || m.Subject == nil {
		return "", nil // what is no manifest has no subject; distribution judges it
	}
	return digest.Parse(string(m.Subject.Digest))
}

// link makes a manifest of the store a referrer of its subject, if it has one. The subject need not be there.
func (s *Store) link(manifest digest.Digest) error {
	raw, err := s.Bytes(manifest)
	if err != nil {
		return err
	}
	of, err := subject(raw)
	if err != nil {
		return fmt.Errorf("reading the subject of %s: %w", manifest, err)
	}
	if of == "" {
		return nil
	}
	dir := filepath.Join(s.referrersDir(), of.Hex())
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return diskFull(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, manifest.Hex()), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return diskFull(err)
	}
	return errors.Join(f.Close(), syncDir(dir), syncDir(s.referrersDir()))
}

// Refer stores content as a referrer of a manifest in the store: an OCI artifact of the given type whose one layer is
// the content. The same arguments give the same artifact. It is durable on return.
func (s *Store) Refer(ctx context.Context, to digest.Digest, artifactType string, content []byte, annotations map[string]string) (Referrer, error) {
	m, err := s.refer(ctx, to, artifactType, content, annotations)
	if err == nil {
		err = s.link(m)
	}
	if err != nil {
		return Referrer{}, fmt.Errorf("attaching %s to %s: %w", artifactType, to, err)
	}
	return s.referrer(m)
}

func (s *Store) refer(ctx context.Context, to digest.Digest, artifactType string, content []byte, annotations map[string]string) (digest.Digest, error) {
	of, err := s.describe(to)
	if err != nil {
		return "", err
	}
	layer, size, err := s.Put(ctx, bytes.NewReader(content))
	if err != nil {
		return "", err
	}
	if _, _, err := s.Put(ctx, bytes.NewReader(ocispec.DescriptorEmptyJSON.Data)); err != nil {
		return "", err
	}
	raw, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType,
		Config: ocispec.DescriptorEmptyJSON, Subject: &of, Annotations: annotations,
		Layers: []ocispec.Descriptor{{MediaType: artifactType, Digest: godigest.Digest(layer), Size: size}},
	})
	if err != nil {
		return "", err
	}
	m, _, err := s.Put(ctx, bytes.NewReader(raw))
	return m, err
}

// Referrers returns the manifests of the store whose subject is d, sorted by digest.
func (s *Store) Referrers(d digest.Digest) ([]Referrer, error) {
	entries, err := os.ReadDir(filepath.Join(s.referrersDir(), d.Hex()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the referrers of %s: %w", d, err)
	}
	var all []Referrer
	for _, e := range entries {
		m, err := digest.Parse("sha256:" + e.Name())
		if err != nil || !s.Has(m) {
			continue // it was removed
		}
		r, err := s.referrer(m)
		if err != nil {
			return nil, fmt.Errorf("reading referrer %s of %s: %w", m, d, err)
		}
		all = append(all, r)
	}
	return all, nil
}

func (s *Store) referrer(manifest digest.Digest) (Referrer, error) {
	raw, err := s.Bytes(manifest)
	if err != nil {
		return Referrer{}, err
	}
	return parseReferrer(manifest, raw)
}

// Referrers returns the manifests of the remote whose subject is d. It fails with fault.Unavailable when the remote can't be reached.
func (r Remote) Referrers(ctx context.Context, d digest.Digest) ([]Referrer, error) {
	repo, err := r.open()
	if err != nil {
		return nil, err
	}
	var all []Referrer
	err = repo.Referrers(ctx, ocispec.Descriptor{Digest: godigest.Digest(d)}, "", func(page []ocispec.Descriptor) error {
		for _, found := range page {
			raw, err := r.Blob(ctx, digest.Digest(found.Digest), maxManifest)
			if err != nil {
				return err
			}
			referrer, err := parseReferrer(digest.Digest(found.Digest), raw)
			if err != nil {
				return err
			}
			all = append(all, referrer)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the referrers of %s on %s: %w", d, r.URL, transferError(err))
	}
	return all, nil
}

func parseReferrer(manifest digest.Digest, raw []byte) (Referrer, error) {
	var m described
	if err := json.Unmarshal(raw, &m); err != nil {
		return Referrer{}, fault.Errorf(fault.Corrupt, "%s is no manifest: %v", manifest, err)
	}
	r := Referrer{
		Digest: manifest, MediaType: cmp.Or(m.MediaType, ocispec.MediaTypeImageManifest), SizeBytes: int64(len(raw)),
		Type: m.ArtifactType, Annotations: maps.Clone(m.Annotations),
	}
	if m.Config == nil { // an index
		return r, nil
	}
	r.Type = cmp.Or(m.ArtifactType, m.Config.MediaType)
	for _, d := range append([]ocispec.Descriptor{*m.Config}, m.Layers...) {
		r.Blobs = append(r.Blobs, digest.Digest(d.Digest))
	}
	return r, nil
}

var referrersPath = regexp.MustCompile(`^/v2/(.+)/referrers/([^/]+)$`)

// withReferrers adds the referrers API (distribution specification 1.1), which CNCF distribution does not have: the list,
// and the header by which a client learns that it need not keep one itself.
func (s *Store) withReferrers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch m := referrersPath.FindStringSubmatch(r.URL.Path); {
		case m != nil && repositoryName.MatchString(m[1]) && (r.Method == http.MethodGet || r.Method == http.MethodHead):
			s.serveReferrers(w, r, m[2])
		case r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/"):
			announceSubject(w, r, next)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func (s *Store) serveReferrers(w http.ResponseWriter, r *http.Request, name string) {
	d, err := digest.Parse(name)
	if err != nil {
		writeError(w, http.StatusBadRequest, "DIGEST_INVALID", err)
		return
	}
	all, err := s.Referrers(d)
	if err != nil {
		writeError(w, http.StatusInternalServerError, "UNKNOWN", err)
		return
	}
	if want := r.URL.Query().Get("artifactType"); want != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
		all = slices.DeleteFunc(all, func(r Referrer) bool { return r.Type != want })
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	for _, r := range all {
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			MediaType: r.MediaType, Digest: godigest.Digest(r.Digest), Size: r.SizeBytes, ArtifactType: r.Type, Annotations: r.Annotations,
		})
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	json.NewEncoder(w).Encode(index) // a client that went away is no concern of ours
}

// writeError writes an error as the distribution specification has them.
func writeError(w http.ResponseWriter, status int, code string, err error) {
	type problem struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string][]problem{"errors": {{code, err.Error()}}})
}

// announceSubject lets a manifest be put and, when that succeeds, names its subject in the response.
func announceSubject(w http.ResponseWriter, r *http.Request, next http.Handler) {
	raw, err := io.ReadAll(io.LimitReader(r.Body, maxManifest+1))
	if err != nil {
		writeError(w, http.StatusBadRequest, "MANIFEST_INVALID", err)
		return
	}
	of, err := subject(raw)
	if err != nil {
		writeError(w, http.StatusBadRequest, "MANIFEST_INVALID", fmt.Errorf("subject: %w", err))
		return
	}
	body := r.Body
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(raw), body), body}
	if of != "" {
		w = &announcing{w, of}
	}
	next.ServeHTTP(w, r)
}

// announcing names the subject of the manifest that was put, once it is there.
type announcing struct {
	http.ResponseWriter
	subject digest.Digest
}

func (a *announcing) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *announcing) WriteHeader(status int) {
	if status == http.StatusCreated {
		a.Header().Set("OCI-Subject", a.subject.String())
	}
	a.ResponseWriter.WriteHeader(status)
}
