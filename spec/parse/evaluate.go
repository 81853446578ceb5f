package parse

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
)

// evaluator evaluates a module for one environment, in phases; each sees what the ones before it made:
//
//	the environment's variables → variables → locals → for_each and port numbers
//	→ locals that name components → images, components, routes, rollout
type evaluator struct {
	sink
	m          *Module
	env        *item
	funcs      map[string]function.Function
	localExprs map[string]*hclsyntax.Attribute
	localOrder []string        // each after those that it refers to
	late       map[string]bool // locals that depend on components or images
	cyclic     map[string]bool // locals that depend on themselves
	early      scope           // var, local, env
	full       scope           // and image, component
	bad        map[spec.Range]failed
	items      map[spec.Range]*item
	copies     map[string][]copyOf // by kind of block
	numbers    map[spec.PortRef]cty.Value
	replicas   map[string]int // by the environment, per component
}

// Evaluate evaluates the app for an environment. It is pure: the same files give the same App on any machine.
// vars override variables by name, for a plan or an apply by hand; their text is the value of a string
// variable, and an HCL expression for any other. A bundle is always evaluated with none.
//
// Problems of Load are among the diagnostics. The App is only usable when none of them is an error. Callers
// share it, and don't change it.
func (m *Module) Evaluate(env spec.EnvName, vars map[string]string) (spec.App, Diagnostics) {
	got := m.evaluate(env, vars)
	return got.app, append(slices.Clone(m.found), got.diags...).sorted()
}

// evaluate is Evaluate without the problems of Load.
func (m *Module) evaluate(env spec.EnvName, vars map[string]string) evaluated {
	if m.broken {
		return evaluated{}
	}
	if len(vars) > 0 {
		return m.evaluateNow(env, vars)
	}
	m.mu.Lock()
	was, ok := m.done[env]
	m.mu.Unlock()
	if !ok {
		was = m.evaluateNow(env, nil)
		m.mu.Lock()
		m.done[env] = was
		m.mu.Unlock()
	}
	return was
}

func (m *Module) evaluateNow(env spec.EnvName, vars map[string]string) evaluated {
	e := &evaluator{
		sink: sink{sources: m.sources}, m: m, funcs: m.functions(), late: map[string]bool{}, cyclic: map[string]bool{},
		bad: map[spec.Range]failed{}, items: map[spec.Range]*item{},
		copies: map[string][]copyOf{}, numbers: map[spec.PortRef]cty.Value{}, replicas: map[string]int{},
	}
	e.localExprs = e.collectLocals()
	if e.env = m.environment(env); e.env == nil {
		e.errorf(hcl.Range{Filename: m.lang.main}, "Unknown environment", didYouMean(string(env), m.environmentNames()), "There is no environment %q.", env)
		return evaluated{diags: e.list}
	}
	e.values(vars)
	var out evaluated
	if m.IsPlatform() {
		out.app = spec.App{Name: m.app, Env: spec.Environment{Name: env, Rollout: spec.DefaultRollout()}}
		out.definition = e.definition()
	} else {
		out.app = e.app()
		e.check(out.app)
	}
	out.diags = e.list.sorted()
	return out
}

// environment returns the block of an environment; nil when there is none. The platform's is not written down.
func (m *Module) environment(name spec.EnvName) *item {
	if m.IsPlatform() && name == platform.Env {
		return &item{schema: environmentBlock, labels: []string{string(name)}}
	}
	for _, it := range m.root.kids["environment"] {
		if it.label() == string(name) {
			return it
		}
	}
	return nil
}

func (m *Module) environmentNames() []string {
	var out []string
	for _, name := range m.Environments() {
		out = append(out, string(name))
	}
	return out
}

func (m *Module) labels(kind string) []string {
	var out []string
	for _, it := range m.root.kids[kind] {
		out = append(out, it.label())
	}
	return out
}

// values evaluates variables and locals, and lays out images and components, so that all can be referred to.
func (e *evaluator) values(vars map[string]string) {
	base := map[string]cty.Value{"env": cty.ObjectVal(map[string]cty.Value{"name": cty.StringVal(e.env.label())})}
	set := e.environmentVariables(newScope("the variables of an environment", e.funcs, base))
	base = maps.Clone(base)
	base["var"] = e.variables(set, vars)
	e.sortLocals()
	early := e.locals(newScope("a local value", e.funcs, base), nil, false)
	base["local"] = object(early)
	e.early = newScope("for_each and the numbers of ports", e.funcs, base)
	for _, kind := range e.m.lang.copies {
		e.layout(kind)
	}
	all := maps.Clone(base)
	for _, kind := range e.m.lang.refs {
		all[kind] = e.refs(kind, e.refOf(kind))
	}
	all["local"] = object(e.locals(newScope("a local value", e.funcs, all), early, true))
	e.full = newScope("this", e.funcs, all)
}

