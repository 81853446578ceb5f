package bake_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/bake"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/image/root"
	"github.com/invarhq/invar/spec"
)

// app writes the files of an app and returns its directory.
func app(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var web = map[string]string{
	"go.mod":            "module example.com/shop\n\ngo 1.26\n",
	"cmd/web/main.go":   "package main\n\nfunc main() { println(\"shop\") }\n",
	"lib/lib.go":        "package lib\n",
	"public/index.html": "<h1>shop</h1>\n",
	"public/js/app.js":  "1\n",
}

// request is one for a new data directory.
func request(t *testing.T, dir string, images ...spec.Image) bake.Request {
	t.Helper()
	data := t.TempDir()
	store, err := registry.Open(filepath.Join(data, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	return bake.Request{Dir: dir, Images: images, Store: store, Roots: filepath.Join(data, "roots")}
}

func run(t *testing.T, req bake.Request) bake.Result {
	t.Helper()
	r, err := bake.Bake(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// content returns what a file of an image's root holds.
func content(t *testing.T, req bake.Request, r image.Resolved, name string) string {
	t.Helper()
	f, err := os.Open(root.Path(req.Roots, r.Root))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	in, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	b, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	goWeb = spec.Image{Name: "web", Go: &spec.GoImage{Package: "./cmd/web"}}
	site  = spec.Image{Name: "site", Layers: &spec.LayersImage{
		Base: "web", Copy: map[string]string{"./public": "/srv/public"}, Env: map[string]string{"MODE": "static"}, Entrypoint: []string{"/app/web", "-static"},
	}}
)

func TestSameInputsGiveTheSameImagesInTwoDataDirectories(t *testing.T) {
	first := request(t, app(t, web), site, goWeb)
	one := run(t, first)
	t.Setenv("GOCACHE", t.TempDir())
	t.Setenv("GOFLAGS", "-tags=other")
	two := run(t, request(t, app(t, web), goWeb, site)) // another work directory, build cache, order
	if diff := cmp.Diff(one.Images, two.Images); diff != "" {
		t.Errorf("second bake differs (-first +second):\n%s", diff)
	}
	again := run(t, first)
	if diff := cmp.Diff(one, again); diff != "" {
		t.Errorf("repeated bake differs (-first +second):\n%s", diff)
	}
}

func TestGoImageHasProgramCertificatesAndUser(t *testing.T) {
	req := request(t, app(t, web), goWeb)
	r := run(t, req).Images["web"]
	if got := content(t, req, r, "app/web"); !strings.HasPrefix(got, "\x7fELF") {
		t.Errorf("program starts with %.4q", got)
	}
	if got := content(t, req, r, "etc/ssl/certs/ca-certificates.crt"); strings.Count(got, "BEGIN CERTIFICATE") < 50 {
		t.Errorf("only %d certificates", strings.Count(got, "BEGIN CERTIFICATE"))
	}
	if got := content(t, req, r, "etc/passwd"); !strings.Contains(got, "nonroot:x:65532:65532") {
		t.Errorf("passwd: %s", got)
	}
	want := image.Config{
		Entrypoint: []string{"/app/web"}, User: "65532:65532", WorkDir: "/home/nonroot",
		Env: map[string]string{"HOME": "/home/nonroot", "PATH": "/app:/usr/local/bin:/usr/bin:/bin", "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"},
	}
	if diff := cmp.Diff(want, r.Config); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func TestLayersAddFilesToTheirBase(t *testing.T) {
	req := request(t, app(t, web), site, goWeb)
	r := run(t, req).Images["site"]
	if got, want := content(t, req, r, "srv/public/js/app.js"), "1\n"; got != want {
		t.Errorf("app.js = %q, want %q", got, want)
	}
	content(t, req, r, "app/web")
	if r.Config.Env["MODE"] != "static" || r.Config.User != "65532:65532" || len(r.Config.Entrypoint) != 2 {
		t.Errorf("configuration: %+v", r.Config)
	}
}

func TestLayersCopyAFileAndStandOnNothing(t *testing.T) {
	for to, want := range map[string]string{"/etc/motd": "etc/motd", "/etc/": "etc/index.html", "/": "index.html"} {
		req := request(t, app(t, web), spec.Image{Name: "site", Layers: &spec.LayersImage{Copy: map[string]string{"public/index.html": to}}})
		r := run(t, req).Images["site"]
		if got := content(t, req, r, want); got != web["public/index.html"] {
			t.Errorf("copied to %s: %q", to, got)
		}
	}
}

func TestBadImagesAreInvalidAndNamed(t *testing.T) {
	outside := app(t, map[string]string{"secret": "s"})
	dir := app(t, web)
	if err := os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "leak")); err != nil {
		t.Fatal(err)
	}
	layers := func(from, to string) spec.Image {
		return spec.Image{Name: "x", Layers: &spec.LayersImage{Copy: map[string]string{from: to}}}
	}
	for name, img := range map[string]spec.Image{
		"does not exist":      layers("./none", "/srv"),
		"not absolute":        layers("./public", "srv"),
		"escapes":             layers("../", "/srv"),
		"path escapes":        layers("leak", "/srv"),
		"not a main package":  {Name: "x", Go: &spec.GoImage{Package: "./lib"}},
		"go build":            {Name: "x", Go: &spec.GoImage{Package: "./none"}},
		"its base":            {Name: "x", Layers: &spec.LayersImage{Base: "y"}},
		"its own base":        {Name: "x", Layers: &spec.LayersImage{Base: "x"}},
		"none of ref":         {Name: "x"},
		"is not pinned":       {Name: "x", Ref: "registry.example.com/cache:7"},
		"could not parse ref": {Name: "x", Ref: "UPPER@sha256:" + strings.Repeat("0", 64)},
	} {
		req := request(t, dir, img)
		req.Frozen = true
		_, err := bake.Bake(t.Context(), req)
		if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), `image "x"`) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}

func TestEveryProblemIsReported(t *testing.T) {
	req := request(t, app(t, web), goWeb,
		spec.Image{Name: "a", Go: &spec.GoImage{Package: "./none"}},
		spec.Image{Name: "b", Layers: &spec.LayersImage{Base: "a"}},
		spec.Image{Name: "c", Layers: &spec.LayersImage{Copy: map[string]string{"none": "/x"}}})
	var mu sync.Mutex
	last := map[spec.ImageName]bake.Step{}
	req.Progress = func(e bake.Event) {
		mu.Lock()
		defer mu.Unlock()
		last[e.Image] = e.Step
	}
	_, err := bake.Bake(t.Context(), req)
	for _, name := range []string{`"a"`, `"b": its base could not be baked`, `"c"`} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error lacks %s: %v", name, err)
		}
	}
	want := map[spec.ImageName]bake.Step{"web": bake.Finished, "a": bake.Failed, "b": bake.Failed, "c": bake.Failed}
	if diff := cmp.Diff(want, last); diff != "" {
		t.Errorf("last events (-want +got):\n%s", diff)
	}
}

func TestFrozenRefusesWhatTheLockDoesNotPin(t *testing.T) {
	req := request(t, app(t, nil),
		spec.Image{Name: "cache", Ref: "registry.example.com/cache:7"},
		spec.Image{Name: "db", Debian: &spec.DebianImage{Suite: "bookworm", Packages: []string{"postgresql-15"}}})
	req.Frozen = true
	req.Lock = image.Lock{Images: map[string]image.LockedImage{
		"cache": {Ref: "registry.example.com/cache:6", Digest: digest.Of(nil)},
	}}
	_, err := bake.Bake(t.Context(), req)
	if !errors.Is(err, fault.Invalid) || !strings.Contains(fault.Hint(err), "invar lock") {
		t.Errorf("Bake: %v (hint %q)", err, fault.Hint(err))
	}
	for _, name := range []string{`"cache"`, `"db"`} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error lacks %s: %v", name, err)
		}
	}
}

