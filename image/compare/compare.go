// Package compare says where two images differ: in which layer, in which file of it, and in what: its mode, its owner, its size, its
// content from which byte on. It is for somebody who has baked an image again and got another digest.
//
// Images are compared from their manifests down. What has the same digest is the same and not looked at; where digests differ, layers
// are unpacked and compared entry by entry, and programs of the go command by what they say of how they were built. A difference
// names both sides: what is recorded, and what was made.
package compare

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/image/root"
)

// Image is an image in a store, and the directory that its root is in or is built in.
type Image struct {
	Store    *registry.Store
	Roots    string
	Manifest digest.Digest
}

// Difference is one thing that is not the same.
type Difference struct {
	Where    string // "manifest", "config", "layer 2 of 3", "root"
	Path     string // of the file in it, or of the field; "": all of it
	What     string // "content", "mode", "owner" …; "missing": only recorded; "added": only made
	Recorded string
	Made     string
	Offset   int64 // of the first byte that differs, in the file or, without a Path, in the whole; -1: does not apply
}

// String is the difference as a line for people.
func (d Difference) String() string {
	var b bytes.Buffer
	b.WriteString(d.Where)
	if d.Path != "" {
		b.WriteString(": " + d.Path)
	}
	b.WriteString(": " + d.What)
	switch {
	case d.Recorded != "" && d.Made != "":
		fmt.Fprintf(&b, ": recorded %s, made %s", d.Recorded, d.Made)
	case d.Recorded != "":
		fmt.Fprintf(&b, ": recorded %s", d.Recorded)
	case d.Made != "":
		fmt.Fprintf(&b, ": made %s", d.Made)
	}
	if d.Offset >= 0 {
		fmt.Fprintf(&b, "; the first other byte is at %d", d.Offset)
	}
	return b.String()
}

// MaxDifferences bounds what is told of one layer or root; a last Difference says how many more there are.
const MaxDifferences = 100

// Images compares an image that is recorded with one that was made again. Temporary files go to dir. Equal images give nothing.
// It fails with fault.NotFound when a store lacks a part, and with fault.Corrupt or fault.Invalid for what is no image.
func Images(ctx context.Context, recorded, made Image, dir string) ([]Difference, error) {
	if recorded.Manifest == made.Manifest {
		return nil, nil
	}
	a, rawA, err := recorded.read()
	if err != nil {
		return nil, fmt.Errorf("comparing: recorded image: %w", err)
	}
	b, rawB, err := made.read()
	if err != nil {
		return nil, fmt.Errorf("comparing: made image: %w", err)
	}
	out := []Difference{whole("manifest", rawA, rawB)}
	config, err := configs(recorded, made, a.Config, b.Config)
	if err != nil {
		return nil, fmt.Errorf("comparing configurations: %w", err)
	}
	out = append(out, config...)
	layers, err := allLayers(ctx, recorded, made, a.Layers, b.Layers, dir)
	if err != nil {
		return nil, err
	}
	roots, err := bothRoots(ctx, recorded, made, len(layers) == 0)
	if err != nil {
		return nil, err
	}
	return append(append(out, layers...), roots...), nil
}

func (i Image) read() (ocispec.Manifest, []byte, error) {
	var m ocispec.Manifest
	raw, err := i.Store.Bytes(i.Manifest)
	if err != nil {
		return m, nil, err
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, nil, fault.Errorf(fault.Corrupt, "%s is no manifest: %v", i.Manifest, err)
	}
	return m, raw, nil
}

// whole says that two contents differ.
func whole(where string, a, b []byte) Difference {
	at, _ := firstOther(bytes.NewReader(a), bytes.NewReader(b)) // reading memory does not fail
	return Difference{Where: where, What: "content", Recorded: digest.Of(a).String(), Made: digest.Of(b).String(), Offset: at}
}

// configs compares the images' configurations, field by field. The layers' digests in them say nothing that the layers do not.
func configs(recorded, made Image, a, b ocispec.Descriptor) ([]Difference, error) {
	if a.Digest == b.Digest {
		return nil, nil
	}
	rawA, err := recorded.Store.Bytes(digest.Digest(a.Digest))
	if err != nil {
		return nil, err
	}
	rawB, err := made.Store.Bytes(digest.Digest(b.Digest))
	if err != nil {
		return nil, err
	}
	var valueA, valueB map[string]any
	if json.Unmarshal(rawA, &valueA) != nil || json.Unmarshal(rawB, &valueB) != nil {
		return []Difference{whole("config", rawA, rawB)}, nil
	}
	delete(valueA, "rootfs")
	delete(valueB, "rootfs")
	return append([]Difference{whole("config", rawA, rawB)}, fields("", valueA, valueB)...), nil
}

