package release_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors")

// app is a small app with something of everything.
func app() spec.App {
	return spec.App{
		Name: "shop",
		Env:  spec.Environment{Name: "prod", Rollout: spec.DefaultRollout()},
		Images: []spec.Image{
			{Name: "db", Debian: &spec.DebianImage{Suite: "bookworm", Packages: []string{"postgresql-15"}}},
			{Name: "web", Go: &spec.GoImage{Package: "./cmd/web"}},
		},
		Components: []spec.Component{
			{
				Name: "db", Image: "db", Replicas: 1, Command: []string{"postgres", "-D", "/data"}, Entrypoint: []string{},
				Ports:   []spec.Port{{Name: "sql", Number: 5432}},
				Volumes: []spec.Volume{{Name: "data", Path: "/data"}},
			},
			{
				Name: "web", Image: "web", Replicas: 2, Env: map[string]string{"LOG_LEVEL": "info"},
				Uses:      []spec.PortRef{{Component: "db", Port: "sql"}},
				Egress:    []string{"api.example.com:443"},
				Files:     []spec.File{{Path: "/etc/web/config.yaml", Content: []byte("a: 1\nb: 2\nc: 3\n"), Mode: 0o444}, {Path: "/etc/web/key", Content: []byte{0xff, 0}, Mode: 0o400}},
				Secrets:   []spec.Secret{{Path: "/run/secrets/db", Name: "db", Mode: 0o400}},
				Ports:     []spec.Port{{Name: "http", Number: 8080}},
				Health:    &spec.Health{HTTP: &spec.HTTPCheck{Port: "http", Path: "/healthz"}, Interval: time.Second, Timeout: time.Second, Failures: 3},
				Scratches: []spec.Scratch{{Path: "/tmp", SizeBytes: 64 << 20, Mode: 0o1777}},
				Resources: spec.Resources{CPUMillis: 500, MemoryBytes: 128 << 20},
			},
		},
		Routes: []spec.Route{{Name: "shop", Host: "shop.localhost", Path: "/", To: spec.PortRef{Component: "web", Port: "http"}}},
	}
}

func resolved(name string) image.Resolved {
	return image.Resolved{
		Manifest: digest.Of([]byte("manifest of " + name)), Size: 500, Root: digest.Of([]byte("root of " + name)), RootSize: 4096,
		Platform: image.Platform{OS: "linux", Architecture: "amd64"},
		Config: image.Config{Entrypoint: []string{"/" + name}, Command: []string{"serve"}, User: "65532:65532", WorkDir: "/",
			Env: map[string]string{"PATH": "/bin", "FROM_IMAGE": "yes"}},
	}
}

func images() map[spec.ImageName]image.Resolved {
	return map[spec.ImageName]image.Resolved{"db": resolved("db"), "web": resolved("web")}
}

// pins are the versions of the secrets that app names.
func pins() release.Pins { return release.Pins{"db": digest.Of([]byte("ciphertext of db"))} }

var sources = map[string][]byte{
	"invar.hcl":      []byte("app = \"shop\"\n"),
	"invar.lock.hcl": []byte("# Written by invar build and invar lock. Commit it; do not edit it.\n"),
	"conf/web.tftpl": []byte("a: ${a}\n"),
}

func bundle(t testing.TB) (release.Bundle, []byte) {
	t.Helper()
	tgz, d, err := release.SourceTar(sources)
	if err != nil {
		t.Fatal(err)
	}
	return release.Bundle{V: release.Version, App: "shop", Source: d, Images: images()}, tgz
}

