package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"strings"
)

// manifest says that the bundle owns all of data, and that its files are Rego v1.
const manifest = `{"revision":"","roots":[""],"rego_version":1}` + "\n"

const manifestFile = ".manifest"

// archive packs files as an OPA bundle: a tar.gz that depends on nothing but names and contents. Entries are sorted, have
// mode 0444, no owner and no times. It is stored rather than deflated, since what deflate chooses is no part of any format
// and differs between versions of a library.
func archive(files Files) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := writeFile(w, manifestFile, []byte(manifest)); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := writeFile(w, name, files[name]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return store(out.Bytes()), nil
}

func writeFile(w *tar.Writer, name string, content []byte) error {
	// opa's own writer begins each path with a slash, too: it is where the file lies in data.
	h := &tar.Header{Typeflag: tar.TypeReg, Name: "/" + name, Size: int64(len(content)), Mode: 0o444, Format: tar.FormatPAX}
	if err := w.WriteHeader(h); err != nil {
		return fmt.Errorf("packing %s: %w", name, err)
	}
	_, err := w.Write(content)
	return err
}

// store is gzip (RFC 1952) without compression: blocks of the kind "stored" (RFC 1951, 3.2.4).
func store(b []byte) []byte {
	const maxBlock = 65535
	out := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
	for rest := b; ; {
		n := min(len(rest), maxBlock)
		last := byte(0)
		if n == len(rest) {
			last = 1
		}
		out = append(out, last)
		out = binary.LittleEndian.AppendUint16(out, uint16(n))
		out = binary.LittleEndian.AppendUint16(out, ^uint16(n))
		out = append(out, rest[:n]...)
		if rest = rest[n:]; last == 1 {
			break
		}
	}
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(b))
	return binary.LittleEndian.AppendUint32(out, uint32(len(b)))
}

// readArchive reads what archive made, and nothing else.
func readArchive(b []byte) (Files, error) {
	const overhead = 2048 * (MaxFiles + 2) // headers and padding
	if len(b) > MaxBundleBytes+overhead {
		return nil, fmt.Errorf("%d bytes, %d are allowed", len(b), MaxBundleBytes+overhead)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	files, err := untar(tar.NewReader(io.LimitReader(z, int64(len(b))))) // stored, it is never longer than its archive
	if err != nil {
		return nil, err
	}
	if string(files[manifestFile]) != manifest {
		return nil, errors.New("its manifest is not that of a policy")
	}
	delete(files, manifestFile)
	again, err := archive(files)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, b) {
		return nil, errors.New("not in canonical form")
	}
	return files, nil
}

func untar(r *tar.Reader) (Files, error) {
	files := Files{}
	for {
		h, err := r.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg || len(files) > MaxFiles {
			return nil, fmt.Errorf("%q is no regular file, or there are too many", h.Name)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		files[strings.TrimPrefix(h.Name, "/")] = content
	}
}
