package parse

import (
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/modfile"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// Init returns the files of a starter app called name, by their names below dir, and what it found, in sentences
// for people. With a Go module in dir it deploys the module's main package; without, the starter is a small web
// app of its own. It fails with fault.Conflict when dir has a configuration: nothing is ever overwritten.
func Init(dir fs.FS, name string) (files map[string][]byte, notes []string, err error) {
	if clash, err := configured(dir); err != nil || clash != "" {
		return nil, nil, cmp.Or(err, fault.WithHint(fault.Errorf(fault.Conflict, "%s exists already", clash), "Run: invar validate"))
	}
	mod, err := fs.ReadFile(dir, "go.mod")
	if errors.Is(err, fs.ErrNotExist) {
		return starter(dir, cmp.Or(spec.SuggestName(name), "app"))
	}
	if err != nil {
		return nil, nil, err
	}
	if name == "" {
		name = path.Base(modfile.ModulePath(mod))
	}
	mains, err := findMains(dir)
	if err != nil {
		return nil, nil, err
	}
	if len(mains) == 0 {
		return nil, nil, fault.WithHint(fault.Errorf(fault.NotFound, "the Go module has no main package"), "Write invar.hcl by hand: docs/configuration.md.")
	}
	return goApp(cmp.Or(spec.SuggestName(name), "app"), mains)
}

func configured(dir fs.FS) (string, error) {
	entries, err := fs.ReadDir(dir, ".")
	for _, e := range entries {
		if n := e.Name(); n == MainFile || n == LockFile || strings.HasSuffix(n, Suffix) {
			return n, nil
		}
	}
	return "", err
}

// mainPackage is a main package of a module, and what its source says of how it serves.
type mainPackage struct {
	dir     string // relative; "." is the module's root
	listens bool   // it, or with one main package only the module, starts an HTTP server
	port    int    // 0: not found
	envPort bool   // it asks the environment for PORT
}

// pkg is the package as go build takes it.
func (m mainPackage) pkg() string {
	if m.dir == "." {
		return "."
	}
	return "./" + m.dir
}

const (
	maxGoFiles = 5_000
	maxGoBytes = 1 << 20
)

// findMains looks through the module's Go files. The likeliest to be the app comes first.
func findMains(dir fs.FS) ([]mainPackage, error) {
	byDir := map[string]*mainPackage{}
	var module mainPackage
	seen := 0
	err := fs.WalkDir(dir, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipped(dir, name)
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || seen == maxGoFiles {
			return nil
		}
		seen++
		src, err := readLimited(dir, name, maxGoBytes)
		if err != nil {
			return nil // an unreadable or huge file says nothing
		}
		module.learn(name, src, byDir)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for main packages: %w", err)
	}
	return rank(byDir, module), nil
}

func skipped(dir fs.FS, name string) error {
	base := path.Base(name)
	if name == "." {
		return nil
	}
	if base == "vendor" || base == "testdata" || base == "node_modules" || base == "examples" || base == "internal_test" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
		return fs.SkipDir
	}
	if _, err := fs.Stat(dir, name+"/go.mod"); err == nil {
		return fs.SkipDir // a module of its own
	}
	return nil
}

// learn takes what one file says into the package's entry when it is a main package, else into m, the module's.
func (m *mainPackage) learn(name string, src []byte, byDir map[string]*mainPackage) {
	file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.SkipObjectResolution)
	if err != nil || ignored(src) {
		return
	}
	into := m
	if file.Name.Name == "main" {
		dir := path.Dir(name)
		if byDir[dir] == nil {
			byDir[dir] = &mainPackage{dir: dir}
		}
		into = byDir[dir]
	}
	into.read(file)
}

var ignoreTag = regexp.MustCompile(`(?m)^//go:build .*\bignore\b`)

func ignored(src []byte) bool { return ignoreTag.Match(src) }

var (
	portText  = regexp.MustCompile(`^"(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::\])?:(\d{2,5})"$`)
	portAlone = regexp.MustCompile(`^"?(\d{4,5})"?$`)
	serving   = map[string]bool{"ListenAndServe": true, "ListenAndServeTLS": true, "Serve": true, "Listen": true, "Run": true, "Start": true}
)

// read looks for a server being started, an address to listen on, and the variable PORT.
func (m *mainPackage) read(file *ast.File) {
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			m.call(n)
		case *ast.BasicLit:
			if p := matchPort(portText, n.Value); p != 0 && m.port == 0 {
				m.port = p
			}
		}
		return true
	})
}

func (m *mainPackage) call(n *ast.CallExpr) {
	sel, ok := n.Fun.(*ast.SelectorExpr)
	if !ok {
		return
	}
	if name := sel.Sel.Name; name == "ListenAndServe" || name == "ListenAndServeTLS" {
		m.listens = true
	} else if serving[name] && len(n.Args) > 0 {
		if lit, ok := n.Args[0].(*ast.BasicLit); ok && portText.MatchString(lit.Value) {
			m.listens = true
		}
	}
	var lits []string
	for _, a := range n.Args {
		if lit, ok := a.(*ast.BasicLit); ok {
			lits = append(lits, lit.Value)
		}
	}
	if slices.Contains(lits, `"PORT"`) && (sel.Sel.Name == "Getenv" || sel.Sel.Name == "LookupEnv") {
		m.envPort = true
	}
	if slices.Contains(lits, `"port"`) && m.port == 0 { // flag.Int("port", 8080, …)
		for _, l := range lits {
			m.port = cmp.Or(m.port, matchPort(portAlone, l))
		}
	}
}