func record(t testing.TB, a spec.App) release.Record {
	t.Helper()
	b, _ := bundle(t)
	d, err := b.Digest()
	if err != nil {
		t.Fatal(err)
	}
	r, err := release.Evaluate(a, d, images(), pins())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEvaluateMergesTheImagesConfiguration(t *testing.T) {
	r := record(t, app())
	db, web := r.Components[0].Component, r.Components[1].Component
	if diff := cmp.Diff([]string{"postgres", "-D", "/data"}, db.Args); diff != "" {
		t.Errorf("an empty entrypoint clears the image's (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/web", "serve"}, web.Args); diff != "" {
		t.Errorf("args (-want +got):\n%s", diff)
	}
	want := map[string]string{"PATH": "/bin", "FROM_IMAGE": "yes", "LOG_LEVEL": "info"}
	if diff := cmp.Diff(want, web.Env); diff != "" {
		t.Errorf("env (-want +got):\n%s", diff)
	}
	if web.User != "65532:65532" || web.StopSignal != "SIGTERM" || web.StopMillis != 10_000 || db.Resources.MemoryBytes != 512<<20 || db.Resources.PIDs != 512 {
		t.Errorf("defaults: %+v %+v", web, db.Resources)
	}
	if web.Health.Port != 8080 || web.Health.HTTPPath != "/healthz" || db.Health != nil {
		t.Errorf("health: %+v, %+v", web.Health, db.Health)
	}
	if web.Files[1].Base64 == "" || web.Files[1].Text != "" {
		t.Errorf("a file that is not text: %+v", web.Files[1])
	}
}

func TestCommandFollowsOCIRules(t *testing.T) {
	for _, c := range []struct {
		name                string
		entrypoint, command []string
		want                []string
	}{
		{"image's", nil, nil, []string{"/web", "serve"}},
		{"own command", nil, []string{"migrate"}, []string{"/web", "migrate"}},
		{"empty command", nil, []string{}, []string{"/web"}},
		{"own entrypoint", []string{"/sh"}, nil, []string{"/sh"}},
		{"both", []string{"/sh"}, []string{"-c", "x"}, []string{"/sh", "-c", "x"}},
	} {
		a := app()
		a.Components[1].Entrypoint, a.Components[1].Command = c.entrypoint, c.command
		if diff := cmp.Diff(c.want, record(t, a).Components[1].Component.Args); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestEvaluateRefusesWhatCannotRun(t *testing.T) {
	empty := resolved("web")
	empty.Config = image.Config{}
	withEmpty := images()
	withEmpty["web"] = empty
	for name, imgs := range map[string]map[spec.ImageName]image.Resolved{"nothing to run": withEmpty, "image not resolved": {}} {
		_, err := release.Evaluate(app(), digest.Of(nil), imgs, pins())
		if !errors.Is(err, fault.Invalid) || fault.Hint(err) == "" {
			t.Errorf("%s: got %v with hint %q, want fault.Invalid with a hint", name, err, fault.Hint(err))
		}
	}
}

// TestVectors pins the bytes of every format, for other implementations and against change by accident.
func TestVectors(t *testing.T) {
	b, tgz := bundle(t)
	r := record(t, app())
	bm, err := release.BundleManifest(b, tgz)
	if err != nil {
		t.Fatal(err)
	}
	index, rm, err := release.ReleaseIndex(r, bm.Descriptor, images())
	if err != nil {
		t.Fatal(err)
	}
	var digests strings.Builder
	name := func(what string, d digest.Digest, err error) {
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&digests, "%s %s\n", what, d)
	}
	name("source", b.Source, nil)
	bd, err := b.Digest()
	name("bundle", bd, err)
	rd, err := r.Digest()
	name("record", rd, err)
	for _, p := range r.Components {
		d, err := p.Component.Digest()
		name("component "+string(p.Component.Name), d, err)
	}
	name("bundle manifest", digest.Digest(bm.Descriptor.Digest), nil)
	name("record manifest", digest.Digest(rm.Descriptor.Digest), nil)
	name("index", digest.Digest(index.Descriptor.Digest), nil)
	enc, err := release.Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	if digest.Of(enc) != rd || digest.Digest(rm.Blobs[0].Descriptor.Digest) != rd {
		t.Errorf("the record's digest is not that of its bytes, or of its manifest's config")
	}
	benc, err := release.EncodeBundle(b)
	if err != nil {
		t.Fatal(err)
	}
	for file, got := range map[string][]byte{
		"record.json": enc, "bundle.json": benc, "source.tar.gz": tgz, "bundle-manifest.json": bm.Manifest,
		"record-manifest.json": rm.Manifest, "index.json": index.Manifest, "digests.txt": []byte(digests.String()),
	} {
		golden(t, filepath.Join("testdata", "vectors", file), got)
	}
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (-want +got):\n%s", file, cmp.Diff(string(want), string(got)))
	}
}

func TestIndexNamesEachImageOnce(t *testing.T) {
	a := app()
	again := a.Components[1]
	again.Name = "worker"
	a.Components = append(a.Components, again)
	index, _, err := release.ReleaseIndex(record(t, a), releaseBundle(t), images())
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Manifests []struct{ Digest, ArtifactType string }
	}
	if err := json.Unmarshal(index.Manifest, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Manifests) != 4 || got.Manifests[0].ArtifactType != release.TypeRecord || got.Manifests[1].ArtifactType != release.TypeBundle {
		t.Errorf("manifests: %+v; want record, bundle and two images", got.Manifests)
	}
}

