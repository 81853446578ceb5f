package release

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	linediff "github.com/rogpeppe/go-internal/diff"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/spec"
)

// Action is what becomes of a component or a route. There is no action that changes one in place.
type Action string

// The actions.
const (
	Add     Action = "add"
	Remove  Action = "remove"
	Replace Action = "replace" // start beside, then retire
	Scale   Action = "scale"   // more or fewer of the same instances
)

// Sign is how a plan shows the change: what starts with "+", what goes with "-", and "+/-" for both.
func (c Change) Sign() string {
	switch {
	case c.Action == Add || (c.Action == Scale && c.ToReplicas > c.FromReplicas):
		return "+"
	case c.Action == Replace:
		return "+/-"
	}
	return "-"
}

// Changes is how one release differs from another. Everything in it is sorted; the zero value is no difference.
type Changes struct {
	From       digest.Digest `json:"from,omitempty"` // of the records; "" is no release
	To         digest.Digest `json:"to,omitempty"`
	Components []Change      `json:"components,omitempty"`
	Routes     []Change      `json:"routes,omitempty"`
	Rollout    []Cause       `json:"rollout,omitempty"`  // differences in how, not in what
	Platform   []Change      `json:"platform,omitempty"` // of the platform's definition, by kind and name
}

// Change is what becomes of one component or route, or of one block of the platform's definition, and why.
type Change struct {
	Kind         string        `json:"kind,omitempty"` // of a block of the platform's definition: "principal", "grant", …
	Name         string        `json:"name"`
	Action       Action        `json:"action"`
	From         digest.Digest `json:"from,omitempty"` // of the component
	To           digest.Digest `json:"to,omitempty"`
	FromReplicas int           `json:"from_replicas,omitempty"`
	ToReplicas   int           `json:"to_replicas,omitempty"`
	Causes       []Cause       `json:"causes,omitempty"`
}

// Cause is one field that differs. Old or New is nil when the field is not there on that side.
type Cause struct {
	Field   string  `json:"field"` // "env LOG_LEVEL", "image", "file /etc/web/config.yaml"
	Old     *string `json:"old,omitempty"`
	New     *string `json:"new,omitempty"`
	Diff    string  `json:"diff,omitempty"`    // files of text: unified, by lines
	Added   int     `json:"added,omitempty"`   // lines
	Removed int     `json:"removed,omitempty"` // lines
}

// Empty reports whether the releases run the same, in the same way.
func (c Changes) Empty() bool {
	return len(c.Components)+len(c.Routes)+len(c.Rollout)+len(c.Platform) == 0
}

// Find returns the change of a component.
func (c Changes) Find(name spec.ComponentName) (Change, bool) {
	for _, ch := range c.Components {
		if ch.Name == string(name) {
			return ch, true
		}
	}
	return Change{}, false
}

// Diff returns how b differs from a. The zero Record stands for an environment that runs nothing.
func Diff(a, b Record) Changes {
	from, to := digestOf(a), digestOf(b)
	out := Changes{}
	if from != to {
		out = Compare(a, b)
	}
	out.From, out.To = from, to
	return out
}

// Compare is Diff without From and To, for those who know them already: to name a large record takes time.
func Compare(a, b Record) Changes {
	var out Changes
	out.Components = pairs(byName(a.Components, placedName), byName(b.Components, placedName), componentChange)
	out.Routes = pairs(byName(a.Routes, routeName), byName(b.Routes, routeName), routeChange)
	if a.V != 0 && b.V != 0 {
		out.Rollout = slices.Concat(rolloutCauses(a.Rollout, b.Rollout), setting("on_drift", a.Response(), b.Response()), snapshotCauses(a, b))
	}
	out.Platform = platformChanges(a.Platform, b.Platform)
	return out
}

func digestOf(r Record) digest.Digest {
	if r.V == 0 {
		return ""
	}
	d, err := r.Digest()
	if err != nil { // only a NaN or a channel could not be encoded, and a record has neither
		panic(err)
	}
	return d
}

func placedName(p Placed) string { return string(p.Component.Name) }
func routeName(r Route) string   { return string(r.Name) }

func byName[T any](list []T, name func(T) string) map[string]*T {
	out := make(map[string]*T, len(list))
	for i := range list {
		out[name(list[i])] = &list[i]
	}
	return out
}

