package spec

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Problem is something wrong with an App. Summary is one of few constant texts, to search for.
type Problem struct {
	Summary    string
	Detail     string
	Suggestion string // "" when there is none
	Field      string // the attribute that it is about; "" is the whole
	Range      Range  // of the block
}

// checker collects the problems of one App.
type checker struct {
	app      App
	ports    map[PortRef]Port
	byName   map[ComponentName]Component
	problems []Problem
}

// Check returns everything that is wrong with the app, in the order of its parts. It is what no single
// value shows: references, cycles, and things that exclude each other.
func (a App) Check() []Problem {
	c := &checker{app: a, ports: map[PortRef]Port{}, byName: map[ComponentName]Component{}}
	for _, comp := range a.Components {
		c.byName[comp.Name] = comp
		for _, p := range comp.Ports {
			c.ports[PortRef{comp.Name, p.Name}] = p
		}
	}
	if len(a.Components) > MaxComponents {
		c.add(a.Components[0].Range, "", "Too many components", "", "The app has %d components; %d are allowed.", len(a.Components), MaxComponents)
	}
	c.images()
	for _, comp := range a.Components {
		c.component(comp)
	}
	c.usesCycles()
	c.routes()
	c.rollout()
	return c.problems
}

func (c *checker) add(r Range, field, summary, suggestion, format string, args ...any) {
	c.problems = append(c.problems, Problem{Summary: summary, Detail: fmt.Sprintf(format, args...), Suggestion: suggestion, Field: field, Range: r})
}

func (c *checker) images() {
	byName := map[ImageName]Image{}
	for _, img := range c.app.Images {
		byName[img.Name] = img
	}
	next := func(n ImageName) []ImageName {
		if l := byName[n].Layers; l != nil && l.Base != "" {
			return []ImageName{l.Base}
		}
		return nil
	}
	for _, cycle := range cycles(slices.Sorted(maps.Keys(byName)), next) {
		c.add(byName[cycle[0]].Range, "base", "Cycle of images", "Begin one of them from an empty base or another image.",
			"Images can't be each other's base: %s.", arrows(cycle))
	}
	for _, img := range c.app.Images {
		if img.Layers == nil {
			continue
		}
		for _, dst := range slices.Sorted(maps.Values(img.Layers.Copy)) {
			c.absolute(img.Range, "copy destination", dst)
		}
	}
	for _, comp := range c.app.Components {
		if _, ok := byName[comp.Image]; !ok {
			c.add(comp.Range, "image", "Unknown image", "", "Component %q runs image %q, which is not defined.", comp.Name, comp.Image)
		}
	}
}

func (c *checker) component(comp Component) {
	if comp.Replicas < 0 || comp.Replicas > MaxReplicas {
		c.add(comp.Range, "replicas", "Invalid count", "", "Component %q has %d replicas; want 0 to %d.", comp.Name, comp.Replicas, MaxReplicas)
	}
	if len(comp.Volumes) > 0 && comp.Replicas > 1 {
		c.add(comp.Range, "replicas", "Volume with replicas", "Use for_each, so that each has a volume of its own.",
			"Component %q has a volume and %d replicas; a volume belongs to one instance at a time.", comp.Name, comp.Replicas)
	}
	for _, k := range slices.Sorted(maps.Keys(comp.Env)) {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(comp.Env[k], "\x00") || len(comp.Env[k]) > MaxEnvBytes {
			c.add(comp.Range, "env", "Invalid environment variable", "", "Variable %q of component %q can't be given to a process: it has a NUL, its name is empty or has '=', or its value is longer than %d bytes.", k, comp.Name, MaxEnvBytes)
		}
	}
	c.numbers(comp)
	c.paths(comp)
	c.uses(comp)
	c.health(comp)
}

func (c *checker) numbers(comp Component) {
	taken := map[int]PortName{}
	for _, p := range comp.Ports {
		if p.Number < 1 || p.Number > 65535 {
			c.add(p.Range, "number", "Invalid port", "", "Port %q is %d; want 1 to 65535.", p.Name, p.Number)
		} else if other, ok := taken[p.Number]; ok {
			c.add(p.Range, "number", "Duplicate port", "", "Ports %q and %q of component %q are both %d.", other, p.Name, comp.Name, p.Number)
		}
		taken[p.Number] = p.Name
	}
}

func (c *checker) absolute(r Range, what, p string) bool {
	if path.IsAbs(p) && path.Clean(p) == p && !strings.ContainsRune(p, 0) {
		return true
	}
	suggestion := ""
	if p != "" {
		suggestion = fmt.Sprintf("Did you mean %q?", path.Clean("/"+p))
	}
	c.add(r, "", "Invalid path", suggestion, "The %s %q is not a clean absolute path.", what, p)
	return false
}

