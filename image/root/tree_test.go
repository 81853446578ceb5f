package root

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"testing"

	"github.com/invarhq/invar/fault"
)

func small(f *testing.F, headers ...tar.Header) []byte {
	f.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	return b.Bytes()
}

// FuzzMerge: no layers make the merge panic or hang; what it refuses has a kind; and what it accepts is a tree whose
// names are proper and whose content is inside of the layers.
func FuzzMerge(f *testing.F) {
	f.Add(
		small(f, tar.Header{Name: "a", Size: 3}, tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "d/b", Linkname: "a", Typeflag: tar.TypeLink}, tar.Header{Name: "l", Linkname: "d", Typeflag: tar.TypeSymlink}),
		small(f, tar.Header{Name: ".wh.a"}, tar.Header{Name: "d/.wh..wh..opq"}, tar.Header{Name: "l/c", Size: 700}))
	f.Add(
		small(f, tar.Header{Name: "etc", Linkname: "/", Typeflag: tar.TypeSymlink}, tar.Header{Name: "a/../b"}),
		small(f, tar.Header{Name: "etc/x", Typeflag: tar.TypeChar}, tar.Header{Name: "x", Linkname: "../x/y", Typeflag: tar.TypeSymlink}, tar.Header{Name: "x/b/c", Size: 1}))
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		tr := newTree()
		for i, layer := range [][]byte{lower, upper} {
			if err := tr.applyTar(t.Context(), bytes.NewReader(layer), int64(len(layer)), i); err != nil {
				if fault.KindOf(err) == "" {
					t.Fatalf("an error without a kind: %v", err)
				}
				return
			}
		}
		tr.addMountPoints()
		err := fs.WalkDir(tr, ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := fs.ReadFile(tr, p)
			if fi, _ := d.Info(); err == nil && int64(len(b)) != fi.Size() {
				t.Errorf("%s has %d bytes, not %d", p, len(b), fi.Size())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
