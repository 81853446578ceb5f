package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	godigest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	orasregistry "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// Remote is a repository of another registry, such as the server's.
type Remote struct {
	URL        string            // "http://127.0.0.1:7373"; a transport to a unix socket may ignore the host
	Repository Repository        // in which to put or find what is moved
	Transport  http.RoundTripper // nil: the default one
	Header     http.Header       // sent with every request: the API's token
}

// Push copies the manifest or index, and all that it refers to, to the remote, as far as the remote does not have it.
// With a tag, the remote's repository names it. progress, when not nil, is told of each blob that was sent, one at a time.
// It fails with fault.Unavailable when the remote can't be reached and fault.Denied when it refuses.
func (s *Store) Push(ctx context.Context, to Remote, d digest.Digest, tag string, progress func(digest.Digest, int64)) error {
	if err := s.push(ctx, to, d, tag, progress); err != nil {
		return fmt.Errorf("pushing %s to %s: %w", d, to.URL, err)
	}
	return nil
}

func (s *Store) push(ctx context.Context, to Remote, d digest.Digest, tag string, progress func(digest.Digest, int64)) error {
	root, err := s.describe(d)
	if err != nil {
		return err
	}
	repo, err := to.open()
	if err != nil {
		return err
	}
	if err := oras.CopyGraph(ctx, source{s}, repo, root, copyOptions(progress)); err != nil {
		return transferError(err)
	}
	if tag == "" {
		return nil
	}
	return transferError(repo.Tag(ctx, root, tag))
}

// Fetch copies the manifest or index, and all that it refers to, from the remote into the store, as far as the
// store does not have it. It fails as Push does.
func (s *Store) Fetch(ctx context.Context, from Remote, d digest.Digest, progress func(digest.Digest, int64)) error {
	repo, err := from.open()
	if err != nil {
		return fmt.Errorf("fetching %s from %s: %w", d, from.URL, err)
	}
	root, err := repo.Resolve(ctx, d.String())
	if err == nil {
		err = oras.CopyGraph(ctx, repo, source{s}, root, copyOptions(progress))
	}
	if err != nil {
		return fmt.Errorf("fetching %s from %s: %w", d, from.URL, transferError(err))
	}
	return nil
}

func copyOptions(progress func(digest.Digest, int64)) oras.CopyGraphOptions {
	options := oras.CopyGraphOptions{Concurrency: 4}
	if progress != nil {
		var one sync.Mutex
		options.PostCopy = func(_ context.Context, d ocispec.Descriptor) error {
			one.Lock()
			defer one.Unlock()
			progress(digest.Digest(d.Digest), d.Size)
			return nil
		}
	}
	return options
}

// Blob reads a blob of the remote whole. It fails with fault.NotFound, with fault.Unavailable when the remote can't be reached, and
// with fault.Invalid when the blob is larger than limit.
func (r Remote) Blob(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	b, err := r.blob(ctx, d, limit)
	if err != nil {
		return nil, fmt.Errorf("reading %s from %s: %w", d, r.URL, err)
	}
	return b, nil
}

func (r Remote) blob(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	repo, err := r.open()
	if err != nil {
		return nil, err
	}
	found, err := repo.Blobs().Resolve(ctx, string(d))
	if err != nil {
		return nil, transferError(err)
	}
	if found.Size > limit {
		return nil, fault.Errorf(fault.Invalid, "%d bytes, %d are allowed", found.Size, limit)
	}
	out, err := content.FetchAll(ctx, repo.Blobs(), found) // which holds it against size and digest
	return out, transferError(err)
}

func (r Remote) open() (*remote.Repository, error) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fault.Errorf(fault.Invalid, "registry URL %q: want http://HOST or https://HOST", r.URL)
	}
	if !repositoryName.MatchString(string(r.Repository)) {
		return nil, fault.Errorf(fault.Invalid, "%q is not the name of a repository", r.Repository)
	}
	return &remote.Repository{
		Client:    &client{http.Client{Transport: r.Transport}, r.Header},
		Reference: orasregistry.Reference{Registry: u.Host, Repository: string(r.Repository)},
		PlainHTTP: u.Scheme == "http",
	}, nil
}

type client struct {
	http   http.Client
	header http.Header
}

func (c *client) Do(req *http.Request) (*http.Response, error) {
	for k, v := range c.header {
		req.Header[k] = v
	}
	return c.http.Do(req)
}

// describe says what a manifest or index of the store is.
func (s *Store) describe(d digest.Digest) (ocispec.Descriptor, error) {
	b, err := s.Bytes(d)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var m struct {
		MediaType string               `json:"mediaType"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return ocispec.Descriptor{}, fault.Errorf(fault.Invalid, "%s is neither a manifest nor an index: %v", d, err)
	}
	switch {
	case m.MediaType != "":
	case m.Manifests != nil:
		m.MediaType = ocispec.MediaTypeImageIndex
	default:
		m.MediaType = ocispec.MediaTypeImageManifest
	}
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: godigest.Digest(d), Size: int64(len(b))}, nil
}

// source lets oras read and write the Store.
type source struct{ s *Store }

var _ content.Storage = source{}

func (c source) Exists(_ context.Context, d ocispec.Descriptor) (bool, error) {
	return c.s.Has(digest.Digest(d.Digest)), nil
}

func (c source) Fetch(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	r, _, err := c.s.Open(digest.Digest(d.Digest))
	if errors.Is(err, fault.NotFound) {
		return nil, fmt.Errorf("%w: %w", errdef.ErrNotFound, err)
	}
	return r, err
}

func (c source) Push(ctx context.Context, d ocispec.Descriptor, r io.Reader) error {
	want, err := digest.Parse(d.Digest.String())
	if err != nil {
		return err
	}
	if _, err := c.s.PutBlob(ctx, want, r); err != nil {
		return err
	}
	if d.MediaType != ocispec.MediaTypeImageManifest && d.MediaType != ocispec.MediaTypeImageIndex {
		return nil
	}
	return c.s.link(want)
}

// transferError gives the remote's answer, or its silence, a kind.
func transferError(err error) error {
	if err == nil || fault.KindOf(err) != "" || errors.Is(err, context.Canceled) {
		return err
	}
	if errors.Is(err, errdef.ErrNotFound) {
		return fault.As(fault.NotFound, err)
	}
	answer, ok := errors.AsType[*errcode.ErrorResponse](err)
	switch {
	case !ok:
		if _, unreachable := errors.AsType[*url.Error](err); unreachable {
			return fault.WithHint(fault.As(fault.Unavailable, err), "check that the server runs and that --server names it")
		}
		return err
	case answer.StatusCode == http.StatusUnauthorized, answer.StatusCode == http.StatusForbidden:
		return fault.As(fault.Denied, err)
	case answer.StatusCode == http.StatusNotFound:
		return fault.As(fault.NotFound, err)
	case answer.StatusCode >= 500 && strings.Contains(err.Error(), unix.ENOSPC.Error()):
		return fault.WithHint(fault.As(fault.Unavailable, err), "free space on the server's disk, then do it again; what is there stays good")
	case answer.StatusCode >= 500:
		return fault.As(fault.Unavailable, err)
	}
	return err
}