// app builds the values of package spec.
func (e *evaluator) app() spec.App {
	app := spec.App{Name: e.m.app, Env: e.environment()}
	for _, x := range e.copies["image"] {
		app.Images = append(app.Images, e.image(x))
	}
	for _, x := range e.copies["component"] {
		app.Components = append(app.Components, e.component(x))
	}
	for _, x := range e.copies["route"] {
		app.Routes = append(app.Routes, e.route(x))
	}
	slices.SortStableFunc(app.Images, func(a, b spec.Image) int { return strings.Compare(string(a.Name), string(b.Name)) })
	slices.SortStableFunc(app.Components, func(a, b spec.Component) int { return strings.Compare(string(a.Name), string(b.Name)) })
	slices.SortStableFunc(app.Routes, func(a, b spec.Route) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return app
}

// check adds what package spec finds, but not about what has already failed.
func (e *evaluator) check(app spec.App) {
	for _, p := range app.Check() {
		if bad := e.bad[p.Range]; bad[p.Field] || (p.Field == "" && len(bad) > 0) {
			continue
		}
		d := Diagnostic{Severity: Error, Summary: p.Summary, Detail: p.Detail, Suggestion: p.Suggestion, Range: p.Range}
		if a := e.items[p.Range].find(p.Field); a != nil {
			d.Range = e.sources.rangeOf(a.Expr.Range())
		}
		e.put(d)
	}
}

// find returns the attribute of the item, or of an inner block of which there can only be one.
func (it *item) find(name string) *hclsyntax.Attribute {
	if it == nil || name == "" {
		return nil
	}
	if a := it.attrs[name]; a != nil {
		return a
	}
	for _, sch := range it.schema.blocks {
		if ks := it.kids[sch.name]; sch.single && len(ks) == 1 {
			if a := ks[0].find(name); a != nil {
				return a
			}
		}
	}
	return nil
}

// done notes a built item: where it is, and whether something in it failed.
func (e *evaluator) done(n *node) spec.Range {
	r := n.rng()
	e.items[r] = n.item
	if e.bad[r] == nil {
		e.bad[r] = failed{}
	}
	maps.Copy(e.bad[r], n.bad)
	return r
}

// copyOf is one of the values that a block with for_each stands for; or the block itself.
type copyOf struct {
	*item
	name string
	key  string    // "" without for_each
	each cty.Value // NilVal without for_each
}

// in is the scope of the copy's expressions.
func (c copyOf) in(sc scope) scope {
	if c.each == cty.NilVal {
		return sc
	}
	return sc.with("each", c.each)
}

// layout expands the blocks of a kind, in the order of the files and then of the keys.
func (e *evaluator) layout(kind string) {
	taken := map[string]*item{}
	for _, it := range e.m.root.kids[kind] {
		for _, c := range e.expand(it) {
			if other := taken[c.name]; other != nil {
				e.errorf(it.head, "Duplicate name", "", "%s and %s both make a %s %q.", capital(it.title()), other.title(), kind, c.name)
				continue
			}
			taken[c.name] = it
			e.copies[kind] = append(e.copies[kind], c)
		}
	}
}

// expand evaluates for_each of one block.
func (e *evaluator) expand(it *item) []copyOf {
	a := it.attrs["for_each"]
	if a == nil {
		return []copyOf{{item: it, name: it.label()}}
	}
	keys, values := e.elements(a)
	out := make([]copyOf, 0, len(keys))
	for i, k := range keys {
		name := it.label() + "-" + k
		if err := spec.CheckName(name); err != nil {
			e.errorf(a.Expr.Range(), "Invalid name", "", "Key %q makes no name for %s: %v.", k, it.title(), err)
			continue
		}
		each := cty.ObjectVal(map[string]cty.Value{"key": cty.StringVal(k), "value": values[i]})
		out = append(out, copyOf{it, name, k, each})
	}
	return out
}

// elements returns what a for_each goes over: a map's keys and values, or a set's or list's texts as both.
func (e *evaluator) elements(a *hclsyntax.Attribute) (keys []string, values []cty.Value) {
	v, ok := e.value(a.Expr, e.early, cty.DynamicPseudoType)
	if !ok {
		return nil, nil
	}
	ty := v.Type()
	isMap := ty.IsMapType() || ty.IsObjectType()
	if v.IsNull() || !(isMap || ty.IsSetType() || ty.IsListType() || ty.IsTupleType()) {
		e.errorf(a.Expr.Range(), "Wrong type", `Write for_each = { a = …, b = … } or ["a", "b"].`, "for_each needs a map, or a set or list of texts; this is %s.", kindOf(v))
		return nil, nil
	}
	seen := map[string]bool{}
	for it := v.ElementIterator(); it.Next(); {
		k, x := it.Element()
		if !isMap {
			k = x
		}
		if k.IsNull() || k.Type() != cty.String {
			e.errorf(a.Expr.Range(), "Wrong type", "", "for_each over a set or list needs texts; one element is %s.", kindOf(k))
			return nil, nil
		}
		if seen[k.AsString()] {
			e.errorf(a.Expr.Range(), "Duplicate name", "", "for_each has %q twice.", k.AsString())
			continue
		}
		seen[k.AsString()] = true
		keys, values = append(keys, k.AsString()), append(values, x)
	}
	if len(keys) > spec.MaxComponents {
		e.errorf(a.Expr.Range(), "Too many components", "", "for_each has %d elements; %d are allowed.", len(keys), spec.MaxComponents)
		return nil, nil
	}
	return keys, values
}

// refOf returns what KIND.NAME refers to: a component to its ports, an image to its name, and any block of the platform to
// its kind and name, so that one can't be taken for another.
func (e *evaluator) refOf(kind string) func(copyOf) cty.Value {
	switch kind {
	case "image":
		return func(c copyOf) cty.Value { return cty.ObjectVal(map[string]cty.Value{"name": cty.StringVal(c.name)}) }
	case "component":
		return e.componentRef
	}
	return func(c copyOf) cty.Value {
		return cty.ObjectVal(map[string]cty.Value{"kind": cty.StringVal(kind), "name": cty.StringVal(c.name)})
	}
}

func (e *evaluator) componentRef(c copyOf) cty.Value {
	ports := map[string]cty.Value{}
	for _, p := range c.kids["port"] {
		ports[p.label()] = e.portRef(c, p)
	}
	return cty.ObjectVal(map[string]cty.Value{"port": object(ports)})
}

// refs builds the object of a root, one attribute a block; with for_each, one more level by key.
func (e *evaluator) refs(kind string, of func(copyOf) cty.Value) cty.Value {
	out := map[string]cty.Value{}
	byKey := map[string]map[string]cty.Value{}
	for _, it := range e.m.root.kids[kind] {
		if it.attrs["for_each"] != nil {
			byKey[it.label()] = map[string]cty.Value{}
		}
	}
	for _, c := range e.copies[kind] {
		if m := byKey[c.label()]; m != nil {
			m[c.key] = of(c)
		} else {
			out[c.label()] = of(c)
		}
	}
	for label, m := range byKey {
		out[label] = object(m)
	}
	return object(out)
}

// portRef is what component.NAME.port.PORT refers to. Its number is unknown when it could not be evaluated.
func (e *evaluator) portRef(c copyOf, p *item) cty.Value {
	number := cty.UnknownVal(cty.Number)
	address := cty.UnknownVal(cty.String)
	if a := p.attrs["number"]; a != nil {
		if v, ok := e.value(a.Expr, c.in(e.early), cty.Number); ok && !v.IsNull() {
			number = v
			e.numbers[spec.PortRef{Component: spec.ComponentName(c.name), Port: spec.PortName(p.label())}] = v
			if i, err := wholeNumber(v); err == nil {
				address = cty.StringVal(fmt.Sprintf("%s:%d", c.name, i))
			}
		}
	}
	return cty.ObjectVal(map[string]cty.Value{
		"component": cty.StringVal(c.name), "port": cty.StringVal(p.label()),
		"number": number, "host": cty.StringVal(c.name), "address": address,
	})
}

func object(m map[string]cty.Value) cty.Value {
	if len(m) == 0 {
		return cty.EmptyObjectVal
	}
	return cty.ObjectVal(m)
}

func hintOf(err error) string { return fault.Hint(err) }
