package server

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/durable"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/recording"
	"github.com/invarhq/invar/sealed"
	"github.com/invarhq/invar/state"
)

// recordings keeps what was typed and shown in sessions, in a directory of its own: the registry does not serve it.
//
//	DIR/SESSION.part   one that is being written; encrypted already, where there are auditors. Deleted at the next start
//	DIR/HEX            complete, named by its digest
type recordings struct{ dir string }

// openRecordings makes the directory, and deletes what an earlier server did not complete: its ledger says that they are lost.
func openRecordings(dir string) (recordings, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return recordings{}, fmt.Errorf("making the directory of recordings: %w", err)
	}
	parts, err := filepath.Glob(filepath.Join(dir, "*.part"))
	for _, p := range parts {
		err = errors.Join(err, os.Remove(p))
	}
	return recordings{dir}, err
}

// New implements control.Recordings.
func (r recordings) New(id state.SessionID, recipients []string) (control.Recording, error) {
	f, err := os.OpenFile(filepath.Join(r.dir, string(id)+".part"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	p := &part{dir: r.dir, f: f, hash: sha256.New(), kind: recording.Type}
	p.w = p.plain()
	if len(recipients) > 0 {
		p.kind = sealed.Type
		if p.w, err = sealed.Encrypt(p.plain(), recipients); err != nil {
			return nil, errors.Join(err, p.Discard())
		}
	}
	return p, nil
}

// open returns a complete recording.
func (r recordings) open(d digest.Digest) (io.ReadCloser, error) {
	if _, err := digest.Parse(string(d)); err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	f, err := os.Open(filepath.Join(r.dir, strings.TrimPrefix(string(d), "sha256:")))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Errorf(fault.NotFound, "there is no recording %s", d)
	}
	return f, err
}

// remove deletes a complete recording, durably. What is absent is no error.
func (r recordings) remove(d digest.Digest) error {
	err := os.Remove(filepath.Join(r.dir, d.Hex()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, durable.SyncDir(r.dir))
}

// part is a recording that is being written.
type part struct {
	dir  string
	f    *os.File
	hash hash.Hash
	size int64
	w    io.WriteCloser
	kind string
}

// plain writes what reaches the disk.
func (p *part) plain() io.WriteCloser { return diskWriter{p} }

type diskWriter struct{ *part }

func (w diskWriter) Write(b []byte) (int, error) {
	n, err := w.f.Write(b)
	w.hash.Write(b[:n])
	w.size += int64(n)
	return n, err
}

func (diskWriter) Close() error { return nil }

func (p *part) Write(b []byte) (int, error) { return p.w.Write(b) }

func (p *part) Done() (digest.Digest, int64, string, error) {
	err := errors.Join(p.w.Close(), p.f.Sync(), p.f.Close())
	name := hex.EncodeToString(p.hash.Sum(nil))
	if err == nil {
		err = os.Rename(p.f.Name(), filepath.Join(p.dir, name))
	}
	if err == nil {
		err = durable.SyncDir(p.dir)
	}
	return digest.Digest("sha256:" + name), p.size, p.kind, err
}

func (p *part) Discard() error { return errors.Join(p.f.Close(), os.Remove(p.f.Name())) }
