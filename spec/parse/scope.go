package parse

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"

	"github.com/invarhq/invar/spec"
)

// roots are those of references. What each holds: variables, locals, the current element of for_each, the
// environment that is evaluated, and the blocks that the language has to refer to.
func (l *language) roots() []string {
	return append([]string{"var", "local", "each", "env"}, l.refs...)
}

// known is how many steps after the root are names that must exist; what follows is data, for try and can.
var known = map[string]int{"var": 1, "local": 1, "each": 1, "env": 1, "image": 3, "component": 5, "principal": 3, "group": 3, "role": 3, "policy": 3}

// scope is what an expression at some place may refer to.
type scope struct {
	place string // for messages: "for_each"
	vars  map[string]cty.Value
	ctx   *hcl.EvalContext
}

func newScope(place string, funcs map[string]function.Function, vars map[string]cty.Value) scope {
	return scope{place, vars, &hcl.EvalContext{Variables: vars, Functions: funcs}}
}

// with is the scope with one more root.
func (s scope) with(root string, v cty.Value) scope {
	vars := maps.Clone(s.vars)
	vars[root] = v
	ctx := s.ctx.NewChild()
	ctx.Variables = map[string]cty.Value{root: v}
	return scope{s.place, vars, ctx}
}

// value evaluates expr and converts it to want. It returns false when the cause is already reported, also
// when that is elsewhere: whatever could not be evaluated is unknown, and so is all that depends on it.
func (e *evaluator) value(expr hcl.Expression, sc scope, want cty.Type) (cty.Value, bool) {
	if !e.references(expr, sc) {
		e.pieces(expr, sc)
		return cty.DynamicVal, false
	}
	v, diags := expr.Value(sc.ctx)
	e.hcl(diags)
	if diags.HasErrors() || !v.IsWhollyKnown() {
		return cty.DynamicVal, false
	}
	v, _ = v.UnmarkDeep()
	out, err := convert.Convert(v, want)
	if err != nil {
		e.errorf(expr.Range(), "Wrong type", typeHint(v, want), "This is %s: %v.", kindOf(v), err)
		return cty.DynamicVal, false
	}
	return out, true
}

// pieces evaluates the elements of an object or list of which one refers to nothing, so that what is wrong with
// the others is reported in the same run.
func (e *evaluator) pieces(expr hcl.Expression, sc scope) {
	switch x := expr.(type) {
	case *hclsyntax.ObjectConsExpr:
		for _, item := range x.Items {
			e.value(item.ValueExpr, sc, cty.DynamicPseudoType)
		}
	case *hclsyntax.TupleConsExpr:
		for _, el := range x.Exprs {
			e.value(el, sc, cty.DynamicPseudoType)
		}
	}
}

func kindOf(v cty.Value) string {
	if v.IsNull() {
		return "null"
	}
	name := v.Type().FriendlyName()
	if strings.HasPrefix(name, "o") {
		return "an " + name
	}
	return "a " + name
}

func typeHint(v cty.Value, want cty.Type) string {
	switch {
	case want.IsListType() && v.Type().IsPrimitiveType():
		return "Put it into a list: [ … ]."
	case want.IsMapType():
		return "Write it as { name = value }."
	}
	return ""
}

// references checks that what expr refers to exists and may be referred to here.
func (e *evaluator) references(expr hcl.Expression, sc scope) bool {
	ok := true
	for _, t := range expr.Variables() {
		root := t.RootName()
		v, found := sc.vars[root]
		if !found {
			e.unknownRoot(t, sc)
			ok = false
			continue
		}
		if !e.walk(t, v, known[root]) {
			ok = false
		}
	}
	return ok
}

func (e *evaluator) unknownRoot(t hcl.Traversal, sc scope) {
	root := t.RootName()
	switch {
	case root == "each":
		e.errorf(t.SourceRange(), "Reference not allowed here", "Add for_each to the block.", "each is only there inside a block with for_each.")
	case slices.Contains(e.m.lang.roots(), root):
		e.errorf(t.SourceRange(), "Reference not allowed here", "", "%s can't be referred to in %s: that is evaluated earlier.", root, sc.place)
	default:
		e.errorf(t.SourceRange(), "Unknown reference", e.suggestRoot(root), "There is nothing named %q.", root)
	}
}

// suggestRoot finds what a bare name was meant to be.
func (e *evaluator) suggestRoot(name string) string {
	for _, kind := range slices.Backward(append(slices.Clone(e.m.lang.refs), "variable")) {
		if slices.Contains(e.m.labels(kind), name) {
			return fmt.Sprintf("Did you mean %q?", strings.TrimSuffix(kind, "iable")+"."+name)
		}
	}
	if _, ok := e.localExprs[name]; ok {
		return fmt.Sprintf("Did you mean %q?", "local."+name)
	}
	if n := similar(name, e.m.lang.roots()); n != "" {
		return fmt.Sprintf("Did you mean %q?", n)
	}
	return "A text is written in quotes."
}

// walk follows at most n steps of t, each of which must exist.
func (e *evaluator) walk(t hcl.Traversal, v cty.Value, n int) bool {
	for i := 1; i < len(t) && i <= n; i++ {
		name, ok := stepName(t[i])
		if !ok || !v.IsKnown() || v.IsNull() || !v.Type().IsObjectType() {
			return true
		}
		if !v.Type().HasAttribute(name) {
			e.unknownStep(t, i, name, v)
			return false
		}
		v = v.GetAttr(name)
	}
	return true
}

func stepName(step hcl.Traverser) (string, bool) {
	switch s := step.(type) {
	case hcl.TraverseAttr:
		return s.Name, true
	case hcl.TraverseIndex:
		if s.Key.Type() == cty.String && s.Key.IsKnown() && !s.Key.IsNull() {
			return s.Key.AsString(), true
		}
	}
	return "", false
}

