package parse

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// environment evaluates what is left of the environment's block, once variables and locals have values.
func (e *evaluator) environment() spec.Environment {
	n := e.node(e.env, e.full)
	out := spec.Environment{Name: spec.EnvName(e.env.label()), PromoteFrom: spec.EnvName(n.text("promote_from"))}
	out.OnDrift = n.onDrift()
	e.promotion(n)
	e.environmentReplicas(n)
	out.Rollout = e.rollout(n.one("rollout"))
	out.Range = e.done(n)
	return out
}

// onDrift is what follows when an instance differs.
func (n *node) onDrift() spec.Response {
	var names []string
	for _, r := range spec.Responses() {
		names = append(names, string(r))
	}
	n.choice("on_drift", names...)
	return cmp.Or(spec.Response(n.text("on_drift")), spec.Replace)
}

// promotion checks that the environments promote from each other in no circle.
func (e *evaluator) promotion(n *node) {
	from := n.text("promote_from")
	if from == "" {
		return
	}
	if !slices.Contains(e.m.labels("environment"), from) {
		n.fail("promote_from", "Unknown environment", didYouMean(from, e.m.labels("environment")), "There is no environment %q.", from)
		return
	}
	next := func(name string) []string {
		for _, it := range e.m.root.kids["environment"] {
			if a := it.attrs["promote_from"]; it.label() == name && a != nil {
				if v, ok := (&evaluator{m: e.m, sink: sink{sources: e.sources}}).value(a.Expr, e.full, text); ok && !v.IsNull() {
					return []string{v.AsString()}
				}
			}
		}
		return nil
	}
	for _, c := range spec.Cycles([]string{e.env.label()}, next) {
		n.fail("promote_from", "Cycle of environments", "", "Environments can't promote from each other: %s.", c)
	}
}

func (e *evaluator) environmentReplicas(n *node) {
	v, ok := n.vals["replicas"]
	if !ok {
		return
	}
	known := map[string]bool{}
	for _, c := range e.copies["component"] {
		known[c.name], known[c.label()] = true, true
	}
	for name, x := range v.AsValueMap() {
		at := keyRange(n.attrs["replicas"].Expr, name)
		if !known[name] {
			n.bad["replicas"] = true
			e.errorf(at, "Unknown component", didYouMean(name, slices.Collect(maps.Keys(known))), "There is no component %q.", name)
			continue
		}
		if x.IsNull() {
			continue
		}
		count, err := wholeNumber(x)
		if err != nil || count < 0 || count > spec.MaxReplicas {
			n.bad["replicas"] = true
			e.errorf(at, "Invalid count", "", "Component %q: want 0 to %d replicas.", name, spec.MaxReplicas)
			continue
		}
		e.replicas[name] = count
	}
}

func (e *evaluator) rollout(n *node) spec.Rollout {
	d := spec.DefaultRollout()
	if n == nil {
		return d
	}
	return spec.Rollout{
		MaxParallel:      n.int("max_parallel", d.MaxParallel),
		Canary:           n.percents("canary"),
		MinHealthyTime:   n.duration("min_healthy_time", d.MinHealthyTime),
		HealthyDeadline:  n.duration("healthy_deadline", d.HealthyDeadline),
		ProgressDeadline: n.duration("progress_deadline", d.ProgressDeadline),
		AutoRevert:       n.bool("auto_revert", d.AutoRevert),
		KeepWarm:         n.duration("keep_warm", d.KeepWarm),
		Drain:            n.duration("drain", d.Drain),
	}
}

func (n *node) percents(name string) []int {
	v, ok := n.vals[name]
	if !ok {
		return nil
	}
	var out []int
	for _, x := range v.AsValueSlice() {
		if x.IsNull() {
			n.fail(name, "Missing value", "", "An element of %q is null.", name)
			continue
		}
		i, err := wholeNumber(x)
		if err != nil {
			n.fail(name, "Invalid canary", "Write whole percents, such as [10, 50].", "%q: %v.", name, err)
			continue
		}
		out = append(out, i)
	}
	return out
}

