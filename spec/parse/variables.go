package parse

import (
	"maps"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"

	"github.com/invarhq/invar/spec"
)

// given is a variable's value and where it was given.
type given struct {
	value cty.Value
	at    hcl.Range
}

// environmentVariables evaluates variables = { … } of the environment.
func (e *evaluator) environmentVariables(sc scope) map[string]given {
	a := e.env.attrs["variables"]
	if a == nil {
		return nil
	}
	v, ok := e.value(a.Expr, sc, cty.DynamicPseudoType)
	if !ok || v.IsNull() {
		return nil
	}
	if !v.Type().IsObjectType() && !v.Type().IsMapType() {
		e.errorf(a.Expr.Range(), "Wrong type", "Write it as { name = value }.", "variables is %s.", kindOf(v))
		return nil
	}
	out := map[string]given{}
	for name, x := range v.AsValueMap() {
		at := keyRange(a.Expr, name)
		if !slices.Contains(e.m.labels("variable"), name) {
			e.errorf(at, "Unknown variable", didYouMean(name, e.m.labels("variable")), "%s sets %q, which is no variable of the app.", capital(e.env.title()), name)
			continue
		}
		out[name] = given{x, at}
	}
	return out
}

// keyRange is where name stands in an object expression; else the whole.
func keyRange(expr hclsyntax.Expression, name string) hcl.Range {
	if obj, ok := expr.(*hclsyntax.ObjectConsExpr); ok {
		for _, item := range obj.Items {
			if k, diags := item.KeyExpr.Value(nil); !diags.HasErrors() && k.IsKnown() && !k.IsNull() && k.Type() == text && k.AsString() == name {
				return item.KeyExpr.Range()
			}
		}
	}
	return expr.Range()
}

// variables gives every variable its value: from overrides, the environment, or its default.
func (e *evaluator) variables(set map[string]given, overrides map[string]string) cty.Value {
	for _, name := range slices.Sorted(maps.Keys(overrides)) {
		if !slices.Contains(e.m.labels("variable"), name) {
			e.errorf(hcl.Range{}, "Unknown variable", didYouMean(name, e.m.labels("variable")), "-var sets %q, which is no variable of the app.", name)
		}
	}
	vals := map[string]cty.Value{}
	for _, it := range e.m.root.kids["variable"] {
		override, overridden := overrides[it.label()]
		g, ok := set[it.label()]
		vals[it.label()] = e.variable(it, g, ok, override, overridden)
	}
	all := object(vals)
	for _, it := range e.m.root.kids["variable"] {
		e.validations(it, all)
	}
	return all
}

func (e *evaluator) variable(it *item, g given, isSet bool, override string, overridden bool) cty.Value {
	ty, defaults, ok := e.variableType(it)
	if !ok {
		return cty.DynamicVal
	}
	e.node(it, newScope("a variable", e.funcs, nil)) // its description
	def := it.attrs["default"]
	switch {
	case overridden:
		v, ok := e.override(it, ty, override)
		if !ok {
			return cty.DynamicVal
		}
		g = given{v, hcl.Range{}}
	case isSet:
	case def != nil:
		v, ok := e.value(def.Expr, newScope("a default", e.funcs, nil), cty.DynamicPseudoType)
		if !ok {
			return cty.DynamicVal
		}
		g = given{v, def.Expr.Range()}
	default:
		suggestion := "Give it a default, or a value in every environment: variables = { " + it.label() + " = … }."
		if e.m.IsPlatform() {
			suggestion = "Give it a default: the platform has one environment only."
		}
		e.errorf(it.head, "Variable without value", suggestion,
			"Variable %q has no default, and environment %q gives it no value.", it.label(), e.env.label())
		return cty.DynamicVal
	}
	v := g.value
	if defaults != nil && !v.IsNull() {
		v = defaults.Apply(v)
	}
	out, err := convert.Convert(v, ty)
	if err != nil {
		e.errorf(g.at, "Wrong type", "", "Variable %q is of type %s; this is %s: %v.", it.label(), typeexpr.TypeString(ty), kindOf(v), err)
		return cty.DynamicVal
	}
	return out
}

func (e *evaluator) variableType(it *item) (cty.Type, *typeexpr.Defaults, bool) {
	a := it.attrs["type"]
	if a == nil {
		return cty.DynamicPseudoType, nil, true
	}
	ty, defaults, diags := typeexpr.TypeConstraintWithDefaults(a.Expr)
	e.hcl(diags)
	return ty, defaults, !diags.HasErrors()
}

// override reads the text of a -var: as it is for a string, else as an expression without references.
func (e *evaluator) override(it *item, ty cty.Type, src string) (cty.Value, bool) {
	if ty == cty.String || ty == cty.DynamicPseudoType {
		return cty.StringVal(src), true
	}
	if deep([]byte(src)) {
		e.errorf(hcl.Range{}, "Nested too deeply", "", "-var %s: the value has too many brackets.", it.label())
		return cty.DynamicVal, false
	}
	expr, diags := hclsyntax.ParseExpression([]byte(src), "-var "+it.label(), hcl.InitialPos)
	if diags.HasErrors() {
		e.hcl(diags)
		return cty.DynamicVal, false
	}
	return e.value(expr, newScope("-var", e.funcs, nil), cty.DynamicPseudoType)
}

