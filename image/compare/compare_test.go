package compare_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	godigest "github.com/opencontainers/go-digest"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image/compare"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/image/root"
)

// item is a file of a layer in a test.
type item struct {
	name, content string
	mode          int64
	uid           int
	flag          byte
}

func (i item) header() *tar.Header {
	h := &tar.Header{Name: i.name, Mode: i.mode, Uid: i.uid, Typeflag: i.flag, Size: int64(len(i.content))}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	switch i.flag {
	case 0:
		h.Typeflag = tar.TypeReg
	case tar.TypeSymlink:
		h.Linkname, h.Size = i.content, 0
	}
	return h
}

func archive(t *testing.T, items []item) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, i := range items {
		h := i.header()
		must(t, w.WriteHeader(h))
		if h.Size > 0 {
			_, err := w.Write([]byte(i.content))
			must(t, err)
		}
	}
	must(t, w.Close())
	return out.Bytes()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// build makes an image of layers in a store of its own.
func build(t *testing.T, user string, layers ...[]byte) compare.Image {
	t.Helper()
	dir := t.TempDir()
	s, err := registry.Open(filepath.Join(dir, "oci"))
	must(t, err)
	put := func(raw []byte, mediaType string) ocispec.Descriptor {
		d, size, err := s.Put(t.Context(), bytes.NewReader(raw))
		must(t, err)
		return ocispec.Descriptor{MediaType: mediaType, Digest: godigest.Digest(d), Size: size}
	}
	var m ocispec.Manifest
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Config: ocispec.ImageConfig{User: user}, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, l := range layers {
		d := put(l, ocispec.MediaTypeImageLayer)
		m.Layers = append(m.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
	}
	raw, err := json.Marshal(config)
	must(t, err)
	m.SchemaVersion, m.MediaType, m.Config = 2, ocispec.MediaTypeImageManifest, put(raw, ocispec.MediaTypeImageConfig)
	raw, err = json.Marshal(m)
	must(t, err)
	return compare.Image{Store: s, Roots: filepath.Join(dir, "roots"), Manifest: digest.Digest(put(raw, m.MediaType).Digest)}
}

// say compares two images and returns what differs, a line each.
func say(t *testing.T, a, b compare.Image) string {
	t.Helper()
	found, err := compare.Images(t.Context(), a, b, t.TempDir())
	must(t, err)
	var out strings.Builder
	for _, d := range found {
		out.WriteString(d.String() + "\n")
	}
	return out.String()
}

func wants(t *testing.T, said string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(said, l) {
			t.Errorf("it does not say %q:\n%s", l, said)
		}
	}
}

var base = []item{{name: "etc/", flag: tar.TypeDir, mode: 0o755}, {name: "etc/os-release", content: "ID=test\n"}}

func TestTheSameImageHasNoDifference(t *testing.T) {
	if said := say(t, build(t, "1", archive(t, base)), build(t, "1", archive(t, base))); said != "" {
		t.Errorf("said:\n%s", said)
	}
}

func TestOneByteNamesLayerFileAndOffset(t *testing.T) {
	lower := archive(t, base)
	page := strings.Repeat("x", 100_000)
	other := page[:70_000] + "y" + page[70_001:]
	said := say(t, build(t, "1", lower, archive(t, []item{{name: "srv/a", content: "a"}, {name: "srv/page", content: page}})),
		build(t, "1", lower, archive(t, []item{{name: "srv/a", content: "a"}, {name: "srv/page", content: other}})))
	wants(t, said, "manifest: content", "layer 2 of 2: content",
		"layer 2 of 2: srv/page: content: recorded "+digest.Of([]byte(page)).String()+", made "+digest.Of([]byte(other)).String()+"; the first other byte is at 70000\n", "root: content")
	if strings.Contains(said, "srv/a:") || strings.Contains(said, "layer 1") {
		t.Errorf("it names what is the same:\n%s", said)
	}
}

