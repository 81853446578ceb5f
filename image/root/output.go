package root

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/erofs/go-erofs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
)

// encode writes the tree as EROFS and returns the file's digest and size: no build time, no UUID, entries sorted.
//
// Encoding, hashing and writing go on at the same time. The encoder writes from front to back and at the end, once more, the first block, which
// says how long the parts are. To hash the file on the way that block must be known first; it depends on sizes alone, so the tree is encoded
// twice, the first time without any data. That both times gave the same block is checked.
func encode(f *os.File, t *tree) (digest.Digest, int64, error) {
	dir := filepath.Dir(f.Name())
	var head firstBlock
	if err := encodeTo(&head, sizes{t}, dir); err != nil {
		return "", 0, err
	}
	out := newOutput(f, head.block)
	err := encodeTo(out, t, dir)
	return out.finish(err)
}

func encodeTo(out io.WriteSeeker, t fs.FS, dir string) error {
	w := erofs.Create(out, erofs.WithBuildTime(0, 0), erofs.WithTempDir(dir))
	if err := w.CopyFrom(t); err != nil {
		return fmt.Errorf("encoding EROFS: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("encoding EROFS: %w", err)
	}
	return nil
}

// sizes is a tree whose files have their sizes, but nothing in them.
type sizes struct{ *tree }

func (s sizes) Open(name string) (fs.File, error) {
	n, err := s.find("open", name)
	if err != nil {
		return nil, err
	}
	return file{Reader: io.LimitReader(nothing{}, n.size), node: n}, nil
}

// nothing reads as whatever is in the buffer.
type nothing struct{}

func (nothing) Read(p []byte) (int, error) { return len(p), nil }

// firstBlock keeps what is written after the encoder has gone back to the beginning.
type firstBlock struct {
	back  bool
	block []byte
}

func (b *firstBlock) Write(p []byte) (int, error) {
	if b.back {
		b.block = append(b.block, p...)
	}
	return len(p), nil
}

func (b *firstBlock) Seek(offset int64, whence int) (int64, error) {
	return 0, b.goBack(offset, whence)
}

// goBack allows the only seek that the encoder makes.
func (b *firstBlock) goBack(offset int64, whence int) error {
	if b.back || offset != 0 || whence != io.SeekStart {
		return errors.New("the encoder seeks elsewhere than once to the beginning")
	}
	b.back = true
	return nil
}

const (
	chunkSize   = 1 << 20
	chunksAhead = 4
)

// output gives what the encoder writes, in chunks, to a goroutine that hashes and to one that writes.
type output struct {
	head   []byte     // the first block, as it will be
	again  firstBlock // as it came at the end
	chunk  []byte     // being filled
	size   int64
	spare  chan []byte
	hashes chan []byte
	writes chan []byte
	work   errgroup.Group
	sum    []byte
}

func newOutput(f *os.File, head []byte) *output {
	o := &output{head: head, spare: make(chan []byte, chunksAhead), hashes: make(chan []byte, chunksAhead), writes: make(chan []byte, chunksAhead)}
	hashed := make(chan []byte, chunksAhead)
	o.work.Go(func() error {
		h := sha256.New()
		for c := range o.hashes {
			h.Write(c)
			hashed <- c
		}
		close(hashed)
		o.sum = h.Sum(nil)
		return nil
	})
	o.work.Go(func() (err error) {
		var at int64
		for c := range o.writes {
			if err == nil {
				err = writeChunk(f, c, at)
			}
			at += int64(len(c))
			<-hashed // chunks pass both in the same order
			o.spare <- c[:0]
		}
		return err
	})
	for range chunksAhead {
		o.spare <- make([]byte, 0, chunkSize)
	}
	o.chunk = <-o.spare
	return o
}

// writeChunk also has the kernel begin to write it to the disk, so that little is left to do when the file is synced.
func writeChunk(f *os.File, c []byte, at int64) error {
	if _, err := f.WriteAt(c, at); err != nil {
		return err
	}
	// It may be refused, as some file systems do: then the sync at the end has all to do.
	unix.SyncFileRange(int(f.Fd()), at, int64(len(c)), unix.SYNC_FILE_RANGE_WRITE)
	return nil
}

func (o *output) Write(p []byte) (int, error) {
	if o.again.back {
		return o.again.Write(p)
	}
	n := len(p)
	if o.size < int64(len(o.head)) { // a placeholder comes first
		known := o.head[o.size:min(int64(len(o.head)), o.size+int64(n))]
		o.add(known)
		p = p[len(known):]
	}
	o.add(p)
	return n, nil
}

func (o *output) add(p []byte) {
	o.size += int64(len(p))
	for len(p) > 0 {
		room := min(len(p), cap(o.chunk)-len(o.chunk))
		o.chunk = append(o.chunk, p[:room]...)
		p = p[room:]
		if len(o.chunk) == cap(o.chunk) {
			o.pass()
			o.chunk = <-o.spare
		}
	}
}

func (o *output) pass() {
	o.hashes <- o.chunk
	o.writes <- o.chunk
}

func (o *output) Seek(offset int64, whence int) (int64, error) {
	return 0, o.again.goBack(offset, whence)
}

// finish ends the goroutines, whatever the encoder said, and returns what was written.
func (o *output) finish(err error) (digest.Digest, int64, error) {
	o.pass()
	close(o.hashes)
	close(o.writes)
	if err = errors.Join(err, o.work.Wait()); err != nil {
		return "", 0, err
	}
	if !bytes.Equal(o.again.block, o.head) {
		return "", 0, errors.New("encoding EROFS: the first block depends on more than sizes")
	}
	return digest.Digest("sha256:" + hex.EncodeToString(o.sum)), o.size, nil
}