// fields compares two values of JSON.
func fields(path string, a, b any) []Difference {
	objectA, okA := a.(map[string]any)
	objectB, okB := b.(map[string]any)
	if okA && okB {
		all := maps.Clone(objectA)
		maps.Copy(all, objectB)
		var out []Difference
		for _, k := range slices.Sorted(maps.Keys(all)) {
			at := k
			if path != "" {
				at = path + "." + k
			}
			out = append(out, fields(at, objectA[k], objectB[k])...)
		}
		return out
	}
	textA, textB := text(a), text(b)
	if textA == textB {
		return nil
	}
	return []Difference{{Where: "config", Path: path, What: "value", Recorded: textA, Made: textB, Offset: -1}}
}

// text is a value of JSON; "" is one that is not there.
func text(v any) string {
	if v == nil {
		return ""
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v) // it came from JSON
	}
	return string(raw)
}

// allLayers compares layer by layer.
func allLayers(ctx context.Context, recorded, made Image, a, b []ocispec.Descriptor, dir string) ([]Difference, error) {
	var out []Difference
	for i := range max(len(a), len(b)) {
		where := fmt.Sprintf("layer %d of %d", i+1, max(len(a), len(b)))
		switch {
		case i >= len(a):
			out = append(out, Difference{Where: where, What: "added", Made: string(b[i].Digest), Offset: -1})
		case i >= len(b):
			out = append(out, Difference{Where: where, What: "missing", Recorded: string(a[i].Digest), Offset: -1})
		case a[i].Digest != b[i].Digest:
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			found, err := layers(where, recorded.Store, a[i], made.Store, b[i], dir)
			if err != nil {
				return nil, fmt.Errorf("comparing %s: %w", where, err)
			}
			out = append(out, found...)
		}
	}
	return out, nil
}

// bothRoots compares the roots that the images' layers give. The files are told only when no layer's were.
func bothRoots(ctx context.Context, recorded, made Image, tell bool) ([]Difference, error) {
	a, _, err := root.Build(ctx, recorded.Store, recorded.Roots, recorded.Manifest)
	if err != nil {
		return nil, fmt.Errorf("comparing roots: %w", err)
	}
	b, _, err := root.Build(ctx, made.Store, made.Roots, made.Manifest)
	if err != nil {
		return nil, fmt.Errorf("comparing roots: %w", err)
	}
	if a.Root == b.Root {
		return nil, nil
	}
	out, err := Roots(root.Path(recorded.Roots, a.Root), root.Path(made.Roots, b.Root))
	if err != nil || tell || len(out) == 0 {
		return out, err
	}
	return out[:1], nil
}

// firstOther returns where two contents begin to differ, or -1 when they are the same. One that ends first differs there.
func firstOther(a, b io.Reader) (int64, error) {
	const size = 1 << 16
	bufA, bufB := make([]byte, size), make([]byte, size)
	for at := int64(0); ; {
		nA, errA := io.ReadFull(a, bufA)
		nB, errB := io.ReadFull(b, bufB)
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return 0, err
			}
		}
		n := min(nA, nB)
		if !bytes.Equal(bufA[:n], bufB[:n]) {
			for i := range n {
				if bufA[i] != bufB[i] {
					return at + int64(i), nil
				}
			}
		}
		if nA != nB {
			return at + int64(n), nil
		}
		if nA < size {
			return -1, nil
		}
		at += size
	}
}

// bounded keeps the first differences, and says how many more there are.
func bounded(where string, all []Difference) []Difference {
	if len(all) <= MaxDifferences {
		return all
	}
	more := len(all) - MaxDifferences
	return append(all[:MaxDifferences:MaxDifferences], Difference{Where: where, What: fmt.Sprintf("%d further differences", more), Offset: -1})
}

// fileBytes opens a file with its size.
func fileBytes(name string) (*os.File, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}