func TestModeOwnerKindAndWhatIsMissingAreNamed(t *testing.T) {
	said := say(t,
		build(t, "1", archive(t, []item{{name: "a", content: "1", mode: 0o644}, {name: "b", content: "1"}, {name: "c", content: "t", flag: tar.TypeSymlink}, {name: "d", content: "12"}, {name: "gone", content: "1"}})),
		build(t, "2", archive(t, []item{{name: "a", content: "1", mode: 0o4755}, {name: "b", content: "1", uid: 7}, {name: "c", content: "t"}, {name: "d", content: "123"}, {name: "new", content: "1"}})))
	wants(t, said, "layer 1 of 1: a: mode: recorded 0644, made 4755", "layer 1 of 1: b: owner: recorded 0:0, made 7:0",
		"layer 1 of 1: c: kind: recorded symbolic link, made file", "layer 1 of 1: d: size: recorded 2, made 3", "the first other byte is at 2\n",
		"layer 1 of 1: gone: missing: recorded a file of 1 bytes", "layer 1 of 1: new: added: made a file of 1 bytes", `config: config.User: value: recorded "1", made "2"`)
}

func TestTheOrderOfTheSameEntriesIsADifference(t *testing.T) {
	a, b := item{name: "a", content: "1"}, item{name: "b", content: "2"}
	said := say(t, build(t, "1", archive(t, []item{a, b})), build(t, "1", archive(t, []item{b, a})))
	wants(t, said, "layer 1 of 1: order of the same entries")
	if strings.Contains(said, "root") {
		t.Errorf("the roots are the same, and it says:\n%s", said)
	}
}

func TestALayerMoreIsNamed(t *testing.T) {
	said := say(t, build(t, "1", archive(t, base)), build(t, "1", archive(t, base), archive(t, []item{{name: "x", content: "1"}})))
	wants(t, said, "layer 2 of 2: added", "root: content")
}

// TestOneByteOfARootNamesTheFile changes a byte of a file in an EROFS image in place.
func TestOneByteOfARootNamesTheFile(t *testing.T) {
	img := build(t, "1", archive(t, []item{{name: "srv/page", content: strings.Repeat("needle", 2000)}}))
	r, _, err := root.Build(t.Context(), img.Store, img.Roots, img.Manifest)
	must(t, err)
	raw, err := os.ReadFile(root.Path(img.Roots, r.Root))
	must(t, err)
	at := bytes.Index(raw, []byte("needleneedle"))
	if at < 0 {
		t.Fatal("the root does not hold the file as it is")
	}
	raw[at+1] = 'E'
	other := filepath.Join(t.TempDir(), "other.erofs")
	must(t, os.WriteFile(other, raw, 0o600))
	found, err := compare.Roots(root.Path(img.Roots, r.Root), other)
	must(t, err)
	if len(found) != 2 || found[0].Offset != int64(at+1) || found[1].Path != "srv/page" || found[1].What != "content" {
		t.Errorf("found %v; byte %d was changed", found, at+1)
	}
	if same, err := compare.Roots(other, other); err != nil || same != nil {
		t.Errorf("the same file: %v, %v", same, err)
	}
}

// TestProgramsTellHowTheyWereBuilt compares two programs of other sources and settings.
func TestProgramsTellHowTheyWereBuilt(t *testing.T) {
	program := func(text, tags string) string {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/p\n\ngo 1.26\n"), 0o644))
		must(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nfunc main() { println(\""+text+"\") }\n"), 0o644))
		cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-tags="+tags, "-ldflags=-buildid=", "-o", "p", ".")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		raw, err := os.ReadFile(filepath.Join(dir, "p"))
		must(t, err)
		return string(raw)
	}
	layer := func(content string) []byte { return archive(t, []item{{name: "app/p", content: content, mode: 0o755}}) }
	plain := build(t, "1", layer(program("one", "")))
	wants(t, say(t, plain, build(t, "1", layer(program("two", "other")))), "layer 1 of 1: app/p: content", "app/p: sections that differ: ",
		"app/p: Go build setting -tags: made other")
	if said := say(t, plain, build(t, "1", layer(program("two", "")))); strings.Contains(said, "Go build setting") {
		t.Errorf("the settings are the same:\n%s", said)
	}
}

// FuzzTar: whatever an archive holds, comparing it does not panic.
func FuzzTar(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0}, 1024))
	f.Fuzz(func(t *testing.T, raw []byte) {
		compare.ReadTar(raw)
	})
}