func (n *node) duration(name string, unset time.Duration) time.Duration {
	return parsed(n, name, unset, spec.ParseDuration)
}

func (n *node) size(name string, unset int64) int64 {
	return parsed(n, name, unset, func(s string) (int64, error) {
		v, err := spec.ParseSize(s)
		if err == nil && v == 0 {
			err = fault.Errorf(fault.Invalid, "size %q is nothing", s)
		}
		return v, err
	})
}

func (n *node) mode(name string, unset uint32) uint32 {
	return parsed(n, name, unset, func(s string) (uint32, error) {
		v, err := strconv.ParseUint(s, 8, 32)
		if err != nil || v > 0o1777 || len(s) < 3 {
			return 0, fault.WithHint(fault.Errorf(fault.Invalid, "mode %q: want octal permission bits", s), `Write it as "0444".`)
		}
		return uint32(v), nil
	})
}

func (e *evaluator) image(c copyOf) spec.Image {
	n := e.node(c.item, c.in(e.full))
	out := spec.Image{Name: spec.ImageName(c.name), Ref: n.text("ref")}
	if g := n.one("go"); g != nil {
		out.Go = &spec.GoImage{Package: g.text("package"), Tags: g.texts("tags"), Ldflags: g.text("ldflags"), Env: g.textMap("env")}
	}
	if l := n.one("layers"); l != nil {
		out.Layers = e.layers(l)
	}
	if d := n.one("debian"); d != nil {
		out.Debian = &spec.DebianImage{Suite: d.text("suite"), Packages: d.texts("packages"), Env: d.textMap("env"), User: d.text("user"),
			WorkDir: d.text("workdir"), Entrypoint: d.texts("entrypoint"), Command: d.texts("command")}
		e.debian(d)
	}
	ways := 0
	for _, set := range []bool{n.set("ref"), out.Go != nil, out.Layers != nil, out.Debian != nil} {
		if set {
			ways++
		}
	}
	if ways != 1 {
		e.errorf(n.head, "Image without one origin", "", "%s needs exactly one of ref, go, layers and debian; it has %d.", capital(n.title()), ways)
		n.bad[""] = true
	}
	if ref := n.text("ref"); n.has("ref") && (ref == "" || strings.ContainsAny(ref, " \t\r\n")) {
		n.fail("ref", "Invalid reference", `Write it as "registry.example.com/app:1.2".`, "%q is no image reference.", ref)
	}
	out.Range = e.done(n)
	return out
}

func (e *evaluator) layers(l *node) *spec.LayersImage {
	out := &spec.LayersImage{Copy: l.textMap("copy"), Env: l.textMap("env"), User: l.text("user"), WorkDir: l.text("workdir"),
		Entrypoint: l.texts("entrypoint"), Command: l.texts("command")}
	for src := range out.Copy {
		if !fs.ValidPath(path.Clean(src)) {
			l.fail("copy", "Invalid path", "", "The source %q does not lie in the app's directory.", src)
		}
	}
	if v, ok := l.vals["base"]; ok {
		out.Base = l.imageName("base", v)
	}
	return out
}

func (e *evaluator) debian(d *node) {
	if d.has("packages") && len(d.texts("packages")) == 0 {
		d.fail("packages", "Missing value", "", "A debian image without packages is empty.")
	}
	for _, w := range append(d.texts("packages"), d.text("suite")) {
		if strings.Trim(w, "abcdefghijklmnopqrstuvwxyz0123456789.+-:/") != "" {
			d.fail("packages", "Invalid value", "The lock pins the version.", "%q is no name of a package or suite.", w)
		}
	}
}

