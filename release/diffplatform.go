package release

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/platform"
)

// The kinds of changes of the platform's definition are the blocks of its language; what belongs to no block
// is of this kind.
const kindSettings = "settings"

// platformChanges is how two definitions differ; nil stands for none.
func platformChanges(a, b *platform.Definition) []Change {
	var before, after platform.Definition
	if a != nil {
		before = *a
	}
	if b != nil {
		after = *b
	}
	return slices.Concat(
		settingsChange(before, after),
		blocks("principal", before.Principals, after.Principals, func(p platform.Principal) string { return string(p.Name) }),
		blocks("group", before.Groups, after.Groups, func(g platform.Group) string { return string(g.Name) }),
		blocks("role", before.Roles, after.Roles, func(r platform.Role) string { return string(r.Name) }),
		grantChanges(before.Grants, after.Grants),
		blocks("approval", before.Approvals, after.Approvals, func(a platform.Approval) string { return a.Name }),
		blocks("freeze", before.Freezes, after.Freezes, func(f platform.Freeze) string { return f.Name }),
		blocks("policy", before.Policies, after.Policies, func(p platform.Policy) string { return p.Name }),
		blocks("exception", before.Exceptions, after.Exceptions, func(e platform.Exception) string { return e.Name }),
		blocks("break_glass", before.BreakGlass, after.BreakGlass, func(b platform.BreakGlass) string { return b.Name }),
		blocks("retention", before.Retentions, after.Retentions, func(r platform.Retention) string { return r.Name }),
		blocks("verification", before.Verifications, after.Verifications, func(v platform.Verification) string { return v.Name }),
		blocks("oidc", before.Issuers, after.Issuers, func(i platform.Issuer) string { return i.Name }),
		blocks("witness", before.Witnesses, after.Witnesses, func(w platform.Witness) string { return w.Name }),
	)
}

// settings are the fields of a definition that are no list of blocks.
func settings(d platform.Definition) reflect.Value {
	return reflect.ValueOf(struct {
		Quorum   int      `json:"witness_quorum"`
		Auditors []string `json:"auditors"`
	}{d.Quorum, d.Auditors})
}

func settingsChange(a, b platform.Definition) []Change {
	cs := fieldCauses(settings(a), settings(b))
	if len(cs) == 0 {
		return nil
	}
	return []Change{{Kind: kindSettings, Name: "platform", Action: Replace, Causes: cs}}
}

// blocks compares two lists whose elements have names.
func blocks[T any](kind string, a, b []T, name func(T) string) []Change {
	return pairs(byName(a, name), byName(b, name), func(n string, old, new *T) (Change, bool) { return blockChange(kind, n, old, new) })
}

// blockChange says what becomes of a block. Also one that comes or goes is told field by field: whom a grant is for is what
// there is to look at.
func blockChange[T any](kind, name string, old, new *T) (Change, bool) {
	c := Change{Kind: kind, Name: name, Action: Replace}
	var a, b T
	switch {
	case old == nil:
		c.Action, b = Add, *new
	case new == nil:
		c.Action, a = Remove, *old
	default:
		a, b = *old, *new
	}
	c.Causes = fieldCauses(reflect.ValueOf(a), reflect.ValueOf(b))
	return c, old == nil || new == nil || len(c.Causes) > 0
}

// fieldCauses lists every field in which two values of one struct differ, in the order of the struct; but its name, which is the
// change's.
func fieldCauses(a, b reflect.Value) []Cause {
	var out []Cause
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
		if name == "name" {
			continue
		}
		out = append(out, valueCauses(name, a.Field(i).Interface(), b.Field(i).Interface())...)
	}
	return out
}

func valueCauses(name string, a, b any) []Cause {
	if reflect.DeepEqual(a, b) {
		return nil
	}
	switch old := a.(type) {
	case map[string]string: // files
		return fileMapCauses(old, b.(map[string]string))
	case int64:
		if label, ok := strings.CutSuffix(name, "_ms"); ok {
			return field(label, millisText(old), millisText(b.(int64)))
		}
	case time.Time:
		return field(name, timeText(old), timeText(b.(time.Time)))
	}
	if reflect.TypeOf(a).Kind() == reflect.Slice {
		if cs := listCauses(name, elements(a), elements(b)); len(cs) > 0 {
			return cs
		}
	}
	return field(name, a, b)
}

func millisText(ms int64) string {
	if ms == 0 {
		return ""
	}
	s := (time.Duration(ms) * time.Millisecond).String()
	if whole, ok := strings.CutSuffix(s, "m0s"); ok {
		s = strings.TrimSuffix(whole+"m", "h0m") + map[bool]string{true: "h"}[strings.HasSuffix(whole, "h0")]
	}
	return s
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}

// elements are those of a list, each as JSON.
func elements(list any) []string {
	v := reflect.ValueOf(list)
	out := make([]string, v.Len())
	for i := range out {
		b, err := json.Marshal(v.Index(i).Interface())
		if err != nil { // see digestOf
			panic(err)
		}
		out[i] = string(b)
	}
	return out
}

// listCauses is which elements a list lost and got: none when only their order differs.
func listCauses(name string, a, b []string) []Cause {
	var out []Cause
	for _, e := range a {
		if !slices.Contains(b, e) {
			out = append(out, Cause{Field: name, Old: &e})
		}
	}
	for _, e := range b {
		if !slices.Contains(a, e) {
			out = append(out, Cause{Field: name, New: &e})
		}
	}
	return out
}

// fileMapCauses compares the files of a policy by their lines.
func fileMapCauses(a, b map[string]string) []Cause {
	list := func(files map[string]string) []File {
		var out []File
		for _, name := range slices.Sorted(maps.Keys(files)) {
			out = append(out, File{Path: name, Text: files[name]})
		}
		return out
	}
	return files(list(a), list(b))
}

// grantChanges compares grants, which have no names: those that are on both sides are left out, and what is left of a role is
// compared in its order. The order of grants means nothing.
func grantChanges(a, b []platform.Grant) []Change {
	left := func(of, without []platform.Grant) map[string]*platform.Grant {
		unmatched := slices.Clone(without)
		out, n := map[string]*platform.Grant{}, map[platform.RoleName]int{}
		for _, g := range of {
			if i := slices.IndexFunc(unmatched, func(o platform.Grant) bool { return reflect.DeepEqual(o, g) }); i >= 0 {
				unmatched = slices.Delete(unmatched, i, i+1)
				continue
			}
			name := string(g.Role)
			if n[g.Role]++; n[g.Role] > 1 {
				name = fmt.Sprintf("%s (%d)", g.Role, n[g.Role])
			}
			out[name] = &g
		}
		return out
	}
	return pairs(left(a, b), left(b, a), func(n string, old, new *platform.Grant) (Change, bool) { return blockChange("grant", n, old, new) })
}
