// Package registry keeps OCI content in a directory, serves it as an OCI registry, and moves it from
// and to other registries.
//
// # Layout
//
//	DIR/oci-layout               marks the directory (image-spec 1.1, "Image Layout")
//	DIR/blobs/sha256/HEX         every blob, manifest and index, named by its content
//	DIR/registry/…               tags and unfinished uploads, as CNCF distribution keeps them
//	DIR/referrers/HEX/HEX        an empty file for each manifest (the second) whose subject is the first
//	DIR/staging/…                files that are being written; emptied by Open
//
// A blob is written to staging, synced, checked against its digest, renamed into place, and the
// directory is synced: so a blob that exists is whole, also after a crash or on a full disk. It is checked
// again whenever it is read in process; what no longer matches is an error of kind fault.Corrupt.
//
// # Served content
//
// Handler serves the distribution specification 1.1 under /v2/ with CNCF distribution's own handlers
// over this directory. All content is one pool: a blob can be read in every repository, because a
// digest says what it is, not whose it is. Who may speak to the registry at all is the server's to decide.
package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// maxManifest bounds a manifest or index, as the distribution specification suggests (4 MiB).
const maxManifest = 4 << 20

// Store is a directory of OCI content. Its methods may be called concurrently, and several processes may
// add to one directory.
type Store struct {
	dir    string
	driver storagedriver.StorageDriver
}

// Open opens the directory, and makes it when it does not exist.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("opening content store: %w", err)
	}
	s := &Store{dir: dir}
	for _, d := range []string{s.blobs(), s.staging(), s.registryDir(), s.referrersDir()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("opening content store: %w", err)
		}
	}
	if err := s.clean(); err != nil {
		return nil, fmt.Errorf("opening content store: %w", err)
	}
	if err := s.mark(); err != nil {
		return nil, fmt.Errorf("opening content store: %w", err)
	}
	s.driver = newDriver(s)
	return s, nil
}

func (s *Store) blobs() string       { return filepath.Join(s.dir, "blobs", "sha256") }
func (s *Store) staging() string     { return filepath.Join(s.dir, "staging") }
func (s *Store) registryDir() string { return filepath.Join(s.dir, "registry") }

// Dir returns the directory.
func (s *Store) Dir() string { return s.dir }

// Path returns the file that holds the blob, whether or not it exists. Nobody may write to it.
func (s *Store) Path(d digest.Digest) string { return filepath.Join(s.blobs(), d.Hex()) }

// mark writes the oci-layout file once.
func (s *Store) mark() error {
	name := filepath.Join(s.dir, "oci-layout")
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	f, err := s.create()
	if err != nil {
		return err
	}
	defer f.discard()
	if _, err := io.WriteString(f, `{"imageLayoutVersion":"1.0.0"}`); err != nil {
		return err
	}
	return f.commit(name)
}

// clean removes what a crash left in staging. A file that another process holds locked is being written.
func (s *Store) clean() error {
	entries, err := os.ReadDir(s.staging())
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(s.staging(), e.Name())
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			err = os.RemoveAll(name)
		}
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// staged is a file that becomes visible at once or never.
type staged struct {
	*os.File
	done bool
}

func (s *Store) create() (*staged, error) {
	f, err := os.CreateTemp(s.staging(), "blob-*")
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, err
	}
	return &staged{File: f}, nil
}

// commit makes the file durable under name. A crash before the rename leaves a file in staging.
func (f *staged) commit(name string) error {
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	f.done = true
	return syncDir(filepath.Dir(name))
}

