package bake_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/invarhq/invar/image/bake"
	"github.com/invarhq/invar/spec"
)

// counted puts a go command before the real one that writes down when it links, and returns how often it has. Where GO_LINKER_SAYS is set,
// the linker's version is that.
func counted(t *testing.T) (links func() int) {
	t.Helper()
	real, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = build ] && echo build >>%s\n[ \"$1 $2\" = 'tool link' ] && [ -n \"$GO_LINKER_SAYS\" ] && exec echo \"$GO_LINKER_SAYS\"\nexec %s \"$@\"\n", log, real)
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("GO_LINKER_SAYS", "")
	return func() int {
		b, _ := os.ReadFile(log) // absent: never
		return strings.Count(string(b), "build")
	}
}

var embedding = map[string]string{
	"go.mod":           "module example.com/shop\n\ngo 1.26\n",
	"lib/lib.go":       "package lib\n\nvar Name = \"shop\"\n",
	"cmd/web/page.txt": "hello",
	"cmd/web/main.go": "package main\n\nimport (\n\t_ \"embed\"\n\n\t\"example.com/shop/lib\"\n)\n\n//go:embed page.txt\nvar page string\n\nvar version string\n\n" +
		"func main() { println(lib.Name, page, version, tagged) }\n",
	"cmd/web/with.go":    "//go:build extra\n\npackage main\n\nconst tagged = \"extra\"\n",
	"cmd/web/without.go": "//go:build !extra\n\npackage main\n\nconst tagged = \"none\"\n",
}

func TestUnchangedProgramIsNotLinkedAgain(t *testing.T) {
	links := counted(t)
	dir := app(t, embedding)
	req := request(t, dir, goWeb)
	first := run(t, req).Images["web"]
	write := func(name, content string) func() {
		return func() {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	set := func(g spec.GoImage) func() {
		g.Package = goWeb.Go.Package
		return func() { req.Images = []spec.Image{{Name: "web", Go: &g}} }
	}
	for _, c := range []struct {
		what   string
		change func()
		same   bool // the image, though it has to be linked to know
	}{
		{what: "its own source", change: write("cmd/web/main.go", strings.Replace(embedding["cmd/web/main.go"], "println(", "println(1, ", 1))},
		{what: "the source of a package that it imports", change: write("lib/lib.go", "package lib\n\nvar Name = \"shed\"\n")},
		{what: "a new file", change: write("cmd/web/more.go", "package main\n\nfunc init() { println(2) }\n")},
		{what: "an embedded file", change: write("cmd/web/page.txt", "hullo")},
		{what: "the language version", change: write("go.mod", "module example.com/shop\n\ngo 1.22\n")},
		{what: "a default of the runtime", change: write("go.mod", "module example.com/shop\n\ngo 1.26\n\ngodebug http2client=0\n")},
		{what: "the module's name", change: func() {
			write("go.mod", "module example.com/store\n\ngo 1.26\n")()
			write("cmd/web/main.go", strings.ReplaceAll(embedding["cmd/web/main.go"], "example.com/shop", "example.com/store"))()
		}},
		{what: "a build tag", change: set(spec.GoImage{Tags: []string{"extra"}})},
		{what: "a linker flag", change: set(spec.GoImage{Ldflags: "-X main.version=2"})},
		{what: "the instructions", change: set(spec.GoImage{Env: map[string]string{"GOAMD64": "v3", "GOARM64": "v8.1"}})},
		{what: "the name of the image", change: func() { req.Images = []spec.Image{{Name: "shop", Go: goWeb.Go}} }},
		{what: "the toolchain", change: func() { os.Setenv("GO_LINKER_SAYS", "link version go0.0") }, same: true},
	} {
		before := links()
		c.change()
		changed := run(t, req).Images[req.Images[0].Name]
		if got := links() - before; got != 1 {
			t.Errorf("%s changed: linked %d times, want once", c.what, got)
		}
		if same := changed.Manifest == first.Manifest; same != c.same {
			t.Errorf("%s changed: that the image is the same is %v, want %v", c.what, same, c.same)
		}
		if again := run(t, req).Images[req.Images[0].Name]; again.Manifest != changed.Manifest || links()-before != 1 {
			t.Errorf("%s changed, then nothing: another image, or linked again", c.what)
		}
		for name, content := range embedding {
			write(name, content)()
		}
		os.Remove(filepath.Join(dir, "cmd/web/more.go"))
		os.Setenv("GO_LINKER_SAYS", "")
		req.Images = []spec.Image{goWeb}
		if back := run(t, req).Images["web"]; back.Manifest != first.Manifest || links()-before != 1 {
			t.Errorf("%s changed, and back: another image, or linked again", c.what)
		}
	}
}

func TestProgramIsBuiltAgainWhenItsImageIsNotWhole(t *testing.T) {
	links := counted(t)
	req := request(t, app(t, web), goWeb)
	first := run(t, req)
	blobs, err := req.Store.Digests()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range blobs {
		if err := req.Store.Remove(d); err != nil {
			t.Fatal(err)
		}
	}
	if again := run(t, req); again.Images["web"].Manifest != first.Images["web"].Manifest || links() != 2 {
		t.Errorf("linked %d times, want twice, to the same image", links())
	}
}

func TestFlagsThatCanNameAnotherLinkerAreNeverTakenAsKnown(t *testing.T) {
	links := counted(t)
	for _, flags := range []string{"-extldflags=-static", "-X 'main.version=1 -linkmode=2'", "-linkmode=internal"} {
		before := links()
		req := request(t, app(t, web), spec.Image{Name: "web", Go: &spec.GoImage{Package: "./cmd/web", Ldflags: flags}})
		for range 2 {
			if _, err := bake.Bake(t.Context(), req); err != nil {
				t.Fatal(err)
			}
		}
		if got := links() - before; got != 2 {
			t.Errorf("%s: linked %d times, want each time", flags, got)
		}
	}
}
