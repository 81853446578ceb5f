package parse

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/spec"
)

// The lock's schema. A package is one line, "NAME VERSION ARCHITECTURE BYTES sha256:…", so that the diff of an
// update shows a line a package.
var (
	lockedImageBlock = &block{name: "image", labels: []string{"name"},
		attrs: []attr{str("ref"), str("digest"), str("suite"), str("date"), list("request"), list("packages")}}
	lockBlock = &block{name: "the lock", blocks: []*block{lockedImageBlock}}
)

const lockHead = "# Written by invar build and invar lock. Commit it; do not edit it.\n"

// WriteLock returns the lock as a file: sorted, one spelling for equal locks.
func WriteLock(l image.Lock) []byte {
	l = l.Sorted()
	var b bytes.Buffer
	b.WriteString(lockHead)
	for _, name := range l.Names() {
		e := l.Images[name]
		fmt.Fprintf(&b, "\nimage %s {\n", quote(name))
		if e.Ref != "" {
			fmt.Fprintf(&b, "  ref    = %s\n  digest = %s\n", quote(e.Ref), quote(string(e.Digest)))
		} else {
			writeSuite(&b, e)
		}
		b.WriteString("}\n")
	}
	return b.Bytes()
}

func writeSuite(b *bytes.Buffer, e image.LockedImage) {
	fmt.Fprintf(b, "  suite    = %s\n  date     = %s\n", quote(e.Suite), quote(e.Date))
	writeLines(b, "request ", e.Request)
	var lines []string
	for _, p := range e.Packages {
		lines = append(lines, fmt.Sprintf("%s %s %s %d %s", p.Name, p.Version, p.Architecture, p.SizeBytes, p.SHA256))
	}
	writeLines(b, "packages", lines)
}

func writeLines(b *bytes.Buffer, name string, lines []string) {
	if len(lines) == 0 {
		fmt.Fprintf(b, "  %s = []\n", name)
		return
	}
	fmt.Fprintf(b, "  %s = [\n", name)
	for _, l := range lines {
		fmt.Fprintf(b, "    %s,\n", quote(l))
	}
	b.WriteString("  ]\n")
}

func quote(s string) string {
	return string(hclwrite.TokensForValue(cty.StringVal(s)).Bytes())
}

// ReadLock reads a lock. It accepts the spelling that WriteLock gives, and no other, so that equal locks are
// equal files in every bundle.
func ReadLock(src []byte, file string) (image.Lock, Diagnostics) {
	s := &sink{sources: sources{file: src}}
	out := image.Lock{Images: map[string]image.LockedImage{}}
	if deep(src) {
		s.errorf(hcl.Range{Filename: file}, "Nested too deeply", "", "The lock has more than %d brackets inside each other.", maxDepth)
		return out, s.list
	}
	parsed, diags := hclsyntax.ParseConfig(src, file, hcl.InitialPos)
	s.hcl(diags)
	if diags.HasErrors() {
		return out, s.list
	}
	root := s.shape(lockBlock, parsed.Body.(*hclsyntax.Body), nil, hcl.Range{Filename: file})
	e := &evaluator{sink: *s, m: &Module{root: root}}
	for _, it := range root.kids["image"] {
		out.Images[it.label()] = e.lockedImage(e.node(it, newScope("the lock", nil, nil)))
	}
	if len(e.list) == 0 && !bytes.Equal(WriteLock(out), src) {
		e.errorf(hcl.Range{Filename: file, Start: differAt(src, WriteLock(out)), End: differAt(src, WriteLock(out))}, "Lock edited by hand",
			"Run: invar lock", "The lock is not as invar writes it; from this line on it differs.")
	}
	return out, e.list.sorted()
}

func (e *evaluator) lockedImage(n *node) image.LockedImage {
	out := image.LockedImage{Ref: n.text("ref"), Digest: digest.Digest(n.text("digest")), Suite: n.text("suite"), Date: n.text("date"), Request: n.texts("request")}
	if len(out.Request) == 0 {
		out.Request = nil
	}
	for _, line := range n.texts("packages") {
		p, err := lockedPackage(line)
		if err != nil {
			n.fail("packages", "Invalid lock", "Run: invar lock", "%v.", err)
		}
		out.Packages = append(out.Packages, p)
	}
	if len(n.bad) > 0 {
		return out
	}
	if err := out.Validate(); err != nil {
		n.fail("", "Invalid lock", "Run: invar lock", "%s: %v.", capital(n.title()), err)
	}
	return out
}

func lockedPackage(line string) (image.LockedPackage, error) {
	f := strings.Split(line, " ")
	if len(f) != 5 {
		return image.LockedPackage{}, fmt.Errorf("package %q: want NAME VERSION ARCHITECTURE BYTES DIGEST", line)
	}
	size, err := strconv.ParseInt(f[3], 10, 64)
	if err != nil {
		return image.LockedPackage{}, fmt.Errorf("package %q: %w", line, err)
	}
	return image.LockedPackage{Name: f[0], Version: f[1], Architecture: f[2], SizeBytes: size, SHA256: digest.Digest(f[4])}, nil
}

// differAt is the beginning of the first line of a that b does not have there.
func differAt(a, b []byte) hcl.Pos {
	line, start := 1, 0
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			break
		}
		if a[i] == '\n' {
			line, start = line+1, i+1
		}
	}
	return hcl.Pos{Line: line, Column: 1, Byte: start}
}

// NotPinned is the summary of the problem that "invar lock" solves: an image that the lock does not pin, or not as it is configured now.
const NotPinned = "Image not pinned"

// WantOf is what the lock must pin of an image; see image.Lock.Check.
func WantOf(img spec.Image) image.Want {
	switch {
	case img.Ref != "":
		return image.Want{Ref: img.Ref}
	case img.Debian != nil:
		return image.Want{Suite: img.Debian.Suite, Packages: img.Debian.Packages}
	}
	return image.Want{}
}

// Pinned reports the images of an evaluated app that the lock does not pin, or for another request. It is apart
// from Evaluate, since locking begins with an evaluation.
func (m *Module) Pinned(app spec.App) Diagnostics {
	e := &evaluator{sink: sink{sources: m.sources}, m: m}
	if m.noLock {
		return nil // which Load has reported
	}
	for _, img := range app.Images {
		err := m.lock.Check(string(img.Name), WantOf(img))
		if err == nil {
			continue
		}
		e.put(Diagnostic{Severity: Error, Summary: NotPinned, Detail: capital(err.Error()) + ".", Suggestion: "Run: invar lock", Range: img.Range})
	}
	return e.list.sorted()
}