func (f *staged) discard() {
	f.Close()
	if !f.done {
		os.Remove(f.Name())
	}
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Put stores what r holds and returns its name and size. The blob is durable on return.
func (s *Store) Put(ctx context.Context, r io.Reader) (digest.Digest, int64, error) {
	d, n, err := s.put(ctx, r, "")
	if err != nil {
		return "", n, fmt.Errorf("storing blob: %w", err)
	}
	return d, n, nil
}

// PutBlob stores what r holds if it is the content that want names, else it fails with
// fault.Corrupt and stores nothing. It reads nothing when the blob is there already.
func (s *Store) PutBlob(ctx context.Context, want digest.Digest, r io.Reader) (int64, error) {
	if n, err := s.Size(want); err == nil {
		return n, nil
	}
	_, n, err := s.put(ctx, r, want)
	if err != nil {
		return n, fmt.Errorf("storing blob %s: %w", want, err)
	}
	return n, nil
}

func (s *Store) put(ctx context.Context, r io.Reader, want digest.Digest) (digest.Digest, int64, error) {
	f, err := s.create()
	if err != nil {
		return "", 0, diskFull(err)
	}
	defer f.discard()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), contextReader{ctx, r})
	if err != nil {
		return "", n, diskFull(err)
	}
	got := sum(h)
	if want != "" && got != want {
		return "", n, fault.Errorf(fault.Corrupt, "content is %s (%d bytes), not what its name says", got, n)
	}
	return got, n, diskFull(f.commit(s.Path(got)))
}

func sum(h hash.Hash) digest.Digest {
	return digest.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}

// diskFull gives a write that found no space its kind and a hint.
func diskFull(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fault.WithHint(fault.As(fault.Unavailable, err), "free some space on the disk that holds the data directory; nothing was changed")
	}
	return err
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Has reports whether the blob is there. It does not read it.
func (s *Store) Has(d digest.Digest) bool {
	_, err := s.Size(d)
	return err == nil
}

// Size returns the blob's length in bytes, without reading it.
func (s *Store) Size(d digest.Digest) (int64, error) {
	fi, err := os.Stat(s.Path(d))
	if err != nil {
		return 0, s.missing(d, err)
	}
	return fi.Size(), nil
}

func (s *Store) missing(d digest.Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.Errorf(fault.NotFound, "blob %s is not in the store", d)
	}
	return fmt.Errorf("reading blob %s: %w", d, err)
}

// Open returns a reader of the blob and its size. The read that meets the end fails with fault.Corrupt
// unless all that was read has the digest.
func (s *Store) Open(d digest.Digest) (io.ReadCloser, int64, error) {
	f, err := os.Open(s.Path(d))
	if err != nil {
		return nil, 0, s.missing(d, err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("reading blob %s: %w", d, err)
	}
	return &verifier{f: f, h: sha256.New(), want: d}, fi.Size(), nil
}

type verifier struct {
	f    *os.File
	h    hash.Hash
	want digest.Digest
}

func (v *verifier) Close() error { return v.f.Close() }

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.f.Read(p)
	v.h.Write(p[:n])
	if err == io.EOF {
		if got := sum(v.h); got != v.want {
			return n, fault.Errorf(fault.Corrupt, "blob %s is damaged: its content is %s", v.want, got)
		}
	}
	return n, err
}

// Bytes returns a small blob, such as a manifest or a configuration, whole and checked.
func (s *Store) Bytes(d digest.Digest) ([]byte, error) {
	r, n, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if n > maxManifest {
		return nil, fault.Errorf(fault.Invalid, "blob %s has %d bytes; a manifest has at most %d", d, n, maxManifest)
	}
	return io.ReadAll(r)
}

// Remove deletes the blob, durably. What is absent is no error. The caller knows that nothing refers to it. Links of
// repositories to it need no care: one is there as long as its blob is.
func (s *Store) Remove(d digest.Digest) error {
	err := os.Remove(s.Path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err = errors.Join(err, syncDir(s.blobs())); err != nil {
		return fmt.Errorf("removing blob %s: %w", d, err)
	}
	return nil
}

// Digests returns the names of all blobs, sorted.
func (s *Store) Digests() ([]digest.Digest, error) {
	entries, err := os.ReadDir(s.blobs())
	if err != nil {
		return nil, fmt.Errorf("listing blobs: %w", err)
	}
	var all []digest.Digest
	for _, e := range entries {
		if d, err := digest.Parse("sha256:" + e.Name()); err == nil {
			all = append(all, d)
		}
	}
	return all, nil
}