// reserved are the folders that the host itself mounts.
var reserved = []string{"/proc", "/sys", "/dev"}

func (c *checker) paths(comp Component) {
	taken := map[string]string{}
	place := func(r Range, what, p string) {
		if !c.absolute(r, what, p) {
			return
		}
		if p == "/" || slices.ContainsFunc(reserved, func(d string) bool { return p == d || strings.HasPrefix(p, d+"/") }) {
			c.add(r, "", "Reserved path", "", "The %s %q is the system's own place.", what, p)
		}
		if other, ok := taken[p]; ok {
			c.add(r, "", "Duplicate path", "", "Component %q has both a %s and a %s at %q.", comp.Name, other, what, p)
		}
		taken[p] = what
	}
	for _, v := range comp.Volumes {
		place(comp.Range, "volume", v.Path)
	}
	for _, s := range comp.Scratches {
		place(comp.Range, "scratch", s.Path)
	}
	for _, f := range comp.Files {
		place(f.Range, "file", f.Path)
		if len(f.Content) > MaxFileBytes {
			c.add(f.Range, "", "File too large", "Put it into the image instead.", "File %q has %d bytes; %d are allowed.", f.Path, len(f.Content), MaxFileBytes)
		}
	}
	for _, s := range comp.Secrets {
		place(s.Range, "secret", s.Path)
		if err := CheckName(s.Name); err != nil {
			suggestion := ""
			if near := SuggestName(s.Name); near != "" {
				suggestion = fmt.Sprintf("Did you mean %q?", near)
			}
			c.add(s.Range, "name", "Invalid name", suggestion, "Secret %q of component %q is named %q: %v.", s.Path, comp.Name, s.Name, err)
		}
	}
}

func (c *checker) uses(comp Component) {
	seen := map[PortRef]bool{}
	for _, u := range comp.Uses {
		switch {
		case u.Component == comp.Name:
			c.add(comp.Range, "uses", "Component uses itself", "Remove it: an instance reaches its own ports at 127.0.0.1.", "Component %q uses its own port %q.", comp.Name, u.Port)
		case seen[u]:
			c.add(comp.Range, "uses", "Duplicate use", "", "Component %q uses port %q of %q twice.", comp.Name, u.Port, u.Component)
		default:
			c.target(comp.Range, "uses", fmt.Sprintf("Component %q", comp.Name), u)
		}
		seen[u] = true
	}
	for _, e := range comp.Egress {
		if err := checkEgress(e); err != "" {
			c.add(comp.Range, "egress", "Invalid egress", `Write it as "api.example.com:443" or "*.example.com:443".`, "Egress %q of component %q: %s.", e, comp.Name, err)
		}
	}
}

func (c *checker) target(r Range, field, who string, u PortRef) {
	if _, ok := c.ports[u]; !ok {
		c.add(r, field, "Unknown port", "", "%s refers to port %q of component %q, which is not defined.", who, u.Port, u.Component)
	}
}

func checkEgress(e string) string {
	host, port, ok := cutLast(e, ":")
	if !ok {
		return "the port is missing"
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "the port is not a number from 1 to 65535"
	}
	name := strings.TrimPrefix(host, "*.")
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return ""
	}
	if !isHost(name) {
		return "the host is not a host name"
	}
	return ""
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// isHost reports whether s is a host name of DNS labels in lower case.
func isHost(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-') {
				return false
			}
		}
	}
	return true
}

func (c *checker) health(comp Component) {
	h := comp.Health
	if h == nil {
		return
	}
	var port PortName
	switch {
	case h.HTTP != nil:
		port = h.HTTP.Port
		if !strings.HasPrefix(h.HTTP.Path, "/") {
			c.add(comp.Range, "path", "Invalid path", "", "The health path %q of component %q does not begin with a slash.", h.HTTP.Path, comp.Name)
		}
	case h.TCP != nil:
		port = h.TCP.Port
	default:
		return
	}
	c.target(comp.Range, "port", "The health check", PortRef{comp.Name, port})
}

func (c *checker) usesCycles() {
	next := func(n ComponentName) []ComponentName {
		var out []ComponentName
		for _, u := range c.byName[n].Uses {
			if u.Component != n {
				out = append(out, u.Component)
			}
		}
		return out
	}
	for _, cycle := range cycles(slices.Sorted(maps.Keys(c.byName)), next) {
		c.add(c.byName[cycle[0]].Range, "uses", "Cycle of uses", "Remove one of these, so that there is an order to start in.",
			"Components can't use each other in a circle: %s.", arrows(cycle))
	}
}

