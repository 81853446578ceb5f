package parse_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/spec/parse"
)

// validate returns what is wrong with one file.
func validate(src string) parse.Diagnostics {
	m, _ := parse.Load(fstest.MapFS{"invar.hcl": {Data: []byte(src)}})
	return m.Validate()
}

func summaries(diags parse.Diagnostics) string {
	var out []string
	for _, d := range diags {
		out = append(out, d.Summary)
	}
	return strings.Join(out, ", ")
}

func TestLocalsThatDoubleEachOtherAreRefused(t *testing.T) {
	var b strings.Builder
	b.WriteString("app = \"a\"\nenvironment \"e\" {}\nlocals {\n  x0 = \"0123456789\"\n")
	for i := range 60 {
		fmt.Fprintf(&b, "  x%d = \"${local.x%d}${local.x%d}\"\n", i+1, i, i)
	}
	b.WriteString("}\n")
	if got := summaries(validate(b.String())); got != "Value too large" {
		t.Errorf("got %s", got)
	}
}

func TestYAMLAliasesThatDoubleEachOtherAreRefused(t *testing.T) {
	var b strings.Builder
	b.WriteString("x0: &x0 [a, b]\n")
	for i := range 40 {
		fmt.Fprintf(&b, "x%d: &x%d [*x%d, *x%d]\n", i+1, i+1, i, i)
	}
	m, _ := parse.Load(fstest.MapFS{
		"invar.hcl": {Data: []byte("app = \"a\"\nenvironment \"e\" {}\nlocals {\n  x = yamldecode(file(\"bomb.yaml\"))\n}\n")},
		"bomb.yaml": {Data: []byte(b.String())},
	})
	if got := summaries(m.Validate()); got == "" {
		t.Error("accepted")
	}
}

// TestOneCauseOneProblem: what follows from a problem is not reported as another one.
func TestOneCauseOneProblem(t *testing.T) {
	const rest = `
image "web" { ref = "r.example.com/web@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" }
component "web" {
  image = image.web
  port "http" { number = local.number }
  health {
    http { port = "http" }
  }
}
route "web" {
  host = "web.localhost"
  to   = component.web.port.http
}
environment "e" {}
`
	for src, want := range map[string]string{
		"":                               "No environment",
		"app = \"a\"":                    "No environment",
		"app = ":                         "Missing expression",
		"app = \"a\"\ncomponent \"x\" {": "Unclosed configuration block",
		"app = \"a\"\nlocals {\n  number = upper(7, 8)\n}\n" + rest: "Too many function arguments",
		"app = \"a\"\nlocals {\n  number = 0\n}\n" + rest:           "Invalid port",
		"app = \"a\"\nlocals {\n  number = \"x\"\n}\n" + rest:       "Wrong type",
	} {
		got := summaries(validate(src))
		if src == "" {
			want = "Missing attribute, No environment"
		}
		if got != want {
			t.Errorf("%.40q: got %s, want %s", src, got, want)
		}
	}
	if got := summaries(mustFail(t, fstest.MapFS{})); got != "No configuration" {
		t.Errorf("an empty directory: got %s", got)
	}
}

func mustFail(t *testing.T, fsys fstest.MapFS) parse.Diagnostics {
	t.Helper()
	m, diags := parse.Load(fsys)
	if !diags.HasErrors() || !m.Validate().HasErrors() {
		t.Fatal("no error")
	}
	return m.Validate()
}

func TestModuleIsSafeForConcurrentUse(t *testing.T) {
	m := mustLoad(t, designFS())
	var wg sync.WaitGroup
	for range 4 {
		for _, env := range []spec.EnvName{"staging", "prod"} {
			wg.Go(func() {
				if _, diags := m.Evaluate(env, nil); diags.HasErrors() {
					t.Error(diags)
				}
			})
		}
		wg.Go(func() { m.Reads() })
		wg.Go(func() { m.Validate() })
	}
	wg.Wait()
}
