package root

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/registry"
)

// maxBytes bounds what all layers of an image unpack to.
const maxBytes = 64 << 30

// described is an image as its manifest and configuration have it.
type described struct {
	resolved image.Resolved // without the root
	layers   []layerInfo
}

type layerInfo struct {
	blob        digest.Digest
	diffID      digest.Digest
	compression string // "", "gzip" or "zstd"
}

// describe reads the image's manifest and configuration.
func describe(store *registry.Store, manifest digest.Digest) (described, error) {
	raw, err := store.Bytes(manifest)
	if err != nil {
		return described{}, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return described{}, fault.Errorf(fault.Invalid, "reading manifest: %v", err)
	}
	rawConfig, err := store.Bytes(digest.Digest(m.Config.Digest))
	if err != nil {
		return described{}, err
	}
	var c ocispec.Image
	if err := json.Unmarshal(rawConfig, &c); err != nil {
		return described{}, fault.Errorf(fault.Invalid, "reading configuration: %v", err)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return described{}, fault.Errorf(fault.Invalid, "the manifest has %d layers, the configuration %d", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	d := described{resolved: image.Resolved{
		Manifest:  manifest,
		Size:      int64(len(raw)),
		MediaType: foreignType(m.MediaType),
		Platform:  image.Platform{OS: c.OS, Architecture: c.Architecture},
		Config: image.Config{
			Entrypoint: c.Config.Entrypoint,
			Command:    c.Config.Cmd,
			Env:        splitEnv(c.Config.Env),
			User:       c.Config.User,
			WorkDir:    c.Config.WorkingDir,
			StopSignal: c.Config.StopSignal,
		},
	}}
	for i, l := range m.Layers {
		info, err := describeLayer(l, string(c.RootFS.DiffIDs[i]))
		if err != nil {
			return described{}, err
		}
		d.layers = append(d.layers, info)
	}
	return d, nil
}

// foreignType is a manifest's media type unless it is OCI's, which may be left out.
func foreignType(t string) string {
	if t == ocispec.MediaTypeImageManifest {
		return ""
	}
	return t
}

func describeLayer(l ocispec.Descriptor, diffID string) (layerInfo, error) {
	blob, err := digest.Parse(string(l.Digest))
	if err != nil {
		return layerInfo{}, err
	}
	diff, err := digest.Parse(diffID)
	if err != nil {
		return layerInfo{}, err
	}
	info := layerInfo{blob: blob, diffID: diff}
	switch {
	case strings.HasSuffix(l.MediaType, ".tar"):
	case strings.HasSuffix(l.MediaType, "gzip"):
		info.compression = "gzip"
	case strings.HasSuffix(l.MediaType, "zstd"):
		info.compression = "zstd"
	default:
		return layerInfo{}, fault.Errorf(fault.Invalid, "layer %s is of type %s, which is no tar", blob, l.MediaType)
	}
	return info, nil
}

// layer is an uncompressed tar that can be read at any place.
type layer struct {
	layerInfo
	file   *os.File
	size   int64
	raw    bool // file is the store's blob, not checked yet
	number int  // from 0, the lowest
}

// openLayers opens every layer, unpacking compressed ones, two at a time, into files without a name.
func openLayers(ctx context.Context, store *registry.Store, dir string, infos []layerInfo) ([]*layer, error) {
	layers := make([]*layer, len(infos))
	budget := &budget{left: maxBytes}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for i, info := range infos {
		g.Go(func() error {
			l, err := openLayer(ctx, store, dir, info, budget)
			if err != nil {
				return fmt.Errorf("layer %s: %w", info.blob, err)
			}
			l.number = i
			layers[i] = l
			return nil
		})
	}
	return layers, g.Wait()
}

func closeAll(layers []*layer) {
	for _, l := range layers {
		if l != nil {
			l.file.Close()
		}
	}
}

func openLayer(ctx context.Context, store *registry.Store, dir string, info layerInfo, b *budget) (*layer, error) {
	if info.compression != "" {
		return unpackLayer(ctx, store, dir, info, b)
	}
	if info.blob != info.diffID {
		return nil, fault.Errorf(fault.Corrupt, "it is not compressed, and its diff ID is %s", info.diffID)
	}
	size, err := store.Size(info.blob)
	if err != nil {
		return nil, err
	}
	if err := b.take(size); err != nil {
		return nil, err
	}
	f, err := os.Open(store.Path(info.blob))
	if err != nil {
		return nil, err
	}
	return &layer{layerInfo: info, file: f, size: size, raw: true}, nil
}

// unpackLayer decompresses into a file that is gone when closed. Both digests are checked on the way.
func unpackLayer(ctx context.Context, store *registry.Store, dir string, info layerInfo, b *budget) (*layer, error) {
	blob, _, err := store.Open(info.blob)
	if err != nil {
		return nil, err
	}
	in := readAhead(blob)
	defer in.Close()
	unpacked, err := decompress(info.compression, in)
	if err != nil {
		return nil, fault.As(fault.Corrupt, err)
	}
	plain := readAhead(unpacked)
	defer plain.Close()
	f, err := os.CreateTemp(dir, "building-*")
	if err != nil {
		return nil, diskFull(err)
	}
	os.Remove(f.Name())
	size, err := copyLayer(ctx, f, plain, info.diffID, b)
	if err == nil {
		_, err = io.Copy(io.Discard, in) // the blob's digest is checked at its end
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &layer{layerInfo: info, file: f, size: size}, nil
}

// ahead reads in a goroutine of its own, so that hashing the blob, decompressing it, and hashing and writing what comes out overlap.
type ahead struct {
	*bufio.Reader
	pipe *io.PipeReader
	done chan struct{}
}

// readAhead closes r when it is closed, which is before or after the end.
func readAhead(r io.ReadCloser) *ahead {
	out, in := io.Pipe()
	a := &ahead{bufio.NewReaderSize(out, 256<<10), out, make(chan struct{})}
	go func() {
		defer close(a.done)
		buf := make([]byte, 256<<10)
		var err error
		for err == nil {
			n := 0
			for n < len(buf) && err == nil { // few large pieces: each waits for its reader
				var more int
				more, err = r.Read(buf[n:])
				n += more
			}
			if _, gone := in.Write(buf[:n]); gone != nil {
				break
			}
		}
		r.Close()
		in.CloseWithError(err)
	}()
	return a
}

func (a *ahead) Close() error {
	a.pipe.Close()
	<-a.done
	return nil
}

func decompress(compression string, r io.Reader) (io.ReadCloser, error) {
	if compression == "gzip" {
		return gzip.NewReader(r)
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

func copyLayer(ctx context.Context, w io.Writer, r io.Reader, want digest.Digest, b *budget) (int64, error) {
	h := sha256.New()
	buf := make([]byte, 256<<10)
	var size int64
	for {
		if err := ctx.Err(); err != nil {
			return size, err
		}
		n, err := r.Read(buf)
		size += int64(n)
		h.Write(buf[:n])
		if err := b.take(int64(n)); err != nil {
			return size, err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return size, diskFull(err)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return size, fault.As(fault.Corrupt, fmt.Errorf("decompressing: %w", err))
		}
	}
	if got := digest.Digest("sha256:" + hex.EncodeToString(h.Sum(nil))); got != want {
		return size, fault.Errorf(fault.Corrupt, "it unpacks to %s, its diff ID is %s", got, want)
	}
	return size, nil
}

// verifyAll reads the layers that were opened in place to their ends.
func verifyAll(ctx context.Context, store *registry.Store, layers []*layer) error {
	for _, l := range layers {
		if !l.raw {
			continue
		}
		r, _, err := store.Open(l.blob)
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(io.Discard, onlyReader{ctx, r}, make([]byte, 256<<10))
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

type onlyReader struct {
	ctx context.Context
	r   io.Reader
}

func (o onlyReader) Read(p []byte) (int, error) {
	if err := o.ctx.Err(); err != nil {
		return 0, err
	}
	return o.r.Read(p)
}
