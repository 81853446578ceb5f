// Package invar_test holds the rules of the house that no single package can check.
package invar_test

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/invarhq/invar/"

// outside is what the pure packages do not import: they decide, and are given the time.
var outside = []string{"database/sql", "log/slog", "math/rand", "math/rand/v2", "net", "net/http", "os", "os/exec"}

// heavy libraries have one importer each, or a few, with blanks between them.
var heavy = map[string]string{
	"github.com/hashicorp/hcl/":             "spec/parse",
	"github.com/zclconf/go-cty":             "spec/parse",
	"github.com/opencontainers/runc/":       "cmd/invar-launcher",
	"github.com/distribution/distribution/": "image/registry",
	"oras.land/oras-go/":                    "image/registry",
	"modernc.org/sqlite":                    "store/sqlite",
	"github.com/hashicorp/go-memdb":         "state",
	"github.com/danielgtaylor/huma/":        "api/handler",
	"github.com/caddyserver/certmagic":      "gateway/proxy",
	"github.com/quic-go/quic-go":            "gateway/proxy",
	"github.com/spf13/cobra":                "cli",
	"charm.land/lipgloss/":                  "cli",
	"github.com/prometheus/client_golang/":  "server",
	"github.com/gowebpki/jcs":               "digest",
	"github.com/open-policy-agent/opa/":     "policy",
	"github.com/hiddeco/sshsig":             "identity/sshkey",
	"github.com/coreos/go-oidc/":            "identity/oidc",
	"golang.org/x/oauth2":                   "identity/oidc",
	"github.com/zitadel/oidc/":              "identity/oidc/oidctest",
	"github.com/CycloneDX/cyclonedx-go":     "image/sbom",
	"github.com/secure-systems-lab/":        "image/sbom",
	"filippo.io/age":                        "secret/vault sealed", // which keeps, and which gives away
}

// pkg is a package of ours: what it imports, and its row in the table.
type pkg struct {
	name    string
	imports []string
}

// packages lists what go list sees, without tests.
func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if f[0]+"/" == module {
			continue
		}
		all = append(all, pkg{strings.TrimPrefix(f[0], module), f[1:]})
	}
	return all
}

// row is a row of the table in docs/architecture.md.
type row struct {
	layer string
	may   []string // packages, or the name of a layer in the plural
}

var quoted = regexp.MustCompile("`([^`]+)`")

// readTable reads the table of packages. A cell names packages in backquotes, and layers in words.
func readTable(t *testing.T) map[string]row {
	t.Helper()
	doc, err := os.ReadFile("docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(doc), "## Packages")
	if !found {
		t.Fatal("docs/architecture.md has no section Packages")
	}
	rows := map[string]row{}
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 4 || !strings.Contains(cells[1], "`") {
			continue
		}
		r := row{layer: strings.TrimSpace(cells[0])}
		for _, m := range quoted.FindAllStringSubmatch(cells[3], -1) {
			r.may = append(r.may, m[1])
		}
		for _, word := range []string{"leaves", "core", "ports", "all"} {
			if regexp.MustCompile(`\b` + word + `\b`).MatchString(quoted.ReplaceAllString(cells[3], "")) {
				r.may = append(r.may, word)
			}
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
			rows[m[1]] = r
		}
	}
	return rows
}

// allowed tells whether the row lets its package import the other.
func (r row) allowed(rows map[string]row, other string) bool {
	layers := map[string]string{"leaves": "leaf", "core": "core", "ports": "port"}
	return slices.ContainsFunc(r.may, func(m string) bool {
		return m == "all" || m == other || layers[m] != "" && layers[m] == rows[other].layer
	})
}

// Imports point down the table.
func TestLayers(t *testing.T) {
	rows := readTable(t)
	seen := map[string]bool{}
	for _, p := range packages(t) {
		seen[p.name] = true
		r, ok := rows[p.name]
		if !ok {
			t.Errorf("%s has no row in docs/architecture.md", p.name)
			continue
		}
		for _, i := range p.imports {
			other, ours := strings.CutPrefix(i, module)
			if ours && !r.allowed(rows, other) {
				t.Errorf("%s imports %s, which its row in docs/architecture.md does not allow", p.name, other)
			}
		}
	}
	for name := range rows {
		if !seen[name] {
			t.Errorf("docs/architecture.md has a row for %s, which does not exist", name)
		}
	}
}

// Leaves and core decide with values; they reach for nothing outside.
func TestLayersOfThePureCore(t *testing.T) {
	rows := readTable(t)
	for _, p := range packages(t) {
		if l := rows[p.name].layer; l != "leaf" && l != "core" {
			continue
		}
		for _, i := range p.imports {
			if slices.Contains(outside, i) {
				t.Errorf("%s is pure but imports %s", p.name, i)
			}
		}
	}
}

// A heavy library has one importer, and so can be replaced.
func TestLayersOfHeavyLibraries(t *testing.T) {
	for _, p := range packages(t) {
		for _, i := range p.imports {
			for lib, owner := range heavy {
				mine := func(o string) bool { return p.name == o || strings.HasPrefix(p.name, o+"/") }
				if strings.HasPrefix(i+"/", lib) && !slices.ContainsFunc(strings.Fields(owner), mine) {
					t.Errorf("%s imports %s, which belongs to %s", p.name, i, owner)
				}
			}
		}
	}
}
