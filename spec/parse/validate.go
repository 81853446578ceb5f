package parse

import (
	"slices"

	"github.com/hashicorp/hcl/v2"
)

// Validate reports everything that is wrong with the app in any of its environments, images that the lock does
// not pin, and, as warnings, what nothing refers to.
func (m *Module) Validate() Diagnostics {
	all := slices.Clone(m.found)
	for _, env := range m.Environments() {
		got := m.evaluate(env, nil)
		all = append(all, got.diags...)
		all = append(all, m.Pinned(got.app)...)
	}
	if !all.HasErrors() {
		all = append(all, m.unused()...)
	}
	return all.sorted()
}

// unused warns of variables, locals and images that nothing refers to.
func (m *Module) unused() Diagnostics {
	s := &sink{sources: m.sources}
	used := map[string]bool{}
	m.root.refer(used)
	for _, it := range m.root.kids["variable"] {
		s.unreferenced(used, "var", "variable", it.label(), it.head)
	}
	for _, it := range m.root.kids["locals"] {
		for name, a := range it.attrs {
			s.unreferenced(used, "local", "local value", name, a.NameRange)
		}
	}
	for _, it := range m.root.kids["image"] {
		s.unreferenced(used, "image", "image", it.label(), it.head)
	}
	return s.list
}

func (s *sink) unreferenced(used map[string]bool, root, what, name string, r hcl.Range) {
	if !used[root+"."+name] && !used[root] {
		s.warnf(r, "Unused "+what, "", "Nothing refers to %s %q.", what, name)
	}
}

// refer collects what the item's expressions refer to: "var.name", or "var" when the name is computed. A
// variable's own validations don't count.
func (it *item) refer(used map[string]bool) {
	if it.schema == variableBlock {
		return
	}
	for _, a := range it.attrs {
		for _, t := range a.Expr.Variables() {
			name, ok := "", false
			if len(t) > 1 {
				name, ok = stepName(t[1])
			}
			if ok {
				used[t.RootName()+"."+name] = true
			} else {
				used[t.RootName()] = true
			}
		}
	}
	for _, ks := range it.kids {
		for _, k := range ks {
			k.refer(used)
		}
	}
}