func matchPort(re *regexp.Regexp, s string) int {
	match := re.FindStringSubmatch(s)
	if match == nil {
		return 0
	}
	p, err := strconv.Atoi(match[1])
	if err != nil || p < 1 || p > 65535 {
		return 0
	}
	return p
}

// rank orders main packages by how likely each is the app; what only the rest of the module says goes to the first.
func rank(byDir map[string]*mainPackage, module mainPackage) []mainPackage {
	var out []mainPackage
	for _, m := range byDir {
		out = append(out, *m)
	}
	slices.SortFunc(out, func(a, b mainPackage) int {
		return cmp.Or(preferTrue(a.listens, b.listens), cmp.Compare(strings.Count(a.dir, "/"), strings.Count(b.dir, "/")),
			preferTrue(a.dir == ".", b.dir == "."), strings.Compare(a.dir, b.dir))
	})
	if len(out) > 0 {
		first := &out[0]
		first.port = cmp.Or(first.port, module.port)
		first.envPort = first.envPort || module.envPort
	}
	return out
}

func preferTrue(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func goApp(name string, mains []mainPackage) (map[string][]byte, []string, error) {
	m := mains[0]
	notes := []string{fmt.Sprintf("Found the main package %s.", m.pkg())}
	if len(mains) > 1 {
		var others []string
		for _, o := range mains[1:] {
			others = append(others, o.pkg())
		}
		notes = append(notes, fmt.Sprintf("There are other main packages: %s. Change package in %s to choose one.", strings.Join(others, ", "), MainFile))
	}
	port := cmp.Or(m.port, 8080)
	switch {
	case m.port != 0:
		notes = append(notes, fmt.Sprintf("It seems to listen on port %d.", port))
	case m.envPort:
		notes = append(notes, fmt.Sprintf("It is told its port, %d, by the variable PORT.", port))
	default:
		notes = append(notes, fmt.Sprintf("No port was found in its source; %s says %d.", MainFile, port))
	}
	env := ""
	if m.envPort {
		env = fmt.Sprintf("  env   = { PORT = \"%d\" }\n", port)
	}
	return map[string][]byte{MainFile: Format(fmt.Appendf(nil, goTemplate, name, m.pkg(), env, port, name))}, notes, nil
}

const goTemplate = `app = %q

image "web" {
  go { package = %q } # static and reproducible
}

component "web" {
  image = image.web
%s
  port "http" { number = %d } # change it if the program listens elsewhere

  scratch "/tmp" { size = "64Mi" } # the only place it can write to
}

route "web" {
  host = "${env.name}.%s.localhost"
  to   = component.web.port.http
}

environment "staging" {}

environment "prod" {
  promote_from = "staging"
}
`

// starter is a web app with a configuration file, which needs nothing but Go.
func starter(dir fs.FS, name string) (map[string][]byte, []string, error) {
	files := map[string][]byte{
		MainFile:         Format(fmt.Appendf(nil, starterTemplate, name, name)),
		"go.mod":         fmt.Appendf(nil, "module example.com/%s\n\ngo 1.24\n", name),
		"main.go":        []byte(starterMain),
		"greeting.tftpl": []byte("${greeting}, from ${environment}.\n"),
	}
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if _, clash := files[e.Name()]; clash || strings.HasSuffix(e.Name(), ".go") {
			return nil, nil, fault.WithHint(fault.Errorf(fault.Conflict, "%s exists already, and there is no go.mod beside it", e.Name()),
				"Run invar init in the directory with the go.mod, or in an empty one.")
		}
	}
	return files, []string{"There is no Go module here: this starts one, with a small web app."}, nil
}

const starterTemplate = `app = %q

variable "greeting" {
  type    = string
  default = "Hello"
}

image "web" {
  go { package = "." } # static and reproducible
}

component "web" {
  image    = image.web
  replicas = 2

  file "/etc/greeting.txt" { # a change of it is a new release, and new instances
    content = templatefile("greeting.tftpl", {
      greeting    = var.greeting
      environment = env.name
    })
  }

  port "http" { number = 8080 }

  health {
    http {
      port = "http"
      path = "/healthz"
    }
  }
}

route "web" {
  host = "${env.name}.%s.localhost"
  to   = component.web.port.http
}

environment "staging" {}

environment "prod" {
  variables    = { greeting = "Good day" }
  promote_from = "staging"
}
`

const starterMain = `// A small web app: it shows its configuration file.
package main

import (
	"log"
	"net/http"
	"os"
)

func main() {
	greeting, err := os.ReadFile("/etc/greeting.txt")
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {})
	http.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) { w.Write(greeting) })
	log.Fatal(http.ListenAndServe(":8080", nil))
}
`
