// Package policy decides whether a change may proceed, by policy as code: Rego v1, with the conventions of conftest.
//
// # Rules
//
// A policy is a directory of *.rego files and data.json files. Every rule named deny, violation or warn, or one of these
// with a suffix (deny_root), in any package, is asked. Each is a set (deny contains …) of messages: strings, or objects
// with msg and, when they like, id, subject, controls, and any details. A deny or a violation refuses the change; a warn
// is shown. Tests (*_test.rego) are no part of a decision.
//
// # Decisions
//
// What decides is a Bundle: the directory as one OPA bundle, named by the digest of its bytes. What is decided on is an
// Input: one JSON document, named by the digest of its canonical form, that input.schema.json describes. A Decision holds
// both digests with the engine, the query, and every result, so that Replay, or a stock opa (see Decision.Command), comes
// to the same results from the same bytes. Functions that could answer differently the next time are refused by
// Compile; the time is input.now.
//
// A policy fails closed: one that ends with an error, takes too long, or says something that is no message, refuses.
package policy

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/rego"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// Limits of a policy's sources.
const (
	MaxFiles       = 1_000
	MaxBundleBytes = 16 << 20
	maxPath        = 256
)

// TypeBundle is the media type of a bundle.
const TypeBundle = "application/vnd.invar.policy.v1.tar+gzip"

// Engine is what evaluates, in its exact version; a test compares it with the library's.
const Engine = "opa v1.22.2"

// Files are the files of one policy directory, by clean relative path.
type Files map[string][]byte

// Bundle is a policy that is ready to decide. It does not change, and may be used from many goroutines at once.
type Bundle struct {
	Name string

	archive []byte
	digest  digest.Digest
	data    digest.Digest
	query   string
	rules   map[string]rule // by path without "data."
	ready   rego.PreparedEvalQuery
	limits  Limits
}

// Limits bound one evaluation.
type Limits struct {
	Time    time.Duration
	Results int
	Bytes   int // of what the rules say, as JSON
}

// DefaultLimits is what a Bundle has unless told otherwise.
func DefaultLimits() Limits { return Limits{Time: 5 * time.Second, Results: 1_000, Bytes: 1 << 20} }

// Within returns the bundle with other limits. Replay knows the default ones: a decision that is kept is made within these.
func (b *Bundle) Within(l Limits) *Bundle {
	c := *b
	c.limits = l
	return &c
}

// Digest is the bundle's identity: that of its archive.
func (b *Bundle) Digest() digest.Digest { return b.digest }

// Data is the digest of the canonical JSON of everything that the bundle's data.json files hold.
func (b *Bundle) Data() digest.Digest { return b.data }

// Query is the one query that asks every rule.
func (b *Bundle) Query() string { return b.query }

// Rules are the rules that the bundle asks, sorted: "invar.images.deny".
func (b *Bundle) Rules() []string { return slices.Sorted(maps.Keys(b.rules)) }

// Places says where the rule of a result is defined, as "images.rego:7": of all rules with its name.
func (b *Bundle) Places(r Result) []string {
	name, _, _ := strings.Cut(r.Rule, "/")
	return slices.Clone(b.rules[name].places)
}

// Archive returns the bundle as stock opa reads it.
func (b *Bundle) Archive() []byte { return slices.Clone(b.archive) }

// Compile makes a bundle of a policy's files. It reports every problem that it finds, each with file and line. Its errors
// are of kind fault.Invalid.
func Compile(name string, files Files) (*Bundle, error) {
	b, err := compile(name, files)
	if err != nil {
		return nil, fault.As(fault.Invalid, fmt.Errorf("policy %s: %w", name, err))
	}
	return b, nil
}

// Open reads a bundle that Archive gave, and accepts no other spelling of it. It is safe on hostile input. Its errors are
// of kind fault.Invalid.
func Open(name string, archive []byte) (*Bundle, error) {
	files, err := readArchive(archive)
	if err != nil {
		return nil, fault.As(fault.Invalid, fmt.Errorf("policy %s: reading its bundle: %w", name, err))
	}
	return Compile(name, files)
}

// ReadDir reads the files of a policy's directory. Other files than *.rego and *.json are left alone. Its errors are of
// kind fault.Invalid where a file is not what a policy can have.
func ReadDir(fsys fs.FS) (Files, error) {
	files := Files{}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !isRego(name) && path.Ext(name) != ".json" {
			return err
		}
		if !d.Type().IsRegular() {
			return fault.Errorf(fault.Invalid, "%s is not a regular file", name)
		}
		files[name], err = fs.ReadFile(fsys, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the policy: %w", err)
	}
	return files, nil
}

func isRego(name string) bool { return path.Ext(name) == ".rego" }
func isTest(name string) bool { return strings.HasSuffix(name, "_test.rego") }
func isData(name string) bool { return path.Base(name) == "data.json" }

// WithoutTests are the files that decide.
func (f Files) WithoutTests() Files {
	out := Files{}
	for name, b := range f {
		if !isTest(name) {
			out[name] = b
		}
	}
	return out
}

// check says what is wrong with the files' names and sizes.
func (f Files) check() problems {
	var p problems
	total := 0
	for _, name := range slices.Sorted(maps.Keys(f)) {
		total += len(f[name])
		switch {
		case !fs.ValidPath(name) || len(name) > maxPath || strings.ContainsFunc(name, notPlain):
			p.add(name, 0, "its path is not a clean relative one of letters, digits and ._-")
		case !isRego(name) && !isData(name):
			p.add(name, 0, "a policy has files *.rego and data.json; name data by its directory, as lists/data.json")
		case slices.ContainsFunc(strings.Split(name, "/"), func(s string) bool { return strings.HasPrefix(s, ".") }):
			p.add(name, 0, "opa passes over what begins with a dot")
		}
	}
	if len(f) > MaxFiles {
		p.add("", 0, fmt.Sprintf("%d files, %d are allowed", len(f), MaxFiles))
	}
	if total > MaxBundleBytes {
		p.add("", 0, fmt.Sprintf("%d bytes, %d are allowed", total, MaxBundleBytes))
	}
	return p
}

func notPlain(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("._-/", r))
}

// problems are everything that is wrong with a policy.
type problems []problem

type problem struct {
	file  string
	line  int
	cause string
}

func (p *problems) add(file string, line int, cause string) {
	*p = append(*p, problem{file, line, cause})
}

func (p problem) String() string {
	switch {
	case p.file == "":
		return p.cause
	case p.line == 0:
		return p.file + ": " + p.cause
	}
	return fmt.Sprintf("%s:%d: %s", p.file, p.line, p.cause)
}

// err is nil when there are none.
func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	slices.SortStableFunc(p, func(a, b problem) int {
		if c := strings.Compare(a.file, b.file); c != 0 {
			return c
		}
		return a.line - b.line
	})
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.String()
	}
	lines = slices.Compact(lines)
	if len(lines) == 1 {
		return fmt.Errorf("%s", lines[0])
	}
	return fmt.Errorf("%d problems\n  %s", len(lines), strings.Join(lines, "\n  "))
}
