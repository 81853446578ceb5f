package parse_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/spec/parse"
)

// afterInit evaluates what Init wrote beside what was there.
func afterInit(t *testing.T, dir fstest.MapFS, name string) (spec.App, []string) {
	t.Helper()
	files, notes, err := parse.Init(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	for f, content := range files {
		if _, ok := dir[f]; ok {
			t.Fatalf("overwrites %s", f)
		}
		dir[f] = &fstest.MapFile{Data: content}
		if strings.HasSuffix(f, ".hcl") && string(parse.Format(content)) != string(content) {
			t.Errorf("%s is not formatted:\n%s", f, content)
		}
	}
	m, _ := parse.Load(dir)
	if diags := m.Validate(); len(diags) > 0 {
		t.Fatal(diags)
	}
	return evaluate(t, m, "staging", nil), notes
}

func goFile(src string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(src)} }

func TestInitFindsTheGoApp(t *testing.T) {
	const serve = "package main\nimport \"net/http\"\nfunc main() { http.ListenAndServe(\":3000\", nil) }\n"
	for _, c := range []struct {
		name     string
		dir      fstest.MapFS
		pkg      string
		port     int
		env      map[string]string
		mentions string
	}{
		{"at the root", fstest.MapFS{"main.go": goFile(serve)}, ".", 3000, nil, "port 3000"},
		{"in cmd, beside a tool", fstest.MapFS{
			"cmd/aaa/main.go": goFile("package main\nfunc main() {}\n"), "cmd/web/main.go": goFile(serve),
			"vendor/x/main.go": goFile(serve), "testdata/main.go": goFile(serve),
		}, "./cmd/web", 3000, nil, "./cmd/aaa"},
		{"served by a library package", fstest.MapFS{
			"main.go":            goFile("package main\nfunc main() {}\n"),
			"internal/server.go": goFile("package server\nconst addr = \"0.0.0.0:9090\"\n"),
		}, ".", 9090, nil, "port 9090"},
		{"PORT", fstest.MapFS{"main.go": goFile("package main\nimport \"os\"\nfunc main() { os.Getenv(\"PORT\") }\n")}, ".", 8080, map[string]string{"PORT": "8080"}, "PORT"},
		{"a flag", fstest.MapFS{"main.go": goFile("package main\nimport \"flag\"\nvar p = flag.Int(\"port\", 9999, \"x\")\nfunc main() {}\n")}, ".", 9999, nil, "9999"},
		{"nothing to find", fstest.MapFS{"main.go": goFile("package main\nfunc main() {}\n")}, ".", 8080, nil, "No port"},
	} {
		c.dir["go.mod"] = goFile("module example.com/x/Shop_2\n")
		app, notes := afterInit(t, c.dir, "")
		comp := app.Components[0]
		if app.Name != "shop-2" || app.Images[0].Go == nil || app.Images[0].Go.Package != c.pkg || comp.Ports[0].Number != c.port {
			t.Errorf("%s: app %q, image %+v, port %d", c.name, app.Name, app.Images[0].Go, comp.Ports[0].Number)
		}
		if diff := cmp.Diff(c.env, comp.Env); diff != "" {
			t.Errorf("%s: env (-want +got):\n%s", c.name, diff)
		}
		if !strings.Contains(strings.Join(notes, "\n"), c.mentions) {
			t.Errorf("%s: %q does not mention %q", c.name, notes, c.mentions)
		}
	}
}

func TestInitStartsAnAppOfItsOwn(t *testing.T) {
	dir := fstest.MapFS{}
	app, _ := afterInit(t, dir, "My App")
	if app.Name != "my-app" || app.Components[0].Ports[0].Number != 8080 {
		t.Errorf("%+v", app)
	}
	if got := slices.Sorted(maps.Keys(dir)); !slices.Equal(got, []string{"go.mod", "greeting.tftpl", "invar.hcl", "main.go"}) {
		t.Errorf("files %v", got)
	}
}

func TestInitNeverOverwrites(t *testing.T) {
	for _, there := range []string{"invar.hcl", "x.invar.hcl", "invar.lock.hcl", "main.go", "greeting.tftpl", "server.go"} {
		if _, _, err := parse.Init(fstest.MapFS{there: goFile("")}, "x"); !errors.Is(err, fault.Conflict) || fault.Hint(err) == "" {
			t.Errorf("with %s: got %v, want fault.Conflict with a hint", there, err)
		}
	}
	if _, _, err := parse.Init(fstest.MapFS{"go.mod": goFile("module x\n")}, "x"); !errors.Is(err, fault.NotFound) {
		t.Errorf("a module without a main package: got %v", err)
	}
}