func TestRefIsPinnedOnceAndMovesOnlyWhenAsked(t *testing.T) {
	source := request(t, app(t, web), goWeb)
	first := run(t, source).Images["web"].Manifest
	host := serve(t, source.Store)
	if err := source.Store.Tag(t.Context(), "web", "1", first); err != nil {
		t.Fatal(err)
	}
	req := request(t, t.TempDir(), spec.Image{Name: "cache", Ref: host + "/web:1"})
	one := run(t, req)
	if one.Images["cache"].Manifest != first || one.Lock.Images["cache"].Digest != first {
		t.Fatalf("baked %+v, want manifest %s", one, first)
	}

	source.Images[0].Go = &spec.GoImage{Package: "./cmd/web", Ldflags: "-X main.unused=1", Tags: []string{"other"}}
	source.Images = append(source.Images, site)
	second := run(t, source).Images["site"].Manifest
	if err := source.Store.Tag(t.Context(), "web", "1", second); err != nil {
		t.Fatal(err)
	}
	req.Lock, req.Frozen = one.Lock, true
	if got := run(t, req).Images["cache"].Manifest; got != first {
		t.Errorf("with the lock: %s, want %s", got, first)
	}
	req.Frozen, req.Update = false, []spec.ImageName{"cache"}
	if got := run(t, req); got.Images["cache"].Manifest != second || got.Lock.Images["cache"].Digest != second {
		t.Errorf("updated: %+v, want %s", got, second)
	}
}

func serve(t *testing.T, s *registry.Store) string {
	t.Helper()
	return strings.TrimPrefix(newServer(t, s), "http://")
}

func TestUnreachableRegistryIsUnavailable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, err = bake.Bake(t.Context(), request(t, t.TempDir(), spec.Image{Name: "cache", Ref: l.Addr().String() + "/cache:7"}))
	if !errors.Is(err, fault.Unavailable) || fault.Hint(err) == "" {
		t.Errorf("Bake: %v (hint %q)", err, fault.Hint(err))
	}
}

func TestLockOnlyBakesNothing(t *testing.T) {
	req := request(t, app(t, web), goWeb)
	req.LockOnly = true
	if r := run(t, req); len(r.Images) != 0 {
		t.Errorf("baked %v", r.Images)
	}
}