func (c *checker) routes() {
	taken := map[string]Route{}
	for _, r := range c.app.Routes {
		c.route(r)
		key := r.Host + r.Path
		if r.TCP != "" {
			key = "tcp " + r.TCP
		}
		if other, ok := taken[key]; ok {
			c.add(r.Range, "host", "Duplicate route", "Give one of them another host or path.", "Routes %q and %q both take %s.", other.Name, r.Name, key)
		}
		taken[key] = r
	}
}

func (c *checker) route(r Route) {
	c.target(r.Range, "to", fmt.Sprintf("Route %q", r.Name), r.To)
	switch {
	case r.TCP != "" && (r.Host != "" || r.TLS != ""):
		c.add(r.Range, "tcp", "Conflicting attributes", "Make it two routes.", "Route %q listens on TCP and has a host, a path or TLS, which only HTTP has.", r.Name)
	case r.TCP != "":
		if _, err := netip.ParseAddrPort(r.TCP); err != nil {
			c.add(r.Range, "tcp", "Invalid address", `Write it as "127.0.0.1:5432".`, "Route %q: %v.", r.Name, err)
		}
	case strings.HasPrefix(r.Host, "*."):
		c.add(r.Range, "host", "Invalid host", "Write a route for each host.", "Route %q: a route has one host; %q would be many.", r.Name, r.Host)
	case !isHost(r.Host):
		c.add(r.Range, "host", "Invalid host", "", "Route %q: %q is not a host name in lower case.", r.Name, r.Host)
	case !strings.HasPrefix(r.Path, "/") || strings.ContainsAny(r.Path, "?# "):
		c.add(r.Range, "path", "Invalid path", "", "Route %q: %q is not a path that begins with a slash.", r.Name, r.Path)
	}
}

func (c *checker) rollout() {
	env := c.app.Env
	r := env.Rollout
	if r.MaxParallel < 1 {
		c.add(env.Range, "max_parallel", "Invalid count", "Write 1 or more: with 0 nothing could ever start.", "Environment %q has max_parallel %d.", env.Name, r.MaxParallel)
	}
	if r.HealthyDeadline <= r.MinHealthyTime {
		c.add(env.Range, "healthy_deadline", "Deadline too short", "", "In environment %q healthy_deadline (%s) must be more than min_healthy_time (%s).", env.Name, r.HealthyDeadline, r.MinHealthyTime)
	}
	if r.ProgressDeadline < r.HealthyDeadline {
		c.add(env.Range, "progress_deadline", "Deadline too short", "", "In environment %q progress_deadline (%s) must be at least healthy_deadline (%s).", env.Name, r.ProgressDeadline, r.HealthyDeadline)
	}
	for i, p := range r.Canary {
		if p < 1 || p > 99 || (i > 0 && p <= r.Canary[i-1]) {
			c.add(env.Range, "canary", "Invalid canary", "Write growing percents, such as [10, 50]; 100 follows by itself.", "Environment %q has canary %v; want numbers from 1 to 99, each more than the one before.", env.Name, r.Canary)
			return
		}
	}
}

// cycles returns each cycle of a graph once, beginning and ending with its smallest node. nodes are sorted.
func cycles[N ~string](nodes []N, next func(N) []N) [][]N {
	const inStack, done = 1, 2
	state := map[N]int{}
	var stack []N
	var found [][]N
	var visit func(N)
	visit = func(n N) {
		state[n] = inStack
		stack = append(stack, n)
		for _, m := range next(n) {
			switch state[m] {
			case inStack:
				found = append(found, rotate(stack[slices.Index(stack, m):]))
			case 0:
				visit(m)
			}
		}
		stack = stack[:len(stack)-1]
		state[n] = done
	}
	for _, n := range nodes {
		if state[n] == 0 {
			visit(n)
		}
	}
	return found
}

func rotate[N ~string](cycle []N) []N {
	i := slices.Index(cycle, slices.Min(cycle))
	out := append(slices.Clone(cycle[i:]), cycle[:i]...)
	return append(out, out[0])
}

// Cycle is a circle in a graph: its first node is its last one, too.
type Cycle struct{ Nodes []string }

// String prints the cycle as "a → b → a".
func (c Cycle) String() string { return arrows(c.Nodes) }

// Cycles returns the cycles of a graph, each once, beginning with its smallest node. nodes are sorted.
func Cycles(nodes []string, next func(string) []string) []Cycle {
	var out []Cycle
	for _, c := range cycles(nodes, next) {
		out = append(out, Cycle{c})
	}
	return out
}

func arrows[N ~string](cycle []N) string {
	parts := make([]string, len(cycle))
	for i, n := range cycle {
		parts[i] = string(n)
	}
	return strings.Join(parts, " → ")
}