func (e *evaluator) validations(it *item, all cty.Value) {
	sc := newScope("a validation", e.funcs, map[string]cty.Value{"var": all})
	for _, v := range it.kids["validation"] {
		cond, message := v.attrs["condition"], v.attrs["error_message"]
		if cond == nil || message == nil {
			continue
		}
		ok, known := e.value(cond.Expr, sc, cty.Bool)
		if !known || (!ok.IsNull() && ok.True()) {
			continue
		}
		if m, known := e.value(message.Expr, sc, cty.String); known && !m.IsNull() {
			e.errorf(cond.Expr.Range(), "Invalid value for variable", "", "Variable %q in environment %q: %s", it.label(), e.env.label(), m.AsString())
		}
	}
}

// collectLocals gathers the attributes of all locals blocks.
func (e *evaluator) collectLocals() map[string]*hclsyntax.Attribute {
	out := map[string]*hclsyntax.Attribute{}
	for _, it := range e.m.root.kids["locals"] {
		for name, a := range it.attrs {
			if other, ok := out[name]; ok {
				e.errorf(a.NameRange, "Duplicate name", "", "There is already a local value %q at %s:%d.", name, other.NameRange.Filename, other.NameRange.Start.Line)
				continue
			}
			out[name] = a
		}
	}
	return out
}

// localDeps are the locals that one refers to, sorted; usesLate says that it refers to components or images.
func (e *evaluator) localDeps(name string) (deps []string, usesLate bool) {
	a := e.localExprs[name]
	if a == nil {
		return nil, false
	}
	for _, t := range a.Expr.Variables() {
		usesLate = usesLate || slices.Contains(e.m.lang.refs, t.RootName())
		if t.RootName() == "local" && len(t) > 1 {
			if dep, ok := stepName(t[1]); ok && e.localExprs[dep] != nil {
				deps = append(deps, dep)
			}
		}
	}
	slices.Sort(deps)
	return slices.Compact(deps), usesLate
}

// sortLocals puts the locals in the order of their references, reports cycles, and finds those that depend on
// components or images.
func (e *evaluator) sortLocals() {
	names := slices.Sorted(maps.Keys(e.localExprs))
	next := func(n string) []string { deps, _ := e.localDeps(n); return deps }
	for _, c := range spec.Cycles(names, next) {
		first := e.localExprs[c.Nodes[0]]
		e.errorf(first.NameRange, "Cycle of locals", "", "Local values can't be made of each other: %s.", c)
		for _, n := range c.Nodes {
			e.cyclic[n] = true
		}
	}
	done := map[string]bool{}
	var visit func(string)
	visit = func(n string) {
		if done[n] {
			return
		}
		done[n] = true
		deps, late := e.localDeps(n)
		for _, d := range deps {
			visit(d)
			late = late || e.late[d]
		}
		e.late[n] = late
		e.localOrder = append(e.localOrder, n)
	}
	for _, n := range names {
		visit(n)
	}
}

// locals evaluates the early locals, or adds the late ones to those.
func (e *evaluator) locals(sc scope, into map[string]cty.Value, late bool) map[string]cty.Value {
	out := map[string]cty.Value{}
	maps.Copy(out, into)
	for _, n := range e.localOrder {
		if e.late[n] != late {
			continue
		}
		out[n] = cty.DynamicVal
		if e.cyclic[n] {
			continue
		}
		deps, _ := e.localDeps(n)
		seen := map[string]cty.Value{}
		for _, d := range deps {
			seen[d] = out[d]
		}
		expr := e.localExprs[n].Expr
		if !e.localNames(expr) {
			continue
		}
		v, ok := e.value(expr, sc.with("local", object(seen)), cty.DynamicPseudoType)
		switch {
		case !ok:
		case textBytes(v) > maxLocalBytes:
			e.errorf(expr.Range(), "Value too large", "", "Local value %q has more than %s of text.", n, spec.FormatSize(maxLocalBytes))
		default:
			out[n] = v
		}
	}
	return out
}

// maxLocalBytes bounds a local value, so that a few that double each other don't fill the memory.
const maxLocalBytes = 8 << 20

func textBytes(v cty.Value) int {
	total := 0
	// The callback never fails, so Walk doesn't.
	_ = cty.Walk(v, func(_ cty.Path, x cty.Value) (bool, error) {
		total++
		if x.Type() == cty.String && x.IsKnown() && !x.IsNull() {
			total += len(x.AsString())
		}
		return total <= maxLocalBytes, nil
	})
	return total
}

// localNames checks that the locals that a local refers to exist, against all of them.
func (e *evaluator) localNames(expr hcl.Expression) bool {
	ok := true
	for _, t := range expr.Variables() {
		if t.RootName() != "local" {
			continue
		}
		name := ""
		if len(t) > 1 {
			name, _ = stepName(t[1])
		}
		if e.localExprs[name] == nil {
			ok = false
			e.errorf(t.SourceRange(), "Unknown local value", didYouMean(name, slices.Collect(maps.Keys(e.localExprs))), "There is no local value %q.", name)
		}
	}
	return ok
}
