// Package parse reads an app's configuration: HCL (github.com/hashicorp/hcl, native syntax) in
// invar.hcl and *.invar.hcl of one directory, and the lock in invar.lock.hcl. A directory with platform.hcl instead is
// the platform's own definition (package platform, docs/platform.md): another set of blocks, read in the same way.
//
//	app = "shop"
//	image "web" { go { package = "./cmd/web" } }
//	component "web" {
//	  image = image.web
//	  port "http" { number = 8080 }
//	}
//	environment "prod" {}
//
// Load checks the shape, Evaluate the values for one environment, Validate everything. Evaluation is
// pure: it reads the files of the directory and nothing else, no clock, no network, no variables of the
// host's environment; so that a server, or an auditor, evaluates the same sources to the same digest.
// All problems are reported, not the first. docs/configuration.md is the reference.
package parse

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"

	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
)

// The files of a directory that are its configuration.
const (
	MainFile     = "invar.hcl"
	Suffix       = ".invar.hcl"
	LockFile     = "invar.lock.hcl"
	PlatformFile = "platform.hcl"
)

// language is what a directory is written in: that of apps, or that of the platform.
type language struct {
	main   string   // the file that makes it this language
	file   *block   // what a file holds
	copies []string // the blocks that for_each multiplies, in the order in which they are laid out
	refs   []string // those that others refer to
}

var (
	appLanguage      = &language{MainFile, fileBlock, []string{"image", "component", "route"}, []string{"image", "component"}}
	platformLanguage = &language{PlatformFile, platformBlock, platformCopies, []string{"principal", "group", "role", "policy"}}
)

// Limits on what is read.
const (
	maxSourceBytes = 2 << 20  // one file of configuration, or the lock
	maxReadBytes   = 16 << 20 // one argument of file and its kin
)

// Module is one directory's configuration, parsed. It is safe for concurrent use.
type Module struct {
	fsys    fs.FS
	lang    *language
	root    *item
	app     spec.AppName
	lock    image.Lock
	sources sources     // of the *.hcl files; never changes after Load
	found   Diagnostics // by Load
	broken  bool        // a file has no syntax: what follows from what is missing is not reported
	noLock  bool        // there is a lock, but it can't be read

	mu   sync.Mutex
	read map[string]contents        // files that evaluation asked for
	done map[spec.EnvName]evaluated // without overrides; evaluation is pure, so once is enough
}

// evaluated is what evaluate returned.
type evaluated struct {
	app        spec.App
	definition platform.Definition // of the platform's language
	diags      Diagnostics
}

// contents is what reading a file gave, once and for all: evaluation sees one state of the directory.
type contents struct {
	data []byte
	err  error
}

// Load reads invar.hcl, *.invar.hcl and invar.lock.hcl, or else platform.hcl, from fsys: the app's directory, or the
// sources of a bundle. It returns the problems of their shape; Validate returns these too, with all others. The module is
// never nil.
func Load(fsys fs.FS) (*Module, Diagnostics) {
	m := &Module{fsys: fsys, lang: appLanguage, sources: sources{}, read: map[string]contents{}, done: map[spec.EnvName]evaluated{}, lock: image.Lock{Images: map[string]image.LockedImage{}}}
	s := &sink{sources: m.sources}
	merged := &hclsyntax.Body{Attributes: hclsyntax.Attributes{}}
	for _, name := range m.configFiles(s) {
		if body := m.parse(s, name); body != nil {
			s.merge(merged, body)
		}
	}
	m.broken = m.broken || len(m.sources) == 0
	m.loadLock(s)
	shape := s
	if m.broken { // what is left of the files is only good for App and Environments
		shape = &sink{sources: m.sources}
	}
	m.root = shape.shape(m.lang.file, merged, nil, hcl.Range{Filename: m.lang.main})
	if m.IsPlatform() {
		m.app = platform.App
	} else {
		m.appName(shape)
		shape.environments(m.root)
	}
	m.found = s.list.sorted()
	return m, m.found
}

// configFiles names the files of configuration in the directory, sorted, and decides by them which language they are in.
func (m *Module) configFiles(s *sink) []string {
	entries, err := fs.ReadDir(m.fsys, ".")
	if err != nil {
		s.errorf(hcl.Range{}, "Directory not readable", "", "Reading the app's directory: %v.", err)
		return nil
	}
	var names []string
	ofPlatform := false
	for _, e := range entries {
		if n := e.Name(); !e.IsDir() && (n == MainFile || strings.HasSuffix(n, Suffix)) {
			names = append(names, n)
		}
		ofPlatform = ofPlatform || e.Name() == PlatformFile && !e.IsDir()
	}
	switch {
	case ofPlatform && len(names) == 0:
		m.lang = platformLanguage
		return []string{PlatformFile}
	case ofPlatform:
		s.warnf(hcl.Range{Filename: PlatformFile}, "Platform's definition beside an app", "Move it to a directory of its own.",
			"%s makes this the directory of an app; %s is not read.", names[0], PlatformFile)
	case len(names) == 0:
		s.errorf(hcl.Range{}, "No configuration", "Run: invar init", "The directory has no %s.", MainFile)
	}
	return names
}