// imageName reads a reference to an image.
func (n *node) imageName(name string, v cty.Value) spec.ImageName {
	ty := v.Type()
	if ty.IsObjectType() && len(ty.AttributeTypes()) == 1 && ty.HasAttribute("name") && ty.AttributeType("name") == text {
		if x := v.GetAttr("name"); !x.IsNull() {
			return spec.ImageName(x.AsString())
		}
	}
	suggestion := "Write it as image.NAME."
	switch {
	case ty == text && slices.Contains(n.e.m.labels("image"), v.AsString()):
		suggestion = fmt.Sprintf("Did you mean image.%s?", v.AsString())
	case ty == text:
		suggestion = fmt.Sprintf("Define it: image \"NAME\" { ref = %q }, and write image.NAME.", v.AsString())
	case ty.IsObjectType():
		suggestion = `With for_each, choose one: image.NAME["KEY"].`
	}
	n.fail(name, "Not an image", suggestion, "%q is %s, not an image.", name, kindOf(v))
	return ""
}

// portRef reads a reference to a component's port.
func (n *node) portRef(name string, v cty.Value) (spec.PortRef, bool) {
	if out, err := convert.Convert(v, portTyp); err == nil && !out.IsNull() && v.Type().IsObjectType() {
		c, p := out.GetAttr("component"), out.GetAttr("port")
		if !c.IsNull() && !p.IsNull() {
			return spec.PortRef{Component: spec.ComponentName(c.AsString()), Port: spec.PortName(p.AsString())}, true
		}
	}
	n.fail(name, "Not a port", "Write it as component.NAME.port.PORT.", "%q has %s, not a component's port.", name, kindOf(v))
	return spec.PortRef{}, false
}

func (e *evaluator) component(c copyOf) spec.Component {
	n := e.node(c.item, c.in(e.full))
	out := spec.Component{
		Name: spec.ComponentName(c.name), Replicas: n.int("replicas", 1),
		Entrypoint: n.texts("entrypoint"), Command: n.texts("command"), WorkDir: n.text("workdir"), User: n.text("user"),
		Env: n.textMap("env"), Egress: sorted(n.texts("egress")), Isolation: n.text("isolation"), DynamicPorts: n.bool("dynamic_ports", false), StopSignal: n.text("stop_signal"),
		StopTimeout: n.duration("stop_timeout", 10*time.Second),
	}
	if v, ok := n.vals["image"]; ok {
		out.Image = n.imageName("image", v)
	} else {
		n.bad["image"] = true
	}
	if v, ok := n.vals["uses"]; ok {
		out.Uses = n.uses(v)
	}
	for _, key := range []string{c.label(), c.name} { // the more exact wins
		if r, ok := e.replicas[key]; ok {
			out.Replicas = r
		}
	}
	n.choice("isolation", "", "gvisor")
	n.signal()
	out.Health = e.health(n)
	out.Resources = e.resources(n.one("resources"))
	e.places(n, &out)
	out.Range = e.done(n)
	return out
}

