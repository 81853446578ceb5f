package root_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofs/go-erofs"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	godigest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/image/root"
)

// entries makes a tar of lines such as "dir/ 755", "file 644 0:0 content", "link -> target", "hard => target" and
// "dev c". Owner and content may be left out.
func entries(t testing.TB, lines ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, line := range lines {
		h, content := header(t, line)
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func header(t testing.TB, line string) (*tar.Header, string) {
	h := &tar.Header{ModTime: time.Unix(1e9, 0), Mode: 0o644}
	fields := strings.Fields(line)
	h.Name = fields[0]
	rest := fields[1:]
	if len(rest) == 2 && (rest[0] == "->" || rest[0] == "=>") {
		h.Linkname, h.Typeflag = rest[1], tar.TypeSymlink
		if rest[0] == "=>" {
			h.Typeflag = tar.TypeLink
		}
		return h, ""
	}
	if len(rest) == 1 && rest[0] == "c" {
		h.Typeflag = tar.TypeChar
		return h, ""
	}
	if len(rest) > 0 {
		if _, err := fmt.Sscanf(rest[0], "%o", &h.Mode); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	if len(rest) > 1 {
		if _, err := fmt.Sscanf(rest[1], "%d:%d", &h.Uid, &h.Gid); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	h.Typeflag = tar.TypeReg
	if strings.HasSuffix(h.Name, "/") {
		h.Typeflag = tar.TypeDir
		return h, ""
	}
	content := strings.Join(rest[min(2, len(rest)):], " ")
	h.Size = int64(len(content))
	return h, content
}

// blob is a layer as it is stored.
type blob struct {
	data      []byte
	mediaType string
}

func plain(tar []byte) blob { return blob{tar, ocispec.MediaTypeImageLayer} }

// put stores an image of the layers and returns its manifest.
func put(t testing.TB, s *registry.Store, layers []blob, diffIDs []digest.Digest) digest.Digest {
	t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	config.Config = ocispec.ImageConfig{Env: []string{"A=1", "B=x=y"}, Entrypoint: []string{"/run"}, User: "7"}
	for i, l := range layers {
		d := store(t, s, l.data)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: l.mediaType, Digest: godigest.Digest(d), Size: int64(len(l.data))})
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, godigest.Digest(diffIDs[i]))
	}
	c := storeJSON(t, s, config)
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: godigest.Digest(c)}
	return storeJSON(t, s, m)
}