func (m *Module) parse(s *sink, name string) *hclsyntax.Body {
	src, err := readLimited(m.fsys, name, maxSourceBytes)
	if err != nil {
		m.broken = true
		s.errorf(hcl.Range{Filename: name}, "File not readable", "", "Reading the configuration: %v.", err)
		return nil
	}
	m.sources[name] = src
	if deep(src) {
		m.broken = true
		s.errorf(hcl.Range{Filename: name}, "Nested too deeply", "", "The file has more than %d brackets or operators inside each other.", maxDepth)
		return nil
	}
	file, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	s.hcl(diags)
	m.broken = m.broken || diags.HasErrors()
	if file == nil {
		return nil
	}
	body, _ := file.Body.(*hclsyntax.Body)
	return body
}

func readLimited(fsys fs.FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %s", name, spec.FormatSize(limit))
	}
	return b, err
}

// merge puts a file's attributes and blocks beside those of the others.
func (s *sink) merge(into, body *hclsyntax.Body) {
	for name, a := range body.Attributes {
		if other, ok := into.Attributes[name]; ok {
			s.errorf(a.NameRange, "Duplicate attribute", "", "%q is already set at %s:%d.", name, other.NameRange.Filename, other.NameRange.Start.Line)
			continue
		}
		into.Attributes[name] = a
	}
	into.Blocks = append(into.Blocks, body.Blocks...)
}

func (m *Module) loadLock(s *sink) {
	src, err := readLimited(m.fsys, LockFile, maxSourceBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		m.noLock = true
		s.errorf(hcl.Range{Filename: LockFile}, "File not readable", "", "Reading the lock: %v.", err)
		return
	}
	m.sources[LockFile] = src
	lock, diags := ReadLock(src, LockFile)
	m.lock, m.noLock = lock, diags.HasErrors()
	s.list = append(s.list, diags...)
}

func (s *sink) checkName(sch *block, b *hclsyntax.Block) {
	s.name(b.LabelRanges[0], sch.name, b.Labels[0], sch == variableBlock)
}

// name checks a name. Variables are only ever named in references, where underscores are usual.
func (s *sink) name(r hcl.Range, what, name string, variable bool) {
	checked := name
	if variable {
		checked = strings.ReplaceAll(name, "_", "-")
	}
	if err := spec.CheckName(checked); err != nil {
		suggestion := ""
		if n := spec.SuggestName(name); n != "" && n != name {
			suggestion = fmt.Sprintf("Did you mean %q?", n)
		}
		s.errorf(r, "Invalid name", suggestion, "The name of the %s: %v.", what, err)
	}
}

// appName is the app's name: a literal, since all else depends on it.
func (m *Module) appName(s *sink) {
	a, ok := m.root.attrs["app"]
	if !ok {
		return
	}
	v, diags := a.Expr.Value(nil)
	if diags.HasErrors() || v.IsNull() || !v.IsKnown() || v.Type() != text {
		s.errorf(a.Expr.Range(), "Wrong type", "", "The app's name is a literal text.")
		return
	}
	s.name(a.Expr.Range(), "app", v.AsString(), false)
	if v.AsString() == string(platform.App) {
		s.errorf(a.Expr.Range(), "Reserved name", "", "%s", reserved)
	}
	m.app = spec.AppName(v.AsString())
}

// reserved says why no app has the platform's names.
const reserved = "\"platform\" is the platform's own definition: who may do what. It is written in platform.hcl, in a directory of its own."

// environments checks that there is one at all, and that none is the platform's.
func (s *sink) environments(root *item) {
	for _, it := range root.kids["environment"] {
		if it.label() == string(platform.Env) {
			s.errorf(it.head, "Reserved name", "", "%s", reserved)
		}
	}
	if len(root.kids["environment"]) == 0 {
		s.errorf(root.head, "No environment", `Add: environment "staging" {}`, "The app goes nowhere: it has no environment block.")
	}
}

// IsPlatform reports whether the directory is the platform's own definition, and no app.
func (m *Module) IsPlatform() bool { return m.lang == platformLanguage }

// App is the app's name.
func (m *Module) App() spec.AppName { return m.app }

// Lock is what invar.lock.hcl holds; empty without one.
func (m *Module) Lock() image.Lock { return m.lock }

// Environments are the names of the app's environments, in the order of the files.
func (m *Module) Environments() []spec.EnvName {
	if m.IsPlatform() {
		return []spec.EnvName{platform.Env}
	}
	var out []spec.EnvName
	for _, e := range m.root.kids["environment"] {
		out = append(out, spec.EnvName(e.label()))
	}
	return out
}

// Reads lists the files that Load and the evaluation of every environment read, as sorted slash paths: the
// *.hcl files, the lock, and what file, templatefile and their kin were given. They make up a bundle's sources.
func (m *Module) Reads() []string {
	for _, env := range m.Environments() {
		m.Evaluate(env, nil)
	}
	names := slices.Collect(maps.Keys(m.sources))
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, c := range m.read {
		if c.err == nil {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, cmp.Compare)
	return slices.Compact(names)
}

// open reads a file for evaluation, and remembers what it gave.
func (m *Module) open(name string) ([]byte, error) {
	clean := path.Clean(name)
	if !fs.ValidPath(clean) || clean == "." {
		return nil, fmt.Errorf("%q does not lie in the app's directory", name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.read[clean]
	if !ok {
		c.data, c.err = readLimited(m.fsys, clean, maxReadBytes)
		m.read[clean] = c
	}
	return c.data, c.err
}

// Format lays src out in the canonical way. What does not parse is returned unchanged.
func Format(src []byte) []byte {
	if deep(src) {
		return src
	}
	if _, diags := hclsyntax.ParseConfig(src, "", hcl.InitialPos); diags.HasErrors() {
		return src
	}
	return hclwrite.Format(src)
}