// pairs calls of for each name on either side, in order; nil is for a side that lacks it.
func pairs[T, R any](a, b map[string]*T, of func(name string, old, new *T) (R, bool)) []R {
	names := slices.Collect(maps.Keys(a))
	for n := range b {
		if a[n] == nil {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	var out []R
	for _, n := range names {
		if r, differs := of(n, a[n], b[n]); differs {
			out = append(out, r)
		}
	}
	return out
}

func componentChange(name string, old, new *Placed) (Change, bool) {
	ch := Change{Name: name}
	if old != nil && new != nil && reflect.DeepEqual(*old, *new) {
		return ch, false // most are, and their digests need not be computed
	}
	if old != nil {
		ch.From, ch.FromReplicas = componentDigest(old.Component), old.Replicas
	}
	if new != nil {
		ch.To, ch.ToReplicas = componentDigest(new.Component), new.Replicas
	}
	switch {
	case old == nil:
		ch.Action = Add
	case new == nil:
		ch.Action = Remove
	case ch.From != ch.To:
		ch.Action = Replace
		ch.Causes = causes(old.Component, new.Component)
	case old.Replicas != new.Replicas:
		ch.Action = Scale
	default:
		return ch, false
	}
	if old != nil && new != nil {
		ch.Causes = append(ch.Causes, setting("replicas", old.Replicas, new.Replicas)...)
	}
	return ch, true
}

func componentDigest(c Component) digest.Digest {
	d, err := c.Digest()
	if err != nil { // see digestOf
		panic(err)
	}
	return d
}

func routeChange(name string, old, new *Route) (Change, bool) {
	ch := Change{Name: name, Action: Replace}
	switch {
	case old == nil:
		ch.Action = Add
	case new == nil:
		ch.Action = Remove
	default:
		ch.Causes = slices.Concat(field("host", old.Host, new.Host), field("path", old.Path, new.Path), field("tls", old.TLS, new.TLS),
			field("tcp", old.TCP, new.TCP), field("to", target(*old), target(*new)))
	}
	return ch, old == nil || new == nil || len(ch.Causes) > 0
}

func target(r Route) string { return fmt.Sprintf("%s.%s:%d", r.Component, r.Port, r.Number) }

// causes lists every field in which two components of one name differ.
func causes(a, b Component) []Cause {
	return slices.Concat(
		imageCause(a, b), field("args", a.Args, b.Args), env(a.Env, b.Env), field("workdir", a.WorkDir, b.WorkDir), field("user", a.User, b.User),
		keyed("uses", a.Uses, b.Uses, func(u Use) string { return fmt.Sprintf("%s.%s", u.Component, u.Port) }),
		keyed("egress", a.Egress, b.Egress, func(e string) string { return e }),
		files(a.Files, b.Files),
		secrets(a.Secrets, b.Secrets),
		keyed("port", a.Ports, b.Ports, func(p Port) string { return string(p.Name) }),
		field("health", a.Health, b.Health),
		keyed("scratch", a.Scratches, b.Scratches, func(s Scratch) string { return s.Path }),
		keyed("volume", a.Volumes, b.Volumes, func(v Volume) string { return string(v.Name) }),
		field("cpu_millis", a.Resources.CPUMillis, b.Resources.CPUMillis), field("memory_bytes", a.Resources.MemoryBytes, b.Resources.MemoryBytes),
		field("pids", a.Resources.PIDs, b.Resources.PIDs),
		field("stop_signal", a.StopSignal, b.StopSignal), field("stop_ms", a.StopMillis, b.StopMillis), field("isolation", a.Isolation, b.Isolation),
		field("dynamic_ports", a.DynamicPorts, b.DynamicPorts),
	)
}

// imageCause is of the image; of the root only when the image is the same.
func imageCause(a, b Component) []Cause {
	if a.Image == b.Image {
		return field("root", a.Root, b.Root)
	}
	return field("image", a.Image, b.Image)
}

// field is the cause when one field differs; unset fields are absent.
func field[T any](name string, old, new T) []Cause {
	o, n := text(old), text(new)
	if o == n || (o != nil && n != nil && *o == *n) {
		return nil
	}
	return []Cause{{Field: name, Old: o, New: n}}
}

// text writes a value for people: JSON, or nil when it is unset.
func text(v any) *string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // see digestOf
	}
	switch s := string(b); s {
	case `""`, "null", "0", "false", "[]", "{}":
		return nil
	default:
		return &s
	}
}