func releaseBundle(t testing.TB) v1.Descriptor {
	t.Helper()
	b, tgz := bundle(t)
	a, err := release.BundleManifest(b, tgz)
	if err != nil {
		t.Fatal(err)
	}
	return a.Descriptor
}

func TestBundleManifestRefusesOtherSources(t *testing.T) {
	b, tgz := bundle(t)
	if _, err := release.BundleManifest(b, append(tgz, 0)); !errors.Is(err, fault.Corrupt) {
		t.Errorf("got %v, want fault.Corrupt", err)
	}
}

func TestDecodeAcceptsOneSpelling(t *testing.T) {
	enc, err := release.Encode(record(t, app()))
	if err != nil {
		t.Fatal(err)
	}
	got, err := release.Decode(enc)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(record(t, app()), got); diff != "" {
		t.Errorf("decode∘encode (-want +got):\n%s", diff)
	}
	s := string(enc)
	for name, bad := range map[string]string{
		"white space":     " " + s,
		"trailing":        s + "\n",
		"unknown field":   strings.Replace(s, `{"app"`, `{"aaa":1,"app"`, 1),
		"case":            strings.Replace(s, `"app"`, `"App"`, 1),
		"duplicate":       strings.Replace(s, `{"app":"shop"`, `{"app":"shop","app":"shop"`, 1),
		"null routes":     strings.Replace(s, `"routes":[`, `"routes":null,"x":[`, 1),
		"other version":   strings.Replace(s, `"v":1}`, `"v":2}`, 1),
		"path escape":     strings.Replace(s, `/etc/web/config.yaml`, `/etc/../../x`, 1),
		"wrong number":    strings.Replace(s, `"number":5432,"port":"sql"`, `"number":5433,"port":"sql"`, 1),
		"empty":           "",
		"float":           strings.Replace(s, `"replicas":1`, `"replicas":1.0`, 1),
		"default spelled": strings.Replace(s, `"rollout":`, `"on_drift":"replace","rollout":`, 1),
		"bad response":    strings.Replace(s, `"rollout":`, `"on_drift":"ignore","rollout":`, 1),
		"bad digest":      strings.Replace(s, `"bundle":"sha256:`, `"bundle":"sha512:`, 1),
		"escaped spelled": strings.Replace(s, `"shop"`, `"\u0073hop"`, 1),
	} {
		if bad == s {
			t.Fatalf("%s: the test changes nothing", name)
		}
		if _, err := release.Decode([]byte(bad)); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v, want fault.Invalid", name, err)
		}
	}
}

