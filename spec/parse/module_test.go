package parse_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/spec/parse"
)

// load loads one file that has no problem.
func load(t testing.TB, src string) *parse.Module {
	t.Helper()
	m, diags := parse.Load(fstest.MapFS{"invar.hcl": {Data: []byte(src)}})
	if err := diags.Err(); err != nil {
		t.Fatal(err)
	}
	return m
}

func evaluate(t testing.TB, m *parse.Module, env spec.EnvName, vars map[string]string) spec.App {
	t.Helper()
	app, diags := m.Evaluate(env, vars)
	if err := diags.Err(); err != nil {
		t.Fatal(err)
	}
	return app
}

// releaseOf is the digest of the release with made-up images.
func releaseOf(t testing.TB, app spec.App) digest.Digest {
	t.Helper()
	images := map[spec.ImageName]image.Resolved{}
	for _, img := range app.Images {
		d := digest.Of([]byte(img.Name))
		images[img.Name] = image.Resolved{Manifest: d, Size: 1, Root: d, RootSize: 1, Platform: image.Platform{OS: "linux", Architecture: "amd64"},
			Config: image.Config{Entrypoint: []string{"/app"}}}
	}
	pins := release.Pins{}
	for _, c := range app.Components {
		for _, s := range c.Secrets {
			pins[s.Name] = digest.Of([]byte(s.Name))
		}
	}
	r, err := release.Evaluate(app, digest.Of(nil), images, pins)
	if err != nil {
		t.Fatal(err)
	}
	d, err := r.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestOrderOfTheFileDoesNotChangeTheRelease(t *testing.T) {
	blocks := strings.Split(strings.TrimSuffix(design, "\n}\n"), "\n}\n")
	want := releaseOf(t, evaluate(t, mustLoad(t, designFS()), "prod", nil))
	rapid.Check(t, func(rt *rapid.T) {
		shuffled := rapid.Permutation(blocks).Draw(rt, "blocks")
		cut := rapid.IntRange(0, len(shuffled)).Draw(rt, "cut")
		fsys := fstest.MapFS{
			"invar.hcl":      {Data: []byte(closed(shuffled[:cut]))},
			"rest.invar.hcl": {Data: []byte(closed(shuffled[cut:]))},
			"web.yaml.tftpl": designFS()["web.yaml.tftpl"],
		}
		if got := releaseOf(t, evaluate(t, mustLoad(t, fsys), "prod", nil)); got != want {
			rt.Errorf("release %s, want %s", got, want)
		}
	})
}

// closed joins what was split at the ends of blocks.
func closed(blocks []string) string {
	var b strings.Builder
	for _, block := range blocks {
		b.WriteString(block + "\n}\n")
	}
	return b.String()
}

func mustLoad(t testing.TB, fsys fstest.MapFS) *parse.Module {
	t.Helper()
	m, diags := parse.Load(fsys)
	if err := diags.Err(); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestBundleEvaluatesToTheSameRelease: what Reads lists is all that evaluation needs.
func TestBundleEvaluatesToTheSameRelease(t *testing.T) {
	fsys := designFS()
	m := mustLoad(t, fsys)
	sources := map[string][]byte{}
	for _, name := range m.Reads() {
		sources[name] = fsys[name].Data
	}
	tgz, _, err := release.SourceTar(sources)
	if err != nil {
		t.Fatal(err)
	}
	files, err := release.ReadSource(tgz)
	if err != nil {
		t.Fatal(err)
	}
	server, err := release.SourceFS(files)
	if err != nil {
		t.Fatal(err)
	}
	again, diags := parse.Load(server)
	if err := diags.Err(); err != nil {
		t.Fatal(err)
	}
	for _, env := range m.Environments() {
		if got, want := releaseOf(t, evaluate(t, again, env, nil)), releaseOf(t, evaluate(t, m, env, nil)); got != want {
			t.Errorf("%s: the server gets %s, the client got %s", env, got, want)
		}
	}
}

// TestReadsCoversEveryEnvironment: a bundle is evaluated for all of them.
func TestReadsCoversEveryEnvironment(t *testing.T) {
	m := mustLoad(t, fstest.MapFS{
		"invar.hcl": {Data: []byte(`
app = "a"
image "web" { ref = "r.example.com/web@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" }
component "web" {
  image = image.web
  env   = { A = fileexists("maybe/${env.name}") ? file("conf/./${env.name}.txt") : "none" }
  file "/etc/b" { source = "b.bin" }
}
environment "one" {}
environment "two" {}
`)},
		"extra.invar.hcl": {Data: []byte("\n")}, "maybe/one": {}, "conf/one.txt": {}, "conf/two.txt": {}, "b.bin": {Data: []byte{0xff}}, "invar.lock.hcl": {Data: parse.WriteLock(image.Lock{})},
	})
	want := []string{"b.bin", "conf/one.txt", "conf/two.txt", "extra.invar.hcl", "invar.hcl", "invar.lock.hcl", "maybe/one"}
	if diff := cmp.Diff(want, m.Reads()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestExamplesAreSound: only the lock may be missing, which the first build writes.
func TestExamplesAreSound(t *testing.T) {
	dirs, err := filepath.Glob("../../examples/*/invar.hcl")
	if err != nil || len(dirs) == 0 {
		t.Fatal("no examples", err)
	}
	for _, file := range dirs {
		m, _ := parse.Load(os.DirFS(filepath.Dir(file)))
		for _, d := range m.Validate() {
			if d.Summary != "Image not pinned" {
				t.Errorf("%s: %s", filepath.Dir(file), d)
			}
		}
	}
}

func TestForEachMakesNamedCopies(t *testing.T) {
	app := evaluate(t, load(t, `
app = "shop"
locals {
  shards = { a = 7001, b = 7002 }
}
image "db" {
  for_each = toset(["a", "b"])
  ref      = "registry.example.com/db-${each.value}:1"
}
component "db" {
  for_each = local.shards
  image    = image.db[each.key]
  env      = { SHARD = each.key, ENVIRONMENT = env.name }
  port "sql" { number = each.value }
}
component "web" {
  image = image.db["a"]
  uses  = [component.db["a"].port.sql, component.db["b"].port.sql]
  env   = { DBS = join(",", [for k in keys(local.shards) : component.db[k].port.sql.address]) }
}
route "db" {
  for_each = local.shards
  tcp      = "127.0.0.1:${each.value}"
  to       = component.db[each.key].port.sql
}
environment "test" {
  replicas = { db = 2, db-b = 3 }
}
`), "test", nil)
	var got []string
	for _, c := range app.Components {
		got = append(got, fmt.Sprintf("%s ×%d image %s env %v uses %v", c.Name, c.Replicas, c.Image, c.Env, c.Uses))
	}
	for _, r := range app.Routes {
		got = append(got, fmt.Sprintf("%s %s → %v", r.Name, r.TCP, r.To))
	}
	want := []string{
		"db-a ×2 image db-a env map[ENVIRONMENT:test SHARD:a] uses []",
		"db-b ×3 image db-b env map[ENVIRONMENT:test SHARD:b] uses []",
		"web ×1 image db-a env map[DBS:db-a:7001,db-b:7002] uses [{db-a sql} {db-b sql}]",
		"db-a 127.0.0.1:7001 → {db-a sql}",
		"db-b 127.0.0.1:7002 → {db-b sql}",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// value evaluates one expression, as the environment of a component.
func value(t *testing.T, expr string) string {
	t.Helper()
	m := load(t, `
app = "shop"
variable "names" {
  type    = list(string)
  default = ["b", "a"]
}
variable "opts" {
  type = object({ size = optional(number, 3), on = bool })
  default = { on = true }
}
image "web" { ref = "registry.example.com/web:1" }
component "web" {
  image = image.web
  env   = { V = `+expr+` }
}
environment "test" {}
`)
	return evaluate(t, m, "test", nil).Components[0].Env["V"]
}

func TestFunctionsAndExpressions(t *testing.T) {
	for _, c := range []struct{ expr, want string }{
		{`upper("a")`, "A"},
		{`join(",", sort(var.names))`, "a,b"},
		{`jsonencode({ b = 1, a = [true, null] })`, `{"a":[true,null],"b":1}`},
		{`yamlencode({ a = 1 })`, "\"a\": 1\n"},
		{`yamldecode("a: [1, 2]").a[1]`, "2"},
		{`base64encode("hi")`, "aGk="},
		{`base64decode("aGk=")`, "hi"},
		{`sha256("")`, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{`md5("")`, "d41d8cd98f00b204e9800998ecf8427e"},
		{`try(var.opts.none, "fallback")`, "fallback"},
		{`can(var.opts.size) ? var.opts.size : 0`, "3"},
		{`format("%03d", 7)`, "007"},
		{`cidrhost("10.1.2.0/24", 5)`, "10.1.2.5"},
		{`cidrnetmask("10.0.0.0/12")`, "255.240.0.0"},
		{`env.name`, "test"},
		{`length("häuser")`, "6"},
		{`length({ a = 1, b = 2 })`, "2"},
		{`length(var.names)`, "2"},
		{`sum([1, 2, 3])`, "6"},
		{`alltrue([true, false]) || !anytrue([true, false])`, "false"},
		{`one(["x"])`, "x"},
		{`one([]) == null`, "true"},
		{`fileexists("invar.hcl") && !fileexists("none")`, "true"},
		{`startswith("abc", "ab")`, "true"},
		{`length([for n in var.names : n if n != "a"])`, "1"},
		{`lookup(merge({ a = "1" }, { b = "2" }), "b", "")`, "2"},
		{`regexreplace("a1b2", "[0-9]", "")`, "ab"},
		{`<<EOT
line
EOT
`, "line\n"},
	} {
		if got := value(t, c.expr); got != c.want {
			t.Errorf("%s = %q, want %q", c.expr, got, c.want)
		}
	}
}

func TestVariablesFromTheCommandLine(t *testing.T) {
	m := load(t, `
app = "shop"
variable "level" { default = "info" }
variable "count" {
  type    = number
  default = 1
}
variable "tags" {
  type    = map(string)
  default = {}
}
image "web" { ref = "registry.example.com/web:1" }
component "web" {
  image    = image.web
  replicas = var.count
  env      = merge({ LEVEL = var.level }, var.tags)
}
environment "test" {
  variables = { level = "warn" }
}
`)
	c := evaluate(t, m, "test", map[string]string{"level": "debug ${x}", "count": "3", "tags": `{ A = "b" }`}).Components[0]
	if diff := cmp.Diff(map[string]string{"LEVEL": "debug ${x}", "A": "b"}, c.Env); diff != "" || c.Replicas != 3 {
		t.Errorf("replicas %d, env (-want +got):\n%s", c.Replicas, diff)
	}
	for name, vars := range map[string]map[string]string{"unknown": {"lvl": "x"}, "wrong type": {"count": "many"}, "syntax": {"tags": "{"}} {
		if _, diags := m.Evaluate("test", vars); !diags.HasErrors() {
			t.Errorf("%s: no error", name)
		}
	}
	if _, diags := m.Evaluate("tset", nil); !strings.Contains(diags.String(), `Did you mean "test"?`) {
		t.Errorf("an unknown environment: %s", diags)
	}
}

func TestFormat(t *testing.T) {
	got := string(parse.Format([]byte("app=\"a\"\ncomponent \"x\" {\nimage=image.x\nreplicas = 2\n}\n")))
	want := "app = \"a\"\ncomponent \"x\" {\n  image    = image.x\n  replicas = 2\n}\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if broken := []byte("app = {"); !bytes.Equal(parse.Format(broken), broken) {
		t.Error("what does not parse is changed")
	}
}

func TestDiagnosticsAsJSON(t *testing.T) {
	_, diags := parse.Load(fstest.MapFS{"invar.hcl": {Data: []byte("app = \"a\"\nenvirnment \"x\" {}\nenvironment \"y\" {}\n")}})
	b, err := json.Marshal(diags)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"severity":"error","summary":"Unknown block","detail":"The file has no block \"envirnment\".","suggestion":"Did you mean \"environment\"?",` +
		`"range":{"file":"invar.hcl","line":2,"column":1,"endLine":2,"endColumn":11},"excerpt":"  2 | envirnment \"x\" {}\n    | ^^^^^^^^^^\n"}]`
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNoConfigurationSaysWhatToDo(t *testing.T) {
	_, diags := parse.Load(fstest.MapFS{})
	if !strings.Contains(diags.String(), "invar init") {
		t.Errorf("got %s", diags)
	}
}

// TestHostileNestingIsRefused: deep input is an error, not the end of the process.
func TestHostileNestingIsRefused(t *testing.T) {
	const n = 1 << 17
	for name, expr := range map[string]string{
		"brackets":    strings.Repeat("[", n),
		"negations":   strings.Repeat("!", n) + "true",
		"minus":       strings.Repeat("- ", n) + "1",
		"sums":        "1" + strings.Repeat("+1", n/2),
		"conditions":  strings.Repeat("true?1:", n/8) + "1",
		"attributes":  "var" + strings.Repeat(".a", n/2),
		"templates":   strings.Repeat(`"${`, n/4),
		"comparisons": "1" + strings.Repeat("==1", n/4),
	} {
		m, _ := parse.Load(fstest.MapFS{"invar.hcl": {Data: []byte("app = \"a\"\nlocals {\n  x = " + expr + "\n}\nenvironment \"e\" {}\n")}})
		if !m.Validate().HasErrors() {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestLockRoundTrips(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := image.Lock{Images: map[string]image.LockedImage{}}
		for _, name := range rapid.SliceOfN(rapid.StringMatching(`[a-z][a-z0-9-]{0,8}[a-z]`), 0, 5).Draw(rt, "names") {
			l.Images[name] = lockedImage(rt)
		}
		src := parse.WriteLock(l)
		got, diags := parse.ReadLock(src, "invar.lock.hcl")
		if err := diags.Err(); err != nil {
			rt.Fatalf("%v\n%s", err, src)
		}
		if diff := cmp.Diff(l.Sorted(), got); diff != "" {
			rt.Errorf("(-want +got):\n%s", diff)
		}
		if !bytes.Equal(parse.WriteLock(got), src) {
			rt.Errorf("written again, it differs")
		}
	})
}

func lockedImage(rt *rapid.T) image.LockedImage {
	d := func(s string) digest.Digest { return digest.Of([]byte(s)) }
	if rapid.Bool().Draw(rt, "ref") {
		ref := rapid.StringMatching(`[a-z.]{1,10}/[ -~]{1,20}`).Draw(rt, "ref")
		return image.LockedImage{Ref: ref, Digest: d(ref)}
	}
	out := image.LockedImage{Suite: "bookworm", Date: "2026-01-02T03:04:05Z", Request: rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]{1,9}`), 1, 3, rapid.ID).Draw(rt, "request")}
	for _, n := range rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z0-9.+-]{1,9}`), 0, 4, rapid.ID).Draw(rt, "packages") {
		out.Packages = append(out.Packages, image.LockedPackage{Name: n, Version: "1:2.3~rc1-4+b1", Architecture: "amd64", SHA256: d(n), SizeBytes: int64(len(n))})
	}
	return out
}

func TestLockRefusesWhatItDidNotWrite(t *testing.T) {
	good := string(parse.WriteLock(image.Lock{Images: map[string]image.LockedImage{"a": {Ref: "r/a:1", Digest: digest.Of(nil)}}}))
	for name, bad := range map[string]string{
		"space":         good + "\n",
		"no head":       strings.TrimPrefix(good, "# Written by invar build and invar lock. Commit it; do not edit it.\n"),
		"digest":        strings.Replace(good, "sha256:e", "sha256:E", 1),
		"attribute":     strings.Replace(good, "  ref", "  x = 1\n  ref", 1),
		"no digest":     strings.Replace(good, "digest", "# digest", 1),
		"not a literal": strings.Replace(good, `"r/a:1"`, `"r/${"a"}:1"`, 1),
	} {
		if bad == good {
			t.Fatalf("%s changes nothing", name)
		}
		if _, diags := parse.ReadLock([]byte(bad), "invar.lock.hcl"); !diags.HasErrors() {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(design))
	files, _ := filepath.Glob("testdata/errors/*.txtar")
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(a.Files[0].Data)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		fsys := fstest.MapFS{"invar.hcl": {Data: src}, "web.yaml.tftpl": {Data: []byte("${level}")}}
		m, _ := parse.Load(fsys)
		again, _ := parse.Load(fsys)
		diags := m.Validate()
		if diags.String() == "" && len(diags) > 0 {
			t.Error("diagnostics without text")
		}
		m.Reads()
		for _, env := range m.Environments() {
			a, da := m.Evaluate(env, nil)
			b, db := again.Evaluate(env, nil)
			if diff := cmp.Diff(a, b); diff != "" {
				t.Errorf("evaluated twice:\n%s", diff)
			}
			if diff := cmp.Diff(da, db); diff != "" {
				t.Errorf("evaluated twice:\n%s", diff)
			}
		}
		if once := parse.Format(src); !bytes.Equal(parse.Format(once), once) {
			t.Errorf("formatting %q twice differs from once", src)
		}
	})
}

func FuzzPlatform(f *testing.F) {
	f.Add([]byte(bankPlatform))
	f.Add(parse.FirstPlatform([]string{"alice", "root"})["platform.hcl"])
	a, err := txtar.ParseFile("testdata/errors/platform.txtar")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a.Files[0].Data)
	f.Fuzz(func(t *testing.T, src []byte) {
		fsys := bankFS()
		fsys["platform.hcl"] = &fstest.MapFile{Data: src}
		m, _ := parse.Load(fsys)
		m.Validate()
		def, diags := m.Definition()
		if diags.HasErrors() {
			return
		}
		r, err := release.EvaluatePlatform(def, digest.Of(src))
		if err != nil {
			t.Fatalf("a definition without problems makes no release: %v", err)
		}
		enc, err := release.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := release.Decode(enc); err != nil {
			t.Fatalf("its release is not read again: %v\n%s", err, enc)
		}
		again, _ := parse.Load(fsys)
		if same, _ := again.Definition(); !reflect.DeepEqual(def, same) {
			t.Error("two evaluations differ")
		}
	})
}

func FuzzReadLock(f *testing.F) {
	f.Add(parse.WriteLock(image.Lock{Images: map[string]image.LockedImage{
		"a": {Ref: "r/a:1", Digest: digest.Of(nil)},
		"b": {Suite: "bookworm", Date: "2026-01-02T03:04:05Z", Request: []string{"x"}, Packages: []image.LockedPackage{{Name: "x", Version: "1", Architecture: "amd64", SHA256: digest.Of(nil)}}},
	}}))
	f.Fuzz(func(t *testing.T, src []byte) {
		l, diags := parse.ReadLock(src, "invar.lock.hcl")
		if !diags.HasErrors() && !bytes.Equal(parse.WriteLock(l), src) {
			t.Errorf("accepted, but written as other bytes:\n%s", parse.WriteLock(l))
		}
	})
}

// thousand is an app of n components, each a block of its own, that use each other in chains of ten.
func thousand(n int) []byte {
	var b bytes.Buffer
	b.WriteString("app = \"big\"\nvariable \"level\" { default = \"info\" }\nimage \"web\" { ref = \"registry.example.com/web:1\" }\nenvironment \"test\" {}\n")
	for _, i := range rand.New(rand.NewSource(1)).Perm(n) {
		uses := ""
		if i%10 != 0 {
			uses = fmt.Sprintf("component.c%d.port.http", i-1)
		}
		fmt.Fprintf(&b, `
component "c%d" {
  image    = image.web
  replicas = 2
  uses     = [%s]
  env      = { LEVEL = var.level, NAME = "c%d" }
  file "/etc/app.yaml" {
    content = yamlencode({ level = var.level, number = %d })
  }
  port "http" { number = 8080 }
  health {
    http { port = "http" }
  }
}
`, i, uses, i, i)
	}
	return b.Bytes()
}

func BenchmarkEvaluateThousandComponents(b *testing.B) {
	fsys := fstest.MapFS{"invar.hcl": {Data: thousand(1000)}}
	for b.Loop() {
		m, diags := parse.Load(fsys)
		if err := diags.Err(); err != nil {
			b.Fatal(err)
		}
		releaseOf(b, evaluate(b, m, "test", nil))
	}
}

// sectionsOf returns the sections of a page of the documentation.
func sectionsOf(t *testing.T, page string) map[string]string {
	t.Helper()
	doc, err := os.ReadFile("../../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, part := range strings.Split(string(doc), "\n## ")[1:] {
		title, body, _ := strings.Cut(part, "\n")
		sections[strings.Trim(title, "`")] = body
	}
	return sections
}

func documented(t *testing.T, page string, names []string) {
	t.Helper()
	sections := sectionsOf(t, page)
	for _, name := range names {
		section, attr, _ := strings.Cut(name, ".")
		body, ok := sections[section]
		if !ok {
			t.Errorf("docs/%s has no section %q", page, section)
			continue
		}
		if !strings.Contains(body, "\n| `"+attr+"` |") {
			t.Errorf("docs/%s: section %q does not describe `%s`", page, section, attr)
		}
	}
}

func TestEveryAttributeOfThePlatformIsDocumented(t *testing.T) {
	documented(t, "platform.md", parse.PlatformNames())
	permissions := sectionsOf(t, "platform.md")["Permissions"]
	for _, p := range platform.Permissions() {
		of := "environments"
		if p.Global() {
			of = "the server"
		}
		if !strings.Contains(permissions, fmt.Sprintf("\n| `%s` | %s |", p, of)) {
			t.Errorf("docs/platform.md does not say what permission %s is of %s", p, of)
		}
	}
}

// The documentation is held to the code.
func TestEveryAttributeIsDocumented(t *testing.T) {
	documented(t, "configuration.md", parse.SchemaNames())
	sections := sectionsOf(t, "configuration.md")
	for _, f := range parse.FunctionNames() {
		if !strings.Contains(sections["Functions"], "`"+f+"`") {
			t.Errorf("docs/configuration.md does not name the function %s", f)
		}
	}
}