func env(a, b map[string]string) []Cause {
	names := slices.Sorted(maps.Keys(a))
	for n := range b {
		if _, ok := a[n]; !ok {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	var out []Cause
	for _, n := range names {
		o, inOld := a[n]
		v, inNew := b[n]
		if inOld == inNew && o == v {
			continue
		}
		out = append(out, Cause{Field: "env " + n, Old: quoted(o, inOld), New: quoted(v, inNew)})
	}
	return out
}

func quoted(s string, ok bool) *string {
	if !ok {
		return nil
	}
	b, _ := json.Marshal(s) // a string always has JSON
	return new(string(b))
}

// keyed compares two lists whose elements have names.
func keyed[T any](kind string, a, b []T, name func(T) string) []Cause {
	got := pairs(byName(a, name), byName(b, name), func(n string, old, new *T) ([]Cause, bool) {
		cs := field(kind+" "+n, old, new)
		return cs, len(cs) > 0
	})
	return slices.Concat(got...)
}

// secrets compares the secrets that are delivered, and tells a new version of one by its name.
func secrets(a, b []Secret) []Cause {
	path := func(s Secret) string { return s.Path }
	got := pairs(byName(a, path), byName(b, path), func(p string, old, new *Secret) ([]Cause, bool) {
		if old == nil || new == nil || old.Name != new.Name {
			cs := field("secret "+p, old, new)
			return cs, len(cs) > 0
		}
		name := "secret " + new.Name + " "
		cs := slices.Concat(field(name+"version", old.Version, new.Version), field(name+"mode", octal(old.Mode), octal(new.Mode)), field(name+"user", old.User, new.User))
		return cs, len(cs) > 0
	})
	return slices.Concat(got...)
}

func files(a, b []File) []Cause {
	name := func(f File) string { return f.Path }
	got := pairs(byName(a, name), byName(b, name), func(n string, old, new *File) ([]Cause, bool) {
		cs := fileCauses(n, old, new)
		return cs, len(cs) > 0
	})
	return slices.Concat(got...)
}

func fileCauses(name string, old, new *File) []Cause {
	var o, n File
	if old != nil {
		o = *old
	}
	if new != nil {
		n = *new
	}
	var out []Cause
	if o.Text != n.Text || o.Base64 != n.Base64 || old == nil || new == nil {
		out = append(out, fileCause(name, old, new))
	}
	if old != nil && new != nil {
		out = slices.Concat(out, field("file "+name+" mode", octal(o.Mode), octal(n.Mode)), field("file "+name+" user", o.User, n.User))
	}
	return out
}

func octal(mode uint32) string { return fmt.Sprintf("%04o", mode) }

// fileCause shows the contents' lines when both are text, else their digests.
func fileCause(name string, old, new *File) Cause {
	out := Cause{Field: "file " + name}
	a, aText := contentOf(old)
	b, bText := contentOf(new)
	if old != nil {
		out.Old = digestText(digest.Of(a))
	}
	if new != nil {
		out.New = digestText(digest.Of(b))
	}
	if !aText || !bText {
		return out
	}
	out.Diff = unified(name, a, b)
	for line := range strings.Lines(body(out.Diff)) {
		switch line[0] {
		case '+':
			out.Added++
		case '-':
			out.Removed++
		}
	}
	return out
}

func digestText(d digest.Digest) *string { return new(string(d)) }

func contentOf(f *File) (content []byte, isText bool) {
	if f == nil {
		return nil, true
	}
	b, err := f.Content()
	return b, err == nil && utf8.Valid(b) && !bytes.ContainsRune(b, 0)
}

func unified(name string, a, b []byte) string {
	d := linediff.Diff("a"+name, a, "b"+name, b)
	_, rest, _ := bytes.Cut(d, []byte("\n")) // "diff old new" is no part of the format
	return string(rest)
}

// body is a unified diff without its two lines of names.
func body(diff string) string {
	for range 2 {
		_, diff, _ = strings.Cut(diff, "\n")
	}
	return diff
}

// String is the cause in one line: `env LOG_LEVEL: "info" → "warn"`, `file /etc/web/config.yaml: 1 line added, 1 removed`.
func (c Cause) String() string {
	switch {
	case c.Added+c.Removed > 0:
		return fmt.Sprintf("%s: %s added, %d removed", c.Field, lines(c.Added), c.Removed)
	case c.Old == nil && c.New == nil:
		return c.Field
	case c.Old == nil:
		return fmt.Sprintf("%s: %s, new", c.Field, short(*c.New))
	case c.New == nil:
		return fmt.Sprintf("%s: %s, gone", c.Field, short(*c.Old))
	}
	return fmt.Sprintf("%s: %s → %s", c.Field, short(*c.Old), short(*c.New))
}

func lines(n int) string {
	if n == 1 {
		return "1 line"
	}
	return fmt.Sprintf("%d lines", n)
}

const maxValue = 120

// short cuts a value to what fits into a line; digests to twelve digits.
func short(s string) string {
	if d, err := digest.Parse(strings.Trim(s, `"`)); err == nil {
		return d.Short()
	}
	if r := []rune(s); len(r) > maxValue {
		return string(r[:maxValue]) + "…"
	}
	return s
}

// String renders the changes for people: what starts with +, what goes with -, what is replaced with +/-, each
// with its causes, and the lines of files.
func (c Changes) String() string {
	var b strings.Builder
	for _, ch := range c.Components {
		ch.write(&b, "component")
	}
	for _, ch := range c.Routes {
		ch.write(&b, "route")
	}
	if len(c.Rollout) > 0 {
		b.WriteString("  rollout settings\n")
		writeCauses(&b, c.Rollout)
	}
	for _, ch := range c.Platform {
		ch.write(&b, ch.Kind)
	}
	return b.String()
}

func (c Change) write(b *strings.Builder, what string) {
	fmt.Fprintf(b, "%3s %s %s", c.Sign(), what, c.Name)
	switch {
	case what == "route" || c.Kind != "":
	case c.FromReplicas == c.ToReplicas || c.Action == Add:
		fmt.Fprintf(b, " ×%d", c.ToReplicas)
	case c.Action == Remove:
		fmt.Fprintf(b, " ×%d", c.FromReplicas)
	default:
		fmt.Fprintf(b, " ×%d → ×%d", c.FromReplicas, c.ToReplicas)
	}
	switch {
	case c.From != "" && c.To != "" && c.From != c.To:
		fmt.Fprintf(b, "  %s → %s", c.From.Short(), c.To.Short())
	case c.From+c.To != "":
		fmt.Fprintf(b, "  %s", max(c.To, c.From).Short())
	}
	b.WriteByte('\n')
	writeCauses(b, c.Causes)
}

func writeCauses(b *strings.Builder, causes []Cause) {
	for _, c := range causes {
		fmt.Fprintf(b, "      %s\n", c)
		if c.Diff == "" {
			continue
		}
		for line := range strings.Lines(body(c.Diff)) {
			fmt.Fprintf(b, "        %s\n", strings.TrimRight(line, "\n"))
		}
	}
}

// setting is the cause when a setting differs that is always there, so that 0 and false are values.
func setting[T comparable](name string, old, new T) []Cause {
	if old == new {
		return nil
	}
	o, n := fmt.Sprint(old), fmt.Sprint(new)
	return []Cause{{Field: name, Old: &o, New: &n}}
}

// snapshotCauses tells for the components that both have which volumes are copied before a change and were not, and the reverse.
func snapshotCauses(a, b Record) (out []Cause) {
	before := byName(a.Components, placedName)
	for _, p := range b.Components {
		if old := before[placedName(p)]; old != nil {
			out = append(out, field("snapshots of "+placedName(p), old.Snapshots, p.Snapshots)...)
		}
	}
	return out
}

func rolloutCauses(a, b Rollout) []Cause {
	return slices.Concat(setting("max_parallel", a.MaxParallel, b.MaxParallel), field("canary", a.Canary, b.Canary),
		setting("min_healthy_ms", a.MinHealthyMillis, b.MinHealthyMillis), setting("healthy_deadline_ms", a.HealthyDeadlineMillis, b.HealthyDeadlineMillis),
		setting("progress_deadline_ms", a.ProgressDeadlineMillis, b.ProgressDeadlineMillis), setting("auto_revert", a.AutoRevert, b.AutoRevert),
		setting("keep_warm_ms", a.KeepWarmMillis, b.KeepWarmMillis), setting("drain_ms", a.DrainMillis, b.DrainMillis))
}