// places builds the component's files, secrets, ports, scratches and volumes.
func (e *evaluator) places(n *node, out *spec.Component) {
	for _, k := range n.inner("file") {
		out.Files = append(out.Files, e.file(k))
	}
	for _, k := range n.inner("secret") {
		out.Secrets = append(out.Secrets, spec.Secret{Path: k.label(), Name: k.text("name"), Mode: k.mode("mode", 0o400), User: k.text("user"), Range: e.done(k)})
	}
	for _, k := range n.inner("port") {
		out.Ports = append(out.Ports, e.port(out.Name, n, k))
	}
	for _, k := range n.inner("scratch") {
		out.Scratches = append(out.Scratches, spec.Scratch{Path: k.label(), SizeBytes: k.size("size", 64<<20), Mode: k.mode("mode", 0o1777)})
		maps.Copy(n.bad, k.bad)
	}
	for _, k := range n.inner("volume") {
		k.choice("snapshot", spec.BeforeChange)
		out.Volumes = append(out.Volumes, spec.Volume{Name: spec.VolumeName(k.label()), Path: k.text("path"), Snapshot: k.text("snapshot")})
	}
	slices.SortFunc(out.Files, func(a, b spec.File) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(out.Secrets, func(a, b spec.Secret) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(out.Ports, func(a, b spec.Port) int { return strings.Compare(string(a.Name), string(b.Name)) })
	slices.SortFunc(out.Scratches, func(a, b spec.Scratch) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(out.Volumes, func(a, b spec.Volume) int { return strings.Compare(string(a.Name), string(b.Name)) })
}

func sorted(in []string) []string {
	slices.Sort(in)
	return slices.Compact(in)
}

// choice checks an attribute that takes one of few texts.
func (n *node) choice(name string, choices ...string) {
	if v := n.text(name); n.has(name) && !slices.Contains(choices, v) {
		n.fail(name, "Invalid value", didYouMean(v, slices.DeleteFunc(slices.Clone(choices), func(s string) bool { return s == "" })), "%q is %q.", name, v)
	}
}

var signals = []string{"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGKILL", "SIGRTMIN+3", "SIGPWR"}

func (n *node) signal() {
	v := n.text("stop_signal")
	if !n.has("stop_signal") || slices.Contains(signals, v) {
		return
	}
	suggestion := didYouMean(v, signals)
	if slices.Contains(signals, "SIG"+v) {
		suggestion = fmt.Sprintf("Did you mean %q?", "SIG"+v)
	}
	n.fail("stop_signal", "Invalid value", suggestion, "%q is no signal that stops a process.", v)
}

func (n *node) uses(v cty.Value) []spec.PortRef {
	ty := v.Type()
	if v.IsNull() || !(ty.IsTupleType() || ty.IsListType() || ty.IsSetType()) {
		n.fail("uses", "Wrong type", "Write uses = [component.NAME.port.PORT].", "uses is %s.", kindOf(v))
		return nil
	}
	var out []spec.PortRef
	for _, x := range v.AsValueSlice() {
		if ref, ok := n.portRef("uses", x); ok {
			out = append(out, ref)
		}
	}
	slices.SortFunc(out, func(a, b spec.PortRef) int {
		return strings.Compare(string(a.Component)+"\x00"+string(a.Port), string(b.Component)+"\x00"+string(b.Port))
	})
	return out
}

// port takes the number from what component.NAME.port refers to: it is evaluated there, once.
func (e *evaluator) port(owner spec.ComponentName, comp, k *node) spec.Port {
	out := spec.Port{Name: spec.PortName(k.label()), Protocol: "tcp"}
	v, ok := e.numbers[spec.PortRef{Component: owner, Port: out.Name}]
	if !ok {
		k.bad["number"] = true
	} else if i, err := wholeNumber(v); err != nil {
		k.fail("number", "Invalid port", "", "Port %q: %v.", k.label(), err)
	} else {
		out.Number = i
	}
	maps.Copy(comp.bad, k.bad)
	out.Range = e.done(k)
	return out
}

// file builds a file from exactly one of content, content_base64 and source.
func (e *evaluator) file(k *node) spec.File {
	out := spec.File{Path: k.label(), Mode: k.mode("mode", 0o444), User: k.text("user")}
	ways := 0
	for _, name := range []string{"content", "content_base64", "source"} {
		if k.set(name) {
			ways++
		}
	}
	if ways != 1 {
		e.errorf(k.head, "File without one content", "", "%s needs exactly one of content, content_base64 and source; it has %d.", capital(k.title()), ways)
		k.bad[""] = true
	}
	var err error
	switch {
	case k.has("source"):
		if out.Content, err = e.m.open(k.text("source")); err != nil {
			k.fail("source", "File not readable", "", "Reading %q: %v.", k.text("source"), err)
		}
	case k.has("content_base64"):
		if out.Content, err = base64.StdEncoding.DecodeString(k.text("content_base64")); err != nil {
			k.fail("content_base64", "Invalid value", "", "This is not base64: %v.", err)
		}
	default:
		out.Content = []byte(k.text("content"))
	}
	out.Range = e.done(k)
	return out
}

func (e *evaluator) health(n *node) *spec.Health {
	h := n.one("health")
	if h == nil {
		return nil
	}
	out := &spec.Health{Interval: h.duration("interval", time.Second), Timeout: h.duration("timeout", time.Second), Failures: h.int("failures", 3)}
	ways := 0
	if k := h.one("http"); k != nil {
		ways++
		p := k.text("path")
		if !k.has("path") {
			p = "/"
		}
		out.HTTP = &spec.HTTPCheck{Port: spec.PortName(k.text("port")), Path: p}
	}
	if k := h.one("tcp"); k != nil {
		ways++
		out.TCP = &spec.TCPCheck{Port: spec.PortName(k.text("port"))}
	}
	if k := h.one("exec"); k != nil {
		ways++
		out.Exec = &spec.ExecCheck{Command: k.texts("command")}
		if k.has("command") && len(out.Exec.Command) == 0 {
			k.fail("command", "Missing value", "", "A health check without a command.")
		}
		maps.Copy(h.bad, k.bad)
	}
	if ways != 1 {
		e.errorf(h.head, "Health without one check", "", "A health block has exactly one of http, tcp and exec; this has %d.", ways)
		h.bad[""] = true
	}
	if out.Interval < 10*time.Millisecond || out.Timeout < time.Millisecond || out.Failures < 1 {
		h.fail("", "Invalid health check", "", "The interval is at least 10ms, the timeout 1ms, and failures 1.")
	}
	maps.Copy(n.bad, h.bad)
	return out
}

func (e *evaluator) resources(n *node) spec.Resources {
	if n == nil {
		return spec.Resources{} // the defaults, filled in by the release
	}
	out := spec.Resources{MemoryBytes: n.size("memory", 0), PIDs: int64(n.int("pids", 0))}
	if v, ok := n.vals["cpu"]; ok {
		f, _ := v.AsBigFloat().Float64()
		millis, err := spec.ParseCPU(f)
		if err != nil {
			n.fail("cpu", "Invalid value", "", "%s.", capital(err.Error()))
		}
		out.CPUMillis = millis
	}
	if n.has("memory") && !n.bad["memory"] && out.MemoryBytes < spec.MinMemoryBytes {
		n.fail("memory", "Invalid value", "", "Memory: a process can't start in less than %s.", spec.FormatSize(spec.MinMemoryBytes))
	}
	if n.has("pids") && (out.PIDs < 1 || out.PIDs > 1<<22) {
		n.fail("pids", "Invalid count", "", "pids is %d; want 1 to %d.", out.PIDs, 1<<22)
	}
	return out
}

func (e *evaluator) route(c copyOf) spec.Route {
	n := e.node(c.item, c.in(e.full))
	out := spec.Route{Name: spec.RouteName(c.name), Host: n.text("host"), Path: n.text("path"), TLS: n.text("tls"), TCP: n.text("tcp")}
	if v, ok := n.vals["to"]; ok {
		out.To, _ = n.portRef("to", v)
	} else {
		n.bad["to"] = true
	}
	switch {
	case n.set("host") == n.set("tcp"):
		e.errorf(n.head, "Route without one entry", "", "%s needs either host, for HTTP, or tcp, an address to listen on.", capital(n.title()))
		n.bad[""], n.bad["host"], n.bad["tcp"] = true, true, true
	case n.set("host") && !n.set("path"):
		out.Path = "/"
	case n.set("tcp") && n.set("path"):
		n.fail("path", "Conflicting attributes", "", "A TCP route has no path.")
	}
	n.choice("tls", "", "internal", "acme")
	out.Range = e.done(n)
	return out
}