func TestRecordsRoundTripForAnyText(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a := app()
		a.Components[1].Env = rapid.MapOf(rapid.StringMatching(`[A-Z_]{1,8}`), rapid.StringMatching(`[^\x00]*`)).Draw(rt, "env")
		a.Components[1].Files[0].Content = rapid.SliceOf(rapid.Byte()).Draw(rt, "content")
		a.Components[0].Replicas = rapid.IntRange(0, 1000).Draw(rt, "replicas")
		r := record(t, a)
		enc, err := release.Encode(r)
		if err != nil {
			rt.Fatal(err)
		}
		got, err := release.Decode(enc)
		if err != nil {
			rt.Fatal(err)
		}
		again, err := release.Encode(got)
		if err != nil || !bytes.Equal(enc, again) {
			rt.Errorf("encode∘decode∘encode differs: %v", err)
		}
		if c := release.Diff(r, got); !c.Empty() {
			rt.Errorf("a record differs from itself: %s", c)
		}
	})
}

func TestDiffSaysWhy(t *testing.T) {
	a := app()
	b := app()
	b.Components[1].Env = map[string]string{"LOG_LEVEL": "warn", "NEW": "x"}
	b.Components[1].Files[0].Content = []byte("a: 1\nb: 9\nc: 3\nd: 4\n")
	b.Components[1].Files[1].Content = []byte{0xfe}
	b.Components[1].Resources.CPUMillis = 0
	b.Components[0].Replicas = 0
	third := b.Components[1]
	third.Name, third.Files = "worker", nil
	b.Components = append(b.Components, third)
	b.Routes[0].Host = "shop.example.com"
	b.Env.Rollout.AutoRevert = false
	b.Env.OnDrift = spec.Alert
	got := release.Diff(record(t, a), record(t, b)).String()
	golden(t, filepath.Join("testdata", "diff.txt"), []byte(got))
	if strings.Contains(got, "~") {
		t.Error("a plan never shows ~")
	}
	golden(t, filepath.Join("testdata", "diff-from-nothing.txt"), []byte(release.Diff(release.Record{}, record(t, a)).String()))
	golden(t, filepath.Join("testdata", "diff-to-nothing.txt"), []byte(release.Diff(record(t, a), release.Record{}).String()))
}

// TestDiffMissesNoField changes each field of a component, found in its JSON, and wants a cause for each.
func TestDiffMissesNoField(t *testing.T) {
	base := record(t, app())
	raw, err := json.Marshal(base.Components[1].Component)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		t.Fatal(err)
	}
	fields["workdir"], fields["isolation"], fields["volumes"] = "/w", "gvisor", []any{map[string]any{"name": "v", "path": "/v"}}
	for name := range fields {
		if name == "name" {
			continue
		}
		without := map[string]any{}
		for k, v := range fields {
			if k != name {
				without[k] = v
			}
		}
		old, new := base, base
		old.Components = []release.Placed{{Component: componentOf(t, fields), Replicas: 1}}
		new.Components = []release.Placed{{Component: componentOf(t, without), Replicas: 1}}
		ch, ok := release.Diff(old, new).Find("web")
		if !ok || ch.Action != release.Replace || len(ch.Causes) == 0 {
			t.Errorf("without %s: %+v, want a replacement with a cause", name, ch)
		}
	}
}

// TestAskingForASnapshotReplacesNothing: it says how the next change is made, and shows as that.
func TestAskingForASnapshotReplacesNothing(t *testing.T) {
	with := func(snapshot string) release.Record {
		a := app()
		a.Components[0].Replicas = 1
		a.Components[0].Volumes = []spec.Volume{{Name: "data", Path: "/data", Snapshot: snapshot}}
		return record(t, a)
	}
	old, asked := with(""), with(spec.BeforeChange)
	got := release.Diff(old, asked)
	if len(got.Components) > 0 || len(got.Rollout) != 1 || *got.Rollout[0].New != `["data"]` {
		t.Errorf("got %+v, want one cause of how it is rolled out", got)
	}
	asked.Components[0].Snapshots = []spec.VolumeName{"other"}
	if err := asked.Check(); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "snapshots") {
		t.Errorf("a snapshot of a volume that it has not: %v", err)
	}
}

