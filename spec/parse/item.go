package parse

import (
	"fmt"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// item is a block whose shape has been checked: known attributes and blocks, right labels. Nothing in it is evaluated.
type item struct {
	schema *block
	labels []string
	attrs  map[string]*hclsyntax.Attribute
	kids   map[string][]*item
	named  map[string]*item // of kids, by kind and label
	head   hcl.Range        // the block's type and labels
}

func (it *item) label() string { return it.labels[0] }

// title names the block in a sentence: component "web".
func (it *item) title() string {
	if len(it.labels) == 0 {
		return it.schema.name
	}
	return fmt.Sprintf("%s %q", it.schema.name, it.labels[0])
}

// shape checks body against its schema. What is wrong is left out of the result.
func (s *sink) shape(sch *block, body *hclsyntax.Body, labels []string, head hcl.Range) *item {
	it := &item{schema: sch, labels: labels, attrs: map[string]*hclsyntax.Attribute{}, kids: map[string][]*item{}, named: map[string]*item{}, head: head}
	for _, a := range sortedAttrs(body) {
		if sch.free || sch.attr(a.Name) != nil {
			it.attrs[a.Name] = a
			continue
		}
		s.unexpectedAttr(it, a)
	}
	for _, b := range body.Blocks {
		s.inner(it, b)
	}
	for _, a := range sch.attrs {
		if _, ok := body.Attributes[a.name]; a.required && !ok {
			s.errorf(head, "Missing attribute", "", "%s needs the attribute %q.", capital(it.title()), a.name)
		}
	}
	return it
}

func sortedAttrs(body *hclsyntax.Body) []*hclsyntax.Attribute {
	out := make([]*hclsyntax.Attribute, 0, len(body.Attributes))
	for _, a := range body.Attributes {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b *hclsyntax.Attribute) int { return a.NameRange.Start.Byte - b.NameRange.Start.Byte })
	return out
}

func (s *sink) unexpectedAttr(it *item, a *hclsyntax.Attribute) {
	sch := it.schema
	switch why := sch.foreign[a.Name]; {
	case why != "":
		s.errorf(a.NameRange, "Unknown attribute", "", "%s has no attribute %q. %s", capital(it.title()), a.Name, why)
	case sch.block(a.Name) != nil:
		s.errorf(a.NameRange, "Unknown attribute", fmt.Sprintf("Write it without the equals sign: %s { … }", a.Name), "%q is a block, not an attribute.", a.Name)
	default:
		s.errorf(a.NameRange, "Unknown attribute", didYouMean(a.Name, sch.names()), "%s has no attribute %q.", capital(it.title()), a.Name)
	}
}

func (s *sink) inner(it *item, b *hclsyntax.Block) {
	sch := it.schema.block(b.Type)
	if sch == nil {
		s.unexpectedBlock(it, b)
		return
	}
	head := b.DefRange()
	if len(b.Labels) != len(sch.labels) {
		s.errorf(head, "Wrong labels", labelExample(sch), "A %s block has %s, not %s.", sch.name, count(len(sch.labels), "label"), count(len(b.Labels), "label"))
		return
	}
	kid := s.shape(sch, b.Body, b.Labels, head)
	if first := it.kids[sch.name]; sch.single && len(first) > 0 {
		s.errorf(head, "Duplicate block", "Merge the two.", "%s has a second %s block; the first is at line %d.", capital(it.title()), sch.name, first[0].head.Start.Line)
		return
	}
	if other := it.named[kid.title()]; len(b.Labels) > 0 && other != nil {
		s.errorf(head, "Duplicate name", "", "There is already a %s at %s:%d.", kid.title(), other.head.Filename, other.head.Start.Line)
		return
	}
	it.named[kid.title()] = kid
	if len(sch.labels) > 0 && sch.labels[0] == "name" {
		s.checkName(sch, b)
	}
	it.kids[sch.name] = append(it.kids[sch.name], kid)
}

func (s *sink) unexpectedBlock(it *item, b *hclsyntax.Block) {
	sch := it.schema
	switch why := sch.foreign[b.Type]; {
	case why != "":
		s.errorf(b.TypeRange, "Unknown block", "", "%s has no block %q. %s", capital(it.title()), b.Type, why)
	case sch.attr(b.Type) != nil:
		s.errorf(b.TypeRange, "Unknown block", fmt.Sprintf("Write it with an equals sign: %s = …", b.Type), "%q is an attribute, not a block.", b.Type)
	default:
		s.errorf(b.TypeRange, "Unknown block", didYouMean(b.Type, sch.names()), "%s has no block %q.", capital(it.title()), b.Type)
	}
}

func labelExample(sch *block) string {
	if len(sch.labels) == 0 {
		return fmt.Sprintf("Write %s { … }", sch.name)
	}
	return fmt.Sprintf("Write %s \"%s\" { … }", sch.name, sch.labels[0])
}

func count(n int, what string) string {
	switch n {
	case 0:
		return "no " + what
	case 1:
		return "one " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func capital(s string) string {
	if s == "" || s[0] < 'a' || s[0] > 'z' {
		return s
	}
	return string(s[0]-'a'+'A') + s[1:]
}
