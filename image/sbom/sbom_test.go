package sbom_test

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	slsa "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/bake"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/image/sbom"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/spec"
)

var goApp = map[string]string{
	"go.mod":            "module example.com/Shop\n\ngo 1.26.0\n\nrequire golang.org/x/mod v0.42.0\n",
	"go.sum":            "", // set by newApp
	"main.go":           "package main\n\nimport \"golang.org/x/mod/semver\"\n\nfunc main() { println(semver.IsValid(\"v1\")) }\n",
	"public/index.html": "<h1>shop</h1>\n",
}

// newApp writes the files of an app, whose go.sum is taken from this module's.
func newApp(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	sums, err := os.ReadFile("../../go.sum")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range goApp {
		if name == "go.sum" {
			content = string(sums)
		}
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

// request asks to bake images into a new data directory.
func request(t *testing.T, dir string, images ...spec.Image) bake.Request {
	t.Helper()
	data := t.TempDir()
	store, err := registry.Open(filepath.Join(data, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	return bake.Request{Dir: dir, Images: images, Store: store, Roots: filepath.Join(data, "roots")}
}

func baked(t *testing.T, req bake.Request) bake.Result {
	t.Helper()
	r, err := bake.Bake(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// attached returns the one content of a type that is attached to an image.
func attached(t *testing.T, s *registry.Store, manifest digest.Digest, kind string) []byte {
	t.Helper()
	all, err := s.Referrers(manifest)
	if err != nil {
		t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(r registry.Referrer) bool { return r.Type != kind })
	if len(all) != 1 {
		t.Fatalf("%d of %s are attached, want 1", len(all), kind)
	}
	b, err := s.Bytes(all[0].Content())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// component finds a component by its name.
func component(t *testing.T, bom cdx.BOM, name string) cdx.Component {
	t.Helper()
	i := slices.IndexFunc(*bom.Components, func(c cdx.Component) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("no component %s", name)
	}
	return (*bom.Components)[i]
}

func property(list *[]cdx.Property, name string) string {
	for _, p := range *list {
		if p.Name == name {
			return p.Value
		}
	}
	return ""
}

var (
	goWeb = spec.Image{Name: "web", Go: &spec.GoImage{Package: "."}}
	site  = spec.Image{Name: "site", Layers: &spec.LayersImage{Base: "web", Copy: map[string]string{"./public": "/srv/public"}}}
)

func TestGoImageNamesProgramModulesAndEveryFile(t *testing.T) {
	req := request(t, newApp(t), goWeb)
	img := baked(t, req).Images["web"]
	doc := attached(t, req.Store, img.Manifest, sbom.TypeSBOM)
	bom := valid(t, doc)
	program := component(t, bom, "example.com/Shop")
	if program.PackageURL != "pkg:golang/example.com/shop" || program.Type != cdx.ComponentTypeApplication || property(program.Properties, "invar:path") != "/app/web" {
		t.Errorf("program: %+v", program)
	}
	mod := component(t, bom, "golang.org/x/mod")
	if mod.PackageURL != "pkg:golang/golang.org/x/mod@v0.42.0" || !strings.HasPrefix(property(mod.Properties, "invar:go:sum"), "h1:") {
		t.Errorf("module: %+v", mod)
	}
	if std := component(t, bom, "stdlib"); !strings.HasPrefix(std.PackageURL, "pkg:golang/stdlib@1.") {
		t.Errorf("standard library: %+v", std)
	}
	component(t, bom, "/etc/ssl/certs/ca-certificates.crt")
	s, err := sbom.Summarize(doc)
	if err != nil {
		t.Fatal(err)
	}
	if s.Format != "CycloneDX 1.6" || s.Packages != 3 || s.Files != 4 || !s.Complete || len(s.Purls) != 3 {
		t.Errorf("summary: %+v", s)
	}
	if diff := cmp.Diff([]string{"licenses of Go modules"}, s.NotLookedAt); diff != "" {
		t.Errorf("not looked at (-want +got):\n%s", diff)
	}
}

func TestLayersImageHasItsBasesSoftwareAndItsFiles(t *testing.T) {
	req := request(t, newApp(t), goWeb, site)
	img := baked(t, req).Images["site"]
	bom := valid(t, attached(t, req.Store, img.Manifest, sbom.TypeSBOM))
	component(t, bom, "golang.org/x/mod")
	page := component(t, bom, "/srv/public/index.html")
	if got, want := (*page.Hashes)[0].Value, digest.Of([]byte(goApp["public/index.html"])).Hex(); got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
	s, err := sbom.Summarize(attached(t, req.Store, img.Manifest, sbom.TypeSBOM))
	if err != nil || s.Complete || !slices.Contains(s.NotLookedAt, "software inside of copied files, other than programs of the go command") {
		t.Errorf("summary: %+v, %v", s, err)
	}
	p, err := sbom.ParseProvenance(attached(t, req.Store, img.Manifest, sbom.TypeStatement))
	if err != nil {
		t.Fatal(err)
	}
	deps := p.Predicate.BuildDefinition.ResolvedDependencies
	if p.Predicate.BuildDefinition.BuildType != sbom.BuildType+"layers" || len(deps) != 1 || deps[0].Name != "web" {
		t.Errorf("provenance: %+v", p)
	}
}

func TestTwoDataDirectoriesGiveTheSameBytes(t *testing.T) {
	one, two := request(t, newApp(t), goWeb, site), request(t, newApp(t), site, goWeb)
	first, second := baked(t, one), baked(t, two)
	for name := range first.Images {
		for _, kind := range []string{sbom.TypeSBOM, sbom.TypeStatement} {
			a, b := attached(t, one.Store, first.Images[name].Manifest, kind), attached(t, two.Store, second.Images[name].Manifest, kind)
			if diff := cmp.Diff(string(a), string(b)); diff != "" {
				t.Errorf("%s of %s (-first +second):\n%s", kind, name, diff)
			}
		}
	}
}

func TestKnownImageIsNotLookedAtAgain(t *testing.T) {
	req := request(t, newApp(t), goWeb)
	img := baked(t, req).Images["web"]
	if err := os.Rename(req.Roots, req.Roots+".away"); err != nil { // reading the root would fail
		t.Fatal(err)
	}
	m := sbom.Maker{Store: req.Store, Roots: req.Roots}
	if err := m.Attach(t.Context(), sbom.Build{Image: goWeb, Resolved: img}); err != nil {
		t.Errorf("known: %v", err)
	}
	other := goWeb
	other.Name = "other"
	if err := m.Attach(t.Context(), sbom.Build{Image: other, Resolved: img}); !errors.Is(err, fault.NotFound) {
		t.Errorf("unknown without its root: %v", err)
	}
}

func TestDebianImageHasPackagesAsLocked(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("installing Debian packages needs root")
	}
	req := request(t, t.TempDir(), spec.Image{Name: "tools", Debian: &spec.DebianImage{Suite: "bookworm", Packages: []string{"hostname"}}})
	r := baked(t, req)
	img, locked := r.Images["tools"], r.Lock.Images["tools"]
	doc := attached(t, req.Store, img.Manifest, sbom.TypeSBOM)
	bom := valid(t, doc)
	if bom.Metadata.Timestamp != locked.Date || property(bom.Metadata.Properties, "invar:packages-as-locked") != "true" {
		t.Errorf("metadata: %+v", bom.Metadata)
	}
	s, err := sbom.Summarize(doc)
	if err != nil || s.Packages != len(locked.Packages) || s.Complete {
		t.Errorf("summary: %+v, %v; the lock has %d packages", s, err, len(locked.Packages))
	}
	for _, want := range []string{"GPL-2.0-or-later", "MIT"} {
		if !slices.Contains(s.Licenses, want) {
			t.Errorf("no license %s in %v", want, s.Licenses)
		}
	}
	for _, p := range locked.Packages {
		c := component(t, bom, p.Name)
		if c.Version != p.Version || (*c.Hashes)[0].Value != p.SHA256.Hex() || !strings.HasPrefix(c.PackageURL, "pkg:deb/debian/") || !strings.Contains(c.PackageURL, "distro=debian-12") {
			t.Errorf("package %s: %+v", p.Name, c)
		}
	}
	p, err := sbom.ParseProvenance(attached(t, req.Store, img.Manifest, sbom.TypeStatement))
	if err != nil || len(p.Predicate.BuildDefinition.ResolvedDependencies) != len(locked.Packages) {
		t.Errorf("provenance: %d dependencies, %v", len(p.Predicate.BuildDefinition.ResolvedDependencies), err)
	}
}

// foreign writes an image of these files as a layout and returns how to bake it.
func foreign(t *testing.T, files map[string]string) bake.Request {
	t.Helper()
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range files {
			if !yield(n) {
				return
			}
		}
	}) {
		mode := int64(0o644)
		if strings.HasPrefix(files[name], "\x7fELF") {
			mode = 0o755
		}
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), static.NewLayer(layer.Bytes(), types.OCIUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.ConfigFile(img, config(t, img)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p, err := layout.Write(filepath.Join(dir, "image"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	req := request(t, dir, spec.Image{Name: "cache", Ref: "oci:image"})
	req.Platform = image.Platform{OS: "linux", Architecture: "amd64"}
	return req
}

func config(t *testing.T, img v1.Image) *v1.ConfigFile {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", "amd64"
	return c
}

func TestForeignImageIsReadFromItsDatabases(t *testing.T) {
	built := filepath.Join(t.TempDir(), "tool")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", built, ".")
	cmd.Dir = newApp(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program, err := os.ReadFile(built)
	if err != nil {
		t.Fatal(err)
	}
	req := foreign(t, map[string]string{
		"etc/os-release":                  "ID=alpine\nVERSION_ID=3.22.1\nPRETTY_NAME=\"Alpine Linux v3.22\"\n",
		"lib/apk/db/installed":            "C:Q1abc=\nP:musl\nV:1.2.5-r10\nA:x86_64\nL:MIT\no:musl\n\nP:libcrypto3\nV:3.5.1-r0\nA:x86_64\nL:Apache-2.0 AND Odd\no:openssl\nF:usr\nR:x\n",
		"var/lib/dpkg/status.d/base":      "Package: base-files\nStatus: install ok installed\nVersion: 1:12.4+deb12u1\nArchitecture: amd64\n",
		"var/lib/dpkg/status.d/x.md5sums": "Package: nothing\nVersion: 1\n",
		"usr/bin/tool":                    string(program),
		"usr/bin/broken":                  "\x7fELFnothing",
		"var/lib/rpm/rpmdb.sqlite":        "x",
	})
	img := baked(t, req).Images["cache"]
	doc := attached(t, req.Store, img.Manifest, sbom.TypeSBOM)
	bom := valid(t, doc)
	for name, want := range map[string]string{
		"musl":       "pkg:apk/alpine/musl@1.2.5-r10?arch=x86_64&distro=alpine-3.22.1",
		"libcrypto3": "pkg:apk/alpine/libcrypto3@3.5.1-r0?arch=x86_64&distro=alpine-3.22.1&upstream=openssl",
		"base-files": "pkg:deb/alpine/base-files@1:12.4%2Bdeb12u1?arch=amd64&distro=alpine-3.22.1",
	} {
		if got := component(t, bom, name).PackageURL; got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	component(t, bom, "golang.org/x/mod")
	if os := component(t, bom, "alpine"); os.Type != cdx.ComponentTypeOS || os.Version != "3.22.1" {
		t.Errorf("system: %+v", os)
	}
	s, err := sbom.Summarize(doc)
	if err != nil || s.Complete || !slices.Contains(s.Licenses, "Apache-2.0") || !slices.Contains(s.Unknown, "Odd") {
		t.Errorf("summary: %+v, %v", s, err)
	}
	if !slices.Contains(s.NotLookedAt, "RPM packages: the database /var/lib/rpm/rpmdb.sqlite") {
		t.Errorf("not looked at: %q", s.NotLookedAt)
	}
	if got := property(bom.Metadata.Properties, "invar:root:files"); got != "10" { // 7, and 3 that every root has
		t.Errorf("%s files, want 10", got)
	}
}

func TestForeignImageMayHaveAnythingWhereDatabasesAre(t *testing.T) {
	req := foreign(t, map[string]string{"var/lib/dpkg": "a file", "lib/apk": "a file", "usr/lib/os-release/x": "a file in a directory"})
	img := baked(t, req).Images["cache"]
	valid(t, attached(t, req.Store, img.Manifest, sbom.TypeSBOM))
}

// serverKey makes a ledger's key and returns what the server signs with, and its public key as an auditor reads it.
func serverKey(t *testing.T) (sbom.Signer, ed25519.PublicKey) {
	t.Helper()
	skey, vkey, err := ledger.GenerateKey("bank/invar-1")
	if err != nil {
		t.Fatal(err)
	}
	origin, private, err := ledger.PrivateKey(skey)
	if err != nil {
		t.Fatal(err)
	}
	name, public, err := ledger.PublicKey(vkey + "\n")
	if err != nil || name != origin {
		t.Fatalf("public key of %q: %q, %v", origin, name, err)
	}
	return sbom.Signer{Name: origin, Key: private}, public
}

func TestServerEndorsesWhatItSees(t *testing.T) {
	req := request(t, newApp(t), goWeb)
	img := baked(t, req).Images["web"]
	signer, public := serverKey(t)
	_, stranger := serverKey(t)
	m := sbom.Maker{Store: req.Store, Roots: req.Roots}
	if _, err := sbom.Find(t.Context(), req.Store, img.Manifest, "web", public); !errors.Is(err, fault.NotFound) {
		t.Errorf("before: %v", err)
	}
	for range 2 {
		if err := m.Endorse(t.Context(), sbom.Build{Image: goWeb, Resolved: img}, signer); err != nil {
			t.Fatal(err)
		}
	}
	got, err := sbom.Find(t.Context(), req.Store, img.Manifest, "web", public)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.SBOM, attached(t, req.Store, img.Manifest, sbom.TypeSBOM)) || got.Summary.Packages != 3 {
		t.Errorf("SBOM differs from what the client attached, or summary %+v", got.Summary)
	}
	e := got.Provenance.Predicate.RunDetails.Endorsement
	if e == nil || e.By != signer.Name || len(e.Checked) != 4 || len(e.Claimed) != 1 {
		t.Errorf("endorsement: %+v", e)
	}
	if !got.Provenance.About(img.Manifest) || got.Provenance.Subject[1].Digest["sha256"] != img.Root.Hex() {
		t.Errorf("subjects: %+v", got.Provenance.Subject)
	}
	if _, err := sbom.Find(t.Context(), req.Store, img.Manifest, "web", stranger); !errors.Is(err, fault.NotFound) {
		t.Errorf("with a stranger's key: %v", err)
	}
}

func TestFindPassesOverWhatOthersAttached(t *testing.T) {
	req := request(t, newApp(t), goWeb, site)
	r := baked(t, req)
	signer, public := serverKey(t)
	thief, _ := serverKey(t)
	web, other := r.Images["web"], r.Images["site"]
	m := sbom.Maker{Store: req.Store, Roots: req.Roots}
	if err := m.Endorse(t.Context(), sbom.Build{Image: goWeb, Resolved: web}, thief); err != nil {
		t.Fatal(err)
	}
	if err := m.Endorse(t.Context(), sbom.Build{Image: goWeb, Resolved: web}, signer); err != nil {
		t.Fatal(err)
	}
	mine, err := sbom.Find(t.Context(), req.Store, web.Manifest, "web", public)
	if err != nil {
		t.Fatal(err)
	}
	for what, envelope := range map[string][]byte{
		"another subject's": mine.Envelope,
		"no envelope":       []byte("{}"),
		"altered":           bytes.Replace(mine.Envelope, []byte(`"payload":"ey`), []byte(`"payload":"eY`), 1),
	} {
		if _, err := req.Store.Refer(t.Context(), other.Manifest, sbom.TypeEnvelope, envelope, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := sbom.Find(t.Context(), req.Store, other.Manifest, "site", public); !errors.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAlteredEnvelopeDoesNotVerify(t *testing.T) {
	signer, public := serverKey(t)
	statement := []byte(`{"_type":"https://in-toto.io/Statement/v1"}`)
	envelope, err := sbom.Sign(statement, signer.Key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := sbom.Verify(envelope, public)
	if err != nil || !bytes.Equal(got, statement) {
		t.Fatalf("Verify: %s, %v", got, err)
	}
	var e struct {
		Payload     string `json:"payload"`
		PayloadType string `json:"payloadType"`
		Signatures  []struct {
			KeyID string `json:"keyid"`
			Sig   string `json:"sig"`
		} `json:"signatures"`
	}
	alter := func(f func()) []byte {
		if err := json.Unmarshal(envelope, &e); err != nil {
			t.Fatal(err)
		}
		f()
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for what, c := range map[string]struct {
		envelope []byte
		want     error
	}{
		"payload":      {alter(func() { e.Payload = "e30=" }), fault.Corrupt},
		"payload type": {alter(func() { e.PayloadType = "text/plain" }), fault.Invalid},
		"signature":    {alter(func() { e.Signatures[0].Sig = strings.Repeat("A", 86) + "==" }), fault.Corrupt},
		"none":         {alter(func() { e.Signatures = nil }), fault.Corrupt},
		"key":          {alter(func() { e.Signatures[0].KeyID = "SHA256:other" }), fault.Corrupt},
		"no JSON":      {[]byte("x"), fault.Invalid},
		"other field":  {[]byte(`{"payload":"e30=","x":1}`), fault.Invalid},
	} {
		if _, err := sbom.Verify(c.envelope, public); !errors.Is(err, c.want) {
			t.Errorf("altered %s: %v, want %v", what, err, c.want)
		}
	}
}

// The types of in-toto and SLSA, by those who specify them, read what we write and find nothing missing.
func TestProvenanceIsWhatInTotoSpecifies(t *testing.T) {
	req := request(t, newApp(t), goWeb)
	img := baked(t, req).Images["web"]
	signer, public := serverKey(t)
	if err := (sbom.Maker{Store: req.Store, Roots: req.Roots}).Endorse(t.Context(), sbom.Build{Image: goWeb, Resolved: img}, signer); err != nil {
		t.Fatal(err)
	}
	found, err := sbom.Find(t.Context(), req.Store, img.Manifest, "web", public)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := sbom.Verify(found.Envelope, public)
	if err != nil {
		t.Fatal(err)
	}
	for what, raw := range map[string][]byte{"client's": attached(t, req.Store, img.Manifest, sbom.TypeStatement), "server's": signed} {
		var s intoto.Statement
		if err := protojson.Unmarshal(raw, &s); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		predicate, err := s.GetPredicate().MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var p slsa.Provenance
		if err := (protojson.UnmarshalOptions{DiscardUnknown: what == "server's"}).Unmarshal(predicate, &p); err != nil { // which has an extension
			t.Fatalf("%s: %v", what, err)
		}
		if err := errors.Join(s.Validate(), p.Validate()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What is signed is DSSE's pre-authentication encoding, by anybody's reading of the specification.
func TestEnvelopeIsSignedAsDSSESays(t *testing.T) {
	signer, public := serverKey(t)
	envelope, err := sbom.Sign([]byte("{}"), signer.Key)
	if err != nil {
		t.Fatal(err)
	}
	var e struct{ Signatures []struct{ Sig []byte } }
	if err := json.Unmarshal(envelope, &e); err != nil {
		t.Fatal(err)
	}
	if !ed25519.Verify(public, []byte("DSSEv1 28 application/vnd.in-toto+json 2 {}"), e.Signatures[0].Sig) {
		t.Error("the signature is not one of the pre-authentication encoding")
	}
}

// An unchanged apply asks for what is there already.
func BenchmarkKnownImage(b *testing.B) {
	m, build := benchmarkBuild(b)
	for b.Loop() {
		if err := m.Attach(b.Context(), build); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewImage(b *testing.B) {
	m, build := benchmarkBuild(b)
	for i := 0; b.Loop(); i++ {
		build.Image.Name = spec.ImageName("web" + strings.Repeat("x", i))
		if err := m.Attach(b.Context(), build); err != nil {
			b.Fatal(err)
		}
	}
}

func benchmarkBuild(b *testing.B) (sbom.Maker, sbom.Build) {
	b.Helper()
	data := b.TempDir()
	store, err := registry.Open(filepath.Join(data, "blobs"))
	if err != nil {
		b.Fatal(err)
	}
	req := bake.Request{Dir: newApp(b), Images: []spec.Image{goWeb}, Store: store, Roots: filepath.Join(data, "roots")}
	r, err := bake.Bake(b.Context(), req)
	if err != nil {
		b.Fatal(err)
	}
	return sbom.Maker{Store: store, Roots: req.Roots}, sbom.Build{Image: goWeb, Resolved: r.Images["web"]}
}
