package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/tools/txtar"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// Limits of a bundle's sources.
const (
	MaxSourceFiles = 10_000
	MaxSourceBytes = 64 << 20 // of all files
	maxSourcePath  = 1024
)

// SourceTar returns the sources as a tar.gz that depends on nothing but the files' names and contents: sorted,
// mode 0444, no owner, no times; stored rather than deflated, since how deflate chooses is no part of any
// format, and differs between versions of a library. Its errors are of kind fault.Invalid.
func SourceTar(files map[string][]byte) ([]byte, digest.Digest, error) {
	if err := checkSources(files); err != nil {
		return nil, "", err
	}
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.NoCompression)
	if err != nil {
		return nil, "", err
	}
	w := tar.NewWriter(z)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := writeSource(w, name, files[name]); err != nil {
			return nil, "", fault.Errorf(fault.Invalid, "packing source %q: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, "", err
	}
	if err := z.Close(); err != nil {
		return nil, "", err
	}
	return out.Bytes(), digest.Of(out.Bytes()), nil
}

func writeSource(w *tar.Writer, name string, content []byte) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o444, Format: tar.FormatPAX}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// checkSources checks that names are clean relative paths, none below another, and that all is within limits.
func checkSources(files map[string][]byte) error {
	if len(files) > MaxSourceFiles {
		return fault.Errorf(fault.Invalid, "%d sources; %d are allowed", len(files), MaxSourceFiles)
	}
	total := 0
	for name, b := range files {
		if !fs.ValidPath(name) || name == "." || len(name) > maxSourcePath || !utf8.ValidString(name) || strings.ContainsAny(name, "\x00\\") {
			return fault.Errorf(fault.Invalid, "source %q: its name is not a clean relative path", name)
		}
		for i, c := range name {
			if _, isFile := files[name[:i]]; c == '/' && isFile {
				return fault.Errorf(fault.Invalid, "source %q lies below another file", name)
			}
		}
		total += len(b)
	}
	if total > MaxSourceBytes {
		return fault.Errorf(fault.Invalid, "the sources have more than %s", spec.FormatSize(MaxSourceBytes))
	}
	return nil
}

// ReadSource reads what SourceTar made, and accepts nothing else: it packs the files again and compares, so that
// sources have one digest. It is safe on hostile input. Its errors are of kind fault.Invalid.
func ReadSource(data []byte) (map[string][]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "reading sources: %w", err)
	}
	files, err := untar(tar.NewReader(io.LimitReader(z, 2*MaxSourceBytes)))
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "reading sources: %w", err)
	}
	again, _, err := SourceTar(files)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, data) {
		return nil, fault.Errorf(fault.Invalid, "reading sources: the archive is not packed as a bundle's sources are")
	}
	return files, nil
}

func untar(r *tar.Reader) (map[string][]byte, error) {
	files := map[string][]byte{}
	for {
		h, err := r.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg || h.Size > MaxSourceBytes || len(files) >= MaxSourceFiles {
			return nil, fault.Errorf(fault.Invalid, "%q is no regular file, or there are too many", h.Name)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		files[h.Name] = b
	}
}

// SourceFS shows sources as a file system, for parse.Load.
func SourceFS(files map[string][]byte) (fs.FS, error) {
	if err := checkSources(files); err != nil {
		return nil, err
	}
	a := &txtar.Archive{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		a.Files = append(a.Files, txtar.File{Name: name, Data: files[name]})
	}
	fsys, err := txtar.FS(a)
	return fsys, fault.As(fault.Invalid, err)
}