func componentOf(t *testing.T, fields map[string]any) release.Component {
	t.Helper()
	raw, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	var c release.Component
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSourcesAreDeterministicAndStrict(t *testing.T) {
	tgz, d, err := release.SourceTar(sources)
	if err != nil {
		t.Fatal(err)
	}
	got, err := release.ReadSource(tgz)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sources, got); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
	if _, again, _ := release.SourceTar(got); again != d {
		t.Errorf("packed again: %s, want %s", again, d)
	}
	for _, bad := range []string{"../x", "/x", "a/../b", "", ".", "a//b", "a\x00", `a\b`} {
		if _, _, err := release.SourceTar(map[string][]byte{bad: nil}); !errors.Is(err, fault.Invalid) {
			t.Errorf("source %q: got %v, want fault.Invalid", bad, err)
		}
	}
	if _, _, err := release.SourceTar(map[string][]byte{"a": nil, "a/b": nil}); !errors.Is(err, fault.Invalid) {
		t.Errorf("a file below a file: got %v, want fault.Invalid", err)
	}
	fsys, err := release.SourceFS(got)
	if err != nil {
		t.Fatal(err)
	}
	if err := fstest.TestFS(fsys, "invar.hcl", "invar.lock.hcl", "conf/web.tftpl"); err != nil {
		t.Error(err)
	}
	if b, err := fs.ReadFile(fsys, "conf/web.tftpl"); err != nil || string(b) != "a: ${a}\n" {
		t.Errorf("read %q, %v", b, err)
	}
}

func FuzzDecode(f *testing.F) {
	enc, err := release.Encode(record(f, app()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(enc)
	if enc, err = release.Encode(platformRecord(f, definition())); err != nil {
		f.Fatal(err)
	}
	f.Add(enc)
	f.Add([]byte(`{"app":"a","bundle":"","components":[],"env":"e","rollout":{},"routes":[],"v":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := release.Decode(b)
		if err != nil {
			return
		}
		if again, err := release.Encode(r); err != nil || !bytes.Equal(again, b) {
			t.Errorf("accepted, but encodes to other bytes: %v\n%s\n%s", err, b, again)
		}
	})
}

func FuzzDecodeBundle(f *testing.F) {
	b, _ := bundle(f)
	enc, err := release.EncodeBundle(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(enc)
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := release.DecodeBundle(data)
		if err != nil {
			return
		}
		if again, err := release.EncodeBundle(b); err != nil || !bytes.Equal(again, data) {
			t.Errorf("accepted, but encodes to other bytes: %v\n%s\n%s", err, data, again)
		}
	})
}

func FuzzReadSource(f *testing.F) {
	tgz, _, err := release.SourceTar(sources)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tgz)
	f.Fuzz(func(t *testing.T, data []byte) {
		files, err := release.ReadSource(data)
		if err != nil {
			return
		}
		if again, _, err := release.SourceTar(files); err != nil || !bytes.Equal(again, data) {
			t.Errorf("accepted, but packs to other bytes: %v", err)
		}
	})
}

func BenchmarkDiffThousandComponents(b *testing.B) {
	a := app()
	base := a.Components[1]
	for i := range 1000 {
		c := base
		c.Name = spec.ComponentName(fmt.Sprintf("c%d", i))
		a.Components = append(a.Components, c)
	}
	before := record(b, a)
	a.Components[500].Env = map[string]string{"LOG_LEVEL": "warn"}
	after := record(b, a)
	for b.Loop() {
		if got := len(release.Diff(before, after).Components); got != 1 {
			b.Fatalf("%d changes, want 1", got)
		}
	}
}
