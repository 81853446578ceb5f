package registry

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzUnpackTar: no archive makes unpacking panic or write anything but what an image layout has.
func FuzzUnpackTar(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{{Name: "index.json", Size: 2}, {Name: "./blobs/sha256/a", Size: 1}, {Name: "blobs/../../x", Size: 1}, {Name: "../oci-layout", Size: 1},
		{Name: "blobs/l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, {Name: "blobs/l/passwd", Size: 1}} {
		if err := w.WriteHeader(&h); err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			f.Fatal(err)
		}
	}
	w.Close()
	f.Add(b.Bytes())
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, archive []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "layout")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		_ = unpackTar(bytes.NewReader(archive), root) // whether it is refused does not matter here
		err = filepath.WalkDir(parent, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, err := filepath.Rel(dir, p)
			if rel != "index.json" && rel != "oci-layout" && !strings.HasPrefix(rel, "blobs/") {
				t.Errorf("wrote %s", rel)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
