// Package drift tells how what runs differs from what was released.
//
// An instance is a set of facts: of each kind some fields, each with a value. What a release implies is such a set, and what a host
// measures from outside of the instance is another; Compare is their difference, and nothing else is a finding. Values are text that
// people can read, and equal facts have equal text.
//
//	kind "mount", field "/etc/hosts", value "tmpfs ro,nosuid,nodev,noexec"
//	kind "limit", field "pids", value "64"
//
// What a release leaves to the program (its children, the title that it gives itself, ports that only it decides on among the declared)
// is no fact: a host does not tell it.
package drift

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
)

// Kind is the kind of a fact.
type Kind string

// The kinds.
const (
	Root       Kind = "root"       // the file that the root is mounted from, its mount, and what protects both
	Process    Kind = "process"    // the first: that it is there, what it was started with, that nobody traces it; the others by number: their programs and rights
	Variable   Kind = "variable"   // an environment variable that it was started with
	User       Kind = "user"       // users and groups of the first process
	Capability Kind = "capability" // sets of capabilities
	Confine    Kind = "confinement"
	Namespace  Kind = "namespace"
	Mount      Kind = "mount"
	Limit      Kind = "limit"    // of the cgroup
	Port       Kind = "port"     // a listener
	File       Kind = "file"     // a file that was put into the instance, the hosts file among them
	Writable   Kind = "writable" // what is executable in a scratch

	// Beside the instances, of the machine (beside.go).
	Table    Kind = "table"    // the route table in force
	Gateway  Kind = "gateway"  // the gateway's process, and the way to it
	Listener Kind = "listener" // the sockets on which the machine is reached
	Stray    Kind = "stray"    // what has the marks of an instance and is none that the host made
	Orphan   Kind = "orphan"   // an instance that the host made and the ledger does not know
)

// controls are those of NIST SP 800-53 rev. 5 that a difference of the kind concerns.
var controls = map[Kind][]string{
	Root:       {"CM-6", "SI-7", "SI-7(1)"},
	Process:    {"CM-7", "SI-7"},
	Variable:   {"CM-6", "SI-7"},
	User:       {"AC-6", "CM-6"},
	Capability: {"AC-6", "CM-7"},
	Confine:    {"AC-6", "CM-6", "SC-39"},
	Namespace:  {"CM-6", "SC-39"},
	Mount:      {"CM-6", "SI-7"},
	Limit:      {"CM-6", "SC-6"},
	Port:       {"CM-7", "SC-7"},
	File:       {"CM-6", "SI-7"},
	Writable:   {"CM-7", "SI-7"},
	Table:      {"CM-6", "SC-7", "SI-7"},
	Gateway:    {"CM-6", "SC-7", "SI-7"},
	Listener:   {"CM-7", "SC-7"},
	Stray:      {"CM-7", "CM-8", "SI-4"},
	Orphan:     {"CM-7", "CM-8", "SI-4"},
}

// Controls returns the controls that a difference of the kind concerns.
func (k Kind) Controls() []string { return slices.Clone(controls[k]) }

// Fact is one thing about an instance.
type Fact struct {
	Kind  Kind   `json:"kind"`
	Field string `json:"field,omitempty"`
	Value string `json:"value"` // never ""
}

// Facts are sorted by kind and field, and have each field once.
type Facts struct{ list []Fact }

// Of returns the facts. Of two with the same kind and field, the values count as one, joined.
func Of(list ...Fact) Facts {
	sorted := slices.Clone(list)
	slices.SortFunc(sorted, compare)
	var out []Fact
	for _, f := range sorted {
		if f.Value == "" {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Kind == f.Kind && out[n-1].Field == f.Field {
			out[n-1].Value += " and " + f.Value
			continue
		}
		out = append(out, f)
	}
	return Facts{out}
}

func compare(a, b Fact) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Value, b.Value))
}

// List returns the facts, sorted.
func (f Facts) List() []Fact { return slices.Clone(f.list) }

// Len returns how many there are.
func (f Facts) Len() int { return len(f.list) }

// MarshalJSON implements json.Marshaler: the sorted list.
func (f Facts) MarshalJSON() ([]byte, error) {
	if f.list == nil {
		return []byte("[]"), nil
	}
	return json.Marshal(f.list)
}

// UnmarshalJSON implements json.Unmarshaler. It takes nothing that MarshalJSON would not write.
func (f *Facts) UnmarshalJSON(b []byte) error {
	var list []Fact
	if err := json.Unmarshal(b, &list); err != nil {
		return fault.As(fault.Invalid, err)
	}
	for n, x := range list {
		if x.Value == "" || n > 0 && (list[n-1].Kind > x.Kind || list[n-1].Kind == x.Kind && list[n-1].Field >= x.Field) {
			return fault.Errorf(fault.Invalid, "facts are not sorted, or one has no value")
		}
	}
	f.list = list
	return nil
}

// Compare returns every difference: none when want and got have the same facts.
func Compare(want, got Facts) []instance.Finding {
	var out []instance.Finding
	add := func(f Fact, expected, found string) {
		out = append(out, instance.Finding{
			Kind: string(f.Kind), Field: f.Field, Expected: expected, Found: found, Controls: f.Kind.Controls(),
		})
	}
	w, g := want.list, got.list
	for len(w)+len(g) > 0 {
		switch {
		case len(g) == 0 || len(w) > 0 && before(w[0], g[0]):
			add(w[0], w[0].Value, "")
			w = w[1:]
		case len(w) == 0 || before(g[0], w[0]):
			add(g[0], "", g[0].Value)
			g = g[1:]
		default:
			if w[0].Value != g[0].Value {
				add(w[0], w[0].Value, g[0].Value)
			}
			w, g = w[1:], g[1:]
		}
	}
	return out
}

func before(a, b Fact) bool { return a.Kind < b.Kind || a.Kind == b.Kind && a.Field < b.Field }

// ConfirmAfter is between the two looks that something needs to count.
const ConfirmAfter = 200 * time.Millisecond

// Confirmed returns what the second look found and the first look had found as well: a process that was about to become what it
// should be differs for a moment, and what differs for good is found both times.
func Confirmed[F interface{ Key() string }](first, second []F) []F {
	var out []F
	for _, f := range second {
		if slices.ContainsFunc(first, func(g F) bool { return g.Key() == f.Key() }) {
			out = append(out, f)
		}
	}
	return out
}