var rootNames = map[string]string{"var": "variable", "local": "local value", "image": "image", "component": "component",
	"principal": "principal", "group": "group", "role": "role", "policy": "policy"}

func (e *evaluator) unknownStep(t hcl.Traversal, i int, name string, v cty.Value) {
	var names []string
	for n := range v.Type().AttributeTypes() {
		names = append(names, n)
	}
	r := t[i].SourceRange()
	switch root := t.RootName(); {
	case root == "local" && e.late[name]:
		e.errorf(r, "Reference not allowed here", "", "local.%s depends on %s blocks, which are evaluated later.", name, strings.Join(e.m.lang.refs, " or "))
	case i == 1 && rootNames[root] != "":
		e.errorf(r, "Unknown "+rootNames[root], didYouMean(name, names), "There is no %s %q.", rootNames[root], name)
	case root == "component" && slices.Equal(names, []string{"port"}):
		e.errorf(r, "Unknown reference", "", "A component has nothing but port to refer to.")
	default:
		e.errorf(r, "Unknown reference", didYouMean(name, names), "%s has no %q.", traversalText(t[:i]), name)
	}
}

func traversalText(t hcl.Traversal) string {
	var b strings.Builder
	b.WriteString(t.RootName())
	for _, step := range t[1:] {
		name, _ := stepName(step)
		if _, isIndex := step.(hcl.TraverseIndex); isIndex {
			fmt.Fprintf(&b, "[%q]", name)
		} else {
			b.WriteString("." + name)
		}
	}
	return b.String()
}

// node is an item whose attributes are evaluated; those that are unset, null or failed are absent.
type node struct {
	*item
	e    *evaluator
	sc   scope
	vals map[string]cty.Value
	bad  failed
}

// failed are the names of the attributes that failed, which is reported; "" is the block itself.
type failed map[string]bool

func (e *evaluator) node(it *item, sc scope) *node {
	n := &node{item: it, e: e, sc: sc, vals: map[string]cty.Value{}, bad: failed{}}
	for _, a := range it.schema.attrs {
		src, ok := it.attrs[a.name]
		if !ok || a.raw {
			continue
		}
		n.eval(a, src)
	}
	return n
}

func (n *node) eval(a attr, src *hclsyntax.Attribute) {
	v, ok := n.e.value(src.Expr, n.sc, a.typ)
	switch {
	case !ok:
		n.bad[a.name] = true
	case !v.IsNull():
		n.vals[a.name] = v
	case a.required:
		n.fail(a.name, "Missing value", "", "%q of %s is null.", a.name, n.title())
	}
}

// inner evaluates the inner blocks of a kind, in their order.
func (n *node) inner(kind string) []*node {
	var out []*node
	for _, it := range n.kids[kind] {
		k := n.e.node(it, n.sc)
		maps.Copy(n.bad, k.bad)
		out = append(out, k)
	}
	return out
}

// one evaluates the inner block of a kind, or returns nil.
func (n *node) one(kind string) *node {
	if ks := n.inner(kind); len(ks) > 0 {
		return ks[0]
	}
	return nil
}

func (n *node) fail(name, summary, suggestion, format string, args ...any) {
	r := n.head
	if a := n.attrs[name]; a != nil {
		r = a.Expr.Range()
	}
	n.bad[name] = true
	n.e.errorf(r, summary, suggestion, format, args...)
}

func (n *node) has(name string) bool { _, ok := n.vals[name]; return ok }

// set reports whether the attribute is written at all.
func (n *node) set(name string) bool { _, ok := n.attrs[name]; return ok }

func (n *node) text(name string) string {
	if v, ok := n.vals[name]; ok {
		return v.AsString()
	}
	return ""
}

func (n *node) texts(name string) []string {
	v, ok := n.vals[name]
	if !ok {
		return nil
	}
	out := []string{}
	for _, x := range v.AsValueSlice() {
		if x.IsNull() {
			n.fail(name, "Missing value", "", "An element of %q is null.", name)
			continue
		}
		out = append(out, x.AsString())
	}
	return out
}

func (n *node) textMap(name string) map[string]string {
	v, ok := n.vals[name]
	if !ok || v.LengthInt() == 0 {
		return nil
	}
	out := map[string]string{}
	for k, x := range v.AsValueMap() {
		if !x.IsNull() { // null removes: { NAME = cond ? "x" : null }
			out[k] = x.AsString()
		}
	}
	return out
}

func (n *node) int(name string, unset int) int {
	v, ok := n.vals[name]
	if !ok {
		return unset
	}
	i, err := wholeNumber(v)
	if err != nil {
		n.fail(name, "Invalid number", "", "%q: %v.", name, err)
		return unset
	}
	return i
}

func wholeNumber(v cty.Value) (int, error) {
	bf := v.AsBigFloat()
	i, acc := bf.Int64()
	if acc != 0 || i < -1<<31 || i > 1<<31 {
		return 0, fmt.Errorf("%s is not a whole number in range", bf.Text('g', 10))
	}
	return int(i), nil
}

func (n *node) bool(name string, unset bool) bool {
	if v, ok := n.vals[name]; ok {
		return v.True()
	}
	return unset
}

// parsed reads a text attribute by one of spec's parsers.
func parsed[T any](n *node, name string, unset T, parse func(string) (T, error)) T {
	v, ok := n.vals[name]
	if !ok {
		return unset
	}
	out, err := parse(v.AsString())
	if err != nil {
		n.fail(name, "Invalid value", hintOf(err), "%q: %v.", name, err)
		return unset
	}
	return out
}

func (n *node) rng() spec.Range { return n.e.sources.rangeOf(n.head) }