func store(t testing.TB, s *registry.Store, b []byte) digest.Digest {
	t.Helper()
	d, _, err := s.Put(t.Context(), bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func storeJSON(t testing.TB, s *registry.Store, v any) digest.Digest {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return store(t, s, b)
}

func openStore(t testing.TB) *registry.Store {
	t.Helper()
	s, err := registry.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// plainImage stores an image of uncompressed layers.
func plainImage(t testing.TB, s *registry.Store, tars ...[]byte) digest.Digest {
	t.Helper()
	var layers []blob
	var diffs []digest.Digest
	for _, b := range tars {
		layers = append(layers, plain(b))
		diffs = append(diffs, digest.Of(b))
	}
	return put(t, s, layers, diffs)
}

// listing describes a root, without what every root has.
func listing(t testing.TB, file string) []string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "." || slices.Contains(mountPoints, p) {
			return err
		}
		lines = append(lines, describe(t, fsys, p, d))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

var mountPoints = []string{"proc", "dev", "sys", "run", "tmp", "etc", "etc/hosts", "etc/hostname", "etc/resolv.conf"}

func describe(t testing.TB, fsys fs.FS, p string, d fs.DirEntry) string {
	fi, err := d.Info()
	if err != nil {
		t.Fatal(err)
	}
	st := fi.Sys().(*erofs.Stat)
	if st.Mtime != 0 {
		t.Errorf("%s has the time %d", p, st.Mtime)
	}
	line := fmt.Sprintf("%s %v %d:%d", p, mode(fi), st.UID, st.GID)
	switch {
	case fi.Mode().Type() == fs.ModeSymlink:
		target, err := fs.ReadLink(fsys, p)
		if err != nil {
			t.Fatal(err)
		}
		return line + " -> " + target
	case fi.Mode().IsRegular():
		b, err := fs.ReadFile(fsys, p)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(line + " " + string(b))
	}
	return line
}

// mode corrects go-erofs 0.3.1, whose reader leaves set-id and sticky bits where Unix has them.
func mode(fi fs.FileInfo) fs.FileMode {
	m := fi.Mode()
	for raw, bit := range map[fs.FileMode]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&raw != 0 {
			m = m&^raw | bit
		}
	}
	return m
}

func TestLayersMergeAsTheImageSpecificationSays(t *testing.T) {
	for name, c := range map[string]struct {
		layers [][]string
		want   []string
	}{
		"upper file replaces lower": {
			[][]string{{"a 644 1:2 old", "b 4755 0:0 keep"}, {"a 600 3:4 new"}},
			[]string{"a -rw------- 3:4 new", "b urwxr-xr-x 0:0 keep"},
		},
		"directory over directory keeps its content": {
			[][]string{{"d/ 755", "d/a 644 0:0 x"}, {"d/ 700 5:5"}},
			[]string{"d drwx------ 5:5", "d/a -rw-r--r-- 0:0 x"},
		},
		"file over directory removes its content": {
			[][]string{{"d/ 755", "d/a 644 0:0 x"}, {"d 644 0:0 file"}},
			[]string{"d -rw-r--r-- 0:0 file"},
		},
		"whiteout removes a file and a directory": {
			[][]string{{"d/ 755", "d/a 644 0:0 x", "b 644 0:0 y", "c 644 0:0 z"}, {".wh.d", ".wh.b"}},
			[]string{"c -rw-r--r-- 0:0 z"},
		},
		"whiteout spares its own layer, in any order": {
			[][]string{{"b 644 0:0 old"}, {"b 644 0:0 new", ".wh.b"}},
			[]string{"b -rw-r--r-- 0:0 new"},
		},
		"opaque directory hides what is below": {
			[][]string{{"d/ 755", "d/a 644 0:0 x", "d/e/ 755", "d/e/f 644 0:0 y"}, {"d/ 755", "d/e/g 644 0:0 new", "d/.wh..wh..opq"}},
			[]string{"d drwxr-xr-x 0:0", "d/e drwxr-xr-x 0:0", "d/e/g -rw-r--r-- 0:0 new"},
		},
		"hard links are copies": {
			[][]string{{"a 644 1:1 x", "b => a"}, {"a 644 0:0 other"}},
			[]string{"a -rw-r--r-- 0:0 other", "b -rw-r--r-- 1:1 x"},
		},
		"hard link to a lower layer": {
			[][]string{{"a 644 1:1 x"}, {"d/b => /a"}},
			[]string{"a -rw-r--r-- 1:1 x", "d drwxr-xr-x 0:0", "d/b -rw-r--r-- 1:1 x"},
		},
		"parents that are links are followed in the root": {
			[][]string{{"usr/lib/ 755", "lib -> usr/lib", "abs -> /usr", "up -> ../../../usr"}, {"lib/a 644 0:0 x", "abs/b 644 0:0 y", "up/c 644 0:0 z"}},
			[]string{"abs Lrwxrwxrwx 0:0 -> /usr", "lib Lrwxrwxrwx 0:0 -> usr/lib", "up Lrwxrwxrwx 0:0 -> ../../../usr", "usr drwxr-xr-x 0:0",
				"usr/b -rw-r--r-- 0:0 y", "usr/c -rw-r--r-- 0:0 z", "usr/lib drwxr-xr-x 0:0", "usr/lib/a -rw-r--r-- 0:0 x"},
		},
		"a loop of links is replaced": {
			[][]string{{"a -> b", "b -> a"}, {"a/f 644 0:0 x"}},
			[]string{"a drwxr-xr-x 0:0", "a/f -rw-r--r-- 0:0 x", "b Lrwxrwxrwx 0:0 -> a"},
		},
		"device nodes are left out": {
			[][]string{{"dev/sda c", "a 644 0:0 x"}},
			[]string{"a -rw-r--r-- 0:0 x"},
		},
		"empty and long files": {
			[][]string{{"empty 644 0:0", "long 644 0:0 " + strings.Repeat("0123456789abcdef", 1000)}},
			[]string{"empty -rw-r--r-- 0:0", "long -rw-r--r-- 0:0 " + strings.Repeat("0123456789abcdef", 1000)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := openStore(t), t.TempDir()
			var tars [][]byte
			for _, l := range c.layers {
				tars = append(tars, entries(t, l...))
			}
			r, built, err := root.Build(t.Context(), s, dir, plainImage(t, s, tars...))
			if err != nil || !built {
				t.Fatalf("Build: built %v, %v", built, err)
			}
			got := listing(t, root.Path(dir, r.Root))
			want := slices.SortedFunc(slices.Values(c.want), func(a, b string) int { return cmp.Compare(strings.Fields(a)[0], strings.Fields(b)[0]) })
			slices.SortFunc(got, func(a, b string) int { return cmp.Compare(strings.Fields(a)[0], strings.Fields(b)[0]) })
			// The mode of a symbolic link means nothing.
			for _, lines := range [][]string{got, want} {
				for i, l := range lines {
					if strings.Contains(l, " -> ") {
						f := strings.Fields(l)
						f[1] = "link"
						lines[i] = strings.Join(f, " ")
					}
				}
			}
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("root (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEveryRootHasItsMountPoints(t *testing.T) {
	s, dir := openStore(t), t.TempDir()
	r, _, err := root.Build(t.Context(), s, dir, plainImage(t, s, entries(t, "tmp/ 1770 9:9", "etc/resolv.conf -> /run/none", "etc/hosts 600 3:3 theirs")))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(root.Path(dir, r.Root))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"proc": "drwxr-xr-x", "dev": "drwxr-xr-x", "sys": "drwxr-xr-x", "run": "drwxr-xr-x", "tmp": "dtrwxrwx---", "etc": "drwxr-xr-x",
		"etc/hosts": "-rw-r--r--", "etc/hostname": "-rw-r--r--", "etc/resolv.conf": "-rw-r--r--",
	} {
		fi, err := fs.Lstat(fsys, name)
		if err != nil || mode(fi).String() != want || fi.Mode().IsRegular() && fi.Size() != 0 {
			t.Errorf("%s: %v, %v; want %s, empty", name, mode(fi), err, want)
		}
	}
}

func TestRootKeepsExtendedAttributes(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := &tar.Header{Name: "ping", Mode: 0o755, Typeflag: tar.TypeReg, PAXRecords: map[string]string{
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20", "SCHILY.xattr.user.note": "n",
		"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.system.posix_acl_access": "acl",
	}}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	w.Close()
	s, dir := openStore(t), t.TempDir()
	r, _, err := root.Build(t.Context(), s, dir, plainImage(t, s, b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(root.Path(dir, r.Root))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := fs.Stat(fsys, "ping")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"security.capability": "\x01\x00\x00\x02\x00\x20", "user.note": "n"}
	if diff := gocmp.Diff(want, fi.Sys().(*erofs.Stat).Xattrs); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
}

func TestRootDependsOnNothingButTheImage(t *testing.T) {
	lower := entries(t, "b 644 0:0 x", "a/ 755", "a/f 644 1:1 "+strings.Repeat("y", 10_000), "a/g => a/f")
	upper := entries(t, "c -> b", "a/.wh.g")
	s1, s2, d1, d2 := openStore(t), openStore(t), t.TempDir(), t.TempDir()
	one, _, err := root.Build(t.Context(), s1, d1, plainImage(t, s1, lower, upper))
	if err != nil {
		t.Fatal(err)
	}
	two, _, err := root.Build(t.Context(), s2, d2, plainImage(t, s2, lower, upper))
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(one, two); diff != "" {
		t.Errorf("in another directory (-first +second):\n%s", diff)
	}
	b, err := os.ReadFile(root.Path(d1, one.Root))
	if err != nil || digest.Of(b) != one.Root || int64(len(b)) != one.RootSize {
		t.Errorf("the file is %s (%d bytes), %v; want %s (%d)", digest.Of(b), len(b), err, one.Root, one.RootSize)
	}
	again, built, err := root.Build(t.Context(), s1, d1, one.Manifest)
	if err != nil || built || !gocmp.Equal(again, one) {
		t.Errorf("again: %+v, built %v, %v", again, built, err)
	}
	if one.Config.User != "7" || one.Config.Env["B"] != "x=y" || one.Platform.String() != "linux/amd64" {
		t.Errorf("resolved: %+v", one)
	}
	left, _ := filepath.Glob(filepath.Join(d1, "building-*"))
	if len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestCompressionDoesNotChangeTheRoot(t *testing.T) {
	layer := entries(t, "a 644 0:0 "+strings.Repeat("y", 100_000))
	var gz bytes.Buffer
	zw := gzip.NewWriter(&gz)
	zw.Write(layer)
	zw.Close()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var roots []digest.Digest
	for _, l := range []blob{plain(layer), {gz.Bytes(), ocispec.MediaTypeImageLayerGzip}, {enc.EncodeAll(layer, nil), ocispec.MediaTypeImageLayerZstd},
		{gz.Bytes(), "application/vnd.docker.image.rootfs.diff.tar.gzip"}} {
		s := openStore(t)
		r, _, err := root.Build(t.Context(), s, t.TempDir(), put(t, s, []blob{l}, []digest.Digest{digest.Of(layer)}))
		if err != nil {
			t.Fatalf("%s: %v", l.mediaType, err)
		}
		roots = append(roots, r.Root)
	}
	if len(slices.Compact(roots)) != 1 {
		t.Errorf("roots differ: %v", roots)
	}
}

func TestCorruptAndHostileLayersAreRefused(t *testing.T) {
	good := entries(t, "a 644 0:0 x")
	var gz bytes.Buffer
	zw := gzip.NewWriter(&gz)
	zw.Write(good)
	zw.Close()
	flipped := bytes.Clone(gz.Bytes())
	flipped[len(flipped)/2] ^= 0x40
	huge := entries(t, "a 644 0:0 x")
	copy(huge[124:136], "77777777777\x00") // the size field
	fixChecksum(huge)
	for name, c := range map[string]struct {
		layer blob
		diff  digest.Digest
		kind  fault.Kind
	}{
		"not the diff ID, plain":   {plain(good), digest.Of(nil), fault.Corrupt},
		"not the diff ID, gzip":    {blob{gz.Bytes(), ocispec.MediaTypeImageLayerGzip}, digest.Of(nil), fault.Corrupt},
		"damaged gzip":             {blob{flipped, ocispec.MediaTypeImageLayerGzip}, digest.Of(good), fault.Corrupt},
		"no gzip":                  {blob{good, ocispec.MediaTypeImageLayerGzip}, digest.Of(good), fault.Corrupt},
		"cut off":                  {plain(good[:700]), digest.Of(good[:700]), ""},
		"absurd size":              {plain(huge), digest.Of(huge), fault.Corrupt},
		"no tar":                   {plain(bytes.Repeat([]byte("x"), 2048)), digest.Of(bytes.Repeat([]byte("x"), 2048)), fault.Corrupt},
		"unknown type":             {blob{good, "application/octet-stream"}, digest.Of(good), fault.Invalid},
		"path that leaves":         {plain(entries(t, "../../etc/passwd 644 0:0 x")), "", fault.Invalid},
		"hard link that leaves":    {plain(entries(t, "a => ../../etc/passwd")), "", fault.Invalid},
		"hard link to nothing":     {plain(entries(t, "a => b")), "", fault.Corrupt},
		"hard link to a directory": {plain(entries(t, "d/ 755", "a => d")), "", fault.Corrupt},
		"name too long":            {plain(entries(t, strings.Repeat("n", 300)+" 644 0:0 x")), "", fault.Invalid},
	} {
		s, dir := openStore(t), t.TempDir()
		diff := c.diff
		if diff == "" {
			diff = digest.Of(c.layer.data)
		}
		_, _, err := root.Build(t.Context(), s, dir, put(t, s, []blob{c.layer}, []digest.Digest{diff}))
		if name == "cut off" { // a tar may end without its closing blocks
			if err != nil && !errors.Is(err, fault.Corrupt) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !errors.Is(err, c.kind) {
			t.Errorf("%s: %v, want %s", name, err, c.kind)
		}
		if files, _ := filepath.Glob(filepath.Join(dir, "*.erofs")); len(files) > 0 {
			t.Errorf("%s: a root was made", name)
		}
	}
}

func fixChecksum(b []byte) {
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func TestDamagedStoreMakesNoRoot(t *testing.T) {
	s, dir := openStore(t), t.TempDir()
	layer := entries(t, "a 644 0:0 "+strings.Repeat("y", 100_000))
	m := plainImage(t, s, layer)
	name := digest.Of(layer)
	file := s.Path(name)
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	layer[50_000] ^= 1
	if err := os.WriteFile(file, layer, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := root.Build(t.Context(), s, dir, m); !errors.Is(err, fault.Corrupt) {
		t.Errorf("Build: %v, want corrupt", err)
	}
	if err := s.Remove(name); err != nil {
		t.Fatal(err)
	}
	if _, _, err := root.Build(t.Context(), s, dir, m); !errors.Is(err, fault.NotFound) {
		t.Errorf("Build: %v, want not found", err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 { // the index's directory
		t.Errorf("left over: %v", files)
	}
}

// FuzzBuild: no layers make Build panic, and what it accepts can be read back and is the same when built again.
func FuzzBuild(f *testing.F) {
	f.Add(entries(f, "a 644 1:2 x", "d/ 755", "d/b => a", "l -> d"), entries(f, ".wh.a", "d/.wh..wh..opq", "l/c 644 0:0 y"))
	f.Add(entries(f, "etc/ 755", "etc -> /", "a/../b 644"), entries(f, "etc/x c", "a -> a", "a/b/c 644 0:0 z"))
	f.Add([]byte{}, []byte("no tar"))
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		s := openStore(t)
		m := plainImage(t, s, lower, upper)
		d1, d2 := t.TempDir(), t.TempDir()
		one, _, err := root.Build(t.Context(), s, d1, m)
		if err != nil {
			if fault.KindOf(err) == "" {
				t.Fatalf("an error without a kind: %v", err)
			}
			return
		}
		two, _, err := root.Build(t.Context(), s, d2, m)
		if err != nil || one.Root != two.Root {
			t.Fatalf("built again: %s, %v; first %s", two.Root, err, one.Root)
		}
		readAll(t, root.Path(d1, one.Root))
	})
}

func readAll(t *testing.T, file string) {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		_, err = fs.ReadFile(fsys, p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkBuild is an image of 150 MB in 6,000 files, its layer uncompressed and in the page cache.
func BenchmarkBuild(b *testing.B) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	content := bytes.Repeat([]byte("0123456789abcdef"), 25_000/16)
	for i := range 6000 {
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/lib/d%d/f%d", i%100, i), Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			b.Fatal(err)
		}
		w.Write(content)
	}
	w.Close()
	s := openStore(b)
	m := plainImage(b, s, buf.Bytes())
	b.SetBytes(int64(buf.Len()))
	for b.Loop() {
		if _, _, err := root.Build(b.Context(), s, b.TempDir(), m); err != nil {
			b.Fatal(err)
		}
	}
}

func TestFullDiskMakesNoRoot(t *testing.T) {
	s, dir := openStore(t), t.TempDir()
	m := plainImage(t, s, entries(t, "a 644 0:0 "+strings.Repeat("y", 1<<20)))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatalf("mounting a small disk (this test needs root): %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	_, _, err := root.Build(t.Context(), s, dir, m)
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(fault.Hint(err), "space") {
		t.Errorf("Build: %v (hint %q), want unavailable", err, fault.Hint(err))
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*.erofs")); len(files) > 0 {
		t.Errorf("a root was made: %v", files)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "building-*")); len(files) > 0 {
		t.Errorf("left over: %v", files)
	}
}
