package release

import (
	"encoding/base64"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
)

// Version is the only version of bundles and records so far.
const Version = 1

// What a component gets that says nothing else.
const (
	DefaultPath        = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	DefaultMemoryBytes = 512 << 20
	DefaultPIDs        = 512
	DefaultStopSignal  = "SIGTERM"
	DefaultStopTimeout = 10 * time.Second
)

// Evaluate makes the release of an app, as it was evaluated for one environment, of a bundle, its images, and the versions of the
// environment's secrets, of which it takes those that the app names. It is pure, and the server calls it again on the
// sources of the bundle: equal arguments give an equal digest. Its errors are of kind fault.Invalid.
func Evaluate(app spec.App, bundle digest.Digest, images map[spec.ImageName]image.Resolved, pins Pins) (Record, error) {
	if err := pinned(app, pins); err != nil {
		return Record{}, err
	}
	r := Record{V: Version, App: app.Name, Env: app.Env.Name, Bundle: bundle, Components: []Placed{}, Routes: []Route{}, Rollout: rollout(app.Env.Rollout)}
	if app.Env.OnDrift != spec.Replace {
		r.OnDrift = app.Env.OnDrift
	}
	ports := map[spec.PortRef]int{}
	for _, c := range app.Components {
		for _, p := range c.Ports {
			ports[spec.PortRef{Component: c.Name, Port: p.Name}] = p.Number
		}
	}
	for _, c := range app.Components {
		img, ok := images[c.Image]
		if !ok {
			return Record{}, fault.WithHint(fault.Errorf(fault.Invalid, "component %q: image %q is not resolved", c.Name, c.Image), "Run: invar build")
		}
		placed, err := component(c, img, ports, pins)
		if err != nil {
			return Record{}, err
		}
		r.Components = append(r.Components, Placed{Component: placed, Replicas: c.Replicas, Snapshots: snapshots(c)})
	}
	for _, rt := range app.Routes {
		r.Routes = append(r.Routes, Route{Name: rt.Name, Host: rt.Host, Path: rt.Path, TLS: rt.TLS, TCP: rt.TCP,
			Component: rt.To.Component, Port: rt.To.Port, Number: ports[rt.To]})
	}
	r.sort()
	if err := r.Check(); err != nil {
		return Record{}, err
	}
	return r, nil
}

// EvaluatePlatform makes the release of the platform's definition, of a bundle. It is pure as Evaluate is. Its errors are of
// kind fault.Invalid.
func EvaluatePlatform(def platform.Definition, bundle digest.Digest) (Record, error) {
	r := Record{V: Version, App: platform.App, Env: platform.Env, Bundle: bundle, Components: []Placed{}, Routes: []Route{},
		Rollout: rollout(spec.DefaultRollout()), Platform: &def}
	if err := r.Check(); err != nil {
		return Record{}, err
	}
	return r, nil
}

func (r Record) sort() {
	slices.SortFunc(r.Components, func(a, b Placed) int {
		return strings.Compare(string(a.Component.Name), string(b.Component.Name))
	})
	slices.SortFunc(r.Routes, func(a, b Route) int { return strings.Compare(string(a.Name), string(b.Name)) })
}

func rollout(r spec.Rollout) Rollout {
	return Rollout{
		MaxParallel: r.MaxParallel, Canary: slices.Clone(r.Canary), MinHealthyMillis: r.MinHealthyTime.Milliseconds(),
		HealthyDeadlineMillis: r.HealthyDeadline.Milliseconds(), ProgressDeadlineMillis: r.ProgressDeadline.Milliseconds(),
		AutoRevert: r.AutoRevert, KeepWarmMillis: r.KeepWarm.Milliseconds(), DrainMillis: r.Drain.Milliseconds(),
	}
}

// component merges what the configuration says with the image's own configuration.
func component(c spec.Component, img image.Resolved, ports map[spec.PortRef]int, pins Pins) (Component, error) {
	args := argv(c, img.Config)
	if len(args) == 0 {
		return Component{}, fault.WithHint(fault.Errorf(fault.Invalid, "component %q: neither it nor image %q says what to run", c.Name, c.Image),
			"Give the component a command.")
	}
	out := Component{
		Name: c.Name, Image: img.Manifest, Root: img.Root, Args: args, Env: environ(c.Env, img.Config.Env),
		WorkDir: first(c.WorkDir, img.Config.WorkDir), User: first(c.User, img.Config.User),
		Egress: slices.Clone(c.Egress), Resources: resources(c.Resources),
		StopSignal: first(c.StopSignal, img.Config.StopSignal, DefaultStopSignal),
		StopMillis: c.StopTimeout.Milliseconds(), Isolation: c.Isolation, DynamicPorts: c.DynamicPorts,
	}
	if out.StopMillis == 0 {
		out.StopMillis = DefaultStopTimeout.Milliseconds()
	}
	for _, u := range c.Uses {
		number, ok := ports[u]
		if !ok {
			return Component{}, fault.Errorf(fault.Invalid, "component %q uses port %q of %q, which is not defined", c.Name, u.Port, u.Component)
		}
		out.Uses = append(out.Uses, Use{Component: u.Component, Port: u.Port, Number: number})
	}
	placesOf(c, pins, &out)
	var err error
	out.Health, err = health(c, ports)
	return out, err
}

func placesOf(c spec.Component, pins Pins, out *Component) {
	for _, f := range c.Files {
		out.Files = append(out.Files, file(f))
	}
	for _, s := range c.Secrets {
		out.Secrets = append(out.Secrets, Secret{Path: s.Path, Name: s.Name, Version: pins[s.Name], Mode: s.Mode, User: s.User})
	}
	for _, p := range c.Ports {
		out.Ports = append(out.Ports, Port{Name: p.Name, Number: p.Number})
	}
	for _, s := range c.Scratches {
		out.Scratches = append(out.Scratches, Scratch{Path: s.Path, SizeBytes: s.SizeBytes, Mode: s.Mode})
	}
	for _, v := range c.Volumes {
		out.Volumes = append(out.Volumes, Volume{Name: v.Name, Path: v.Path})
	}
}

func snapshots(c spec.Component) []spec.VolumeName {
	var out []spec.VolumeName
	for _, v := range c.Volumes {
		if v.Snapshot == spec.BeforeChange {
			out = append(out, v.Name)
		}
	}
	return out
}

func argv(c spec.Component, img image.Config) []string {
	switch {
	case c.Entrypoint != nil:
		return slices.Concat(c.Entrypoint, c.Command)
	case c.Command != nil:
		return slices.Concat(img.Entrypoint, c.Command)
	}
	return slices.Concat(img.Entrypoint, img.Command)
}

func environ(own, img map[string]string) map[string]string {
	out := map[string]string{"PATH": DefaultPath}
	maps.Copy(out, img)
	maps.Copy(out, own)
	return out
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func resources(r spec.Resources) Resources {
	out := Resources{CPUMillis: r.CPUMillis, MemoryBytes: r.MemoryBytes, PIDs: r.PIDs}
	if out.MemoryBytes == 0 {
		out.MemoryBytes = DefaultMemoryBytes
	}
	if out.PIDs == 0 {
		out.PIDs = DefaultPIDs
	}
	return out
}

func file(f spec.File) File {
	out := File{Path: f.Path, Mode: f.Mode, User: f.User}
	if utf8.Valid(f.Content) {
		out.Text = string(f.Content)
	} else {
		out.Base64 = base64.StdEncoding.EncodeToString(f.Content)
	}
	return out
}

// Content returns the bytes of the file.
func (f File) Content() ([]byte, error) {
	if f.Base64 == "" {
		return []byte(f.Text), nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(f.Base64)
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "file %s: %v", f.Path, err)
	}
	return b, nil
}

// health makes the check. Without one, an instance is healthy while it runs and all its ports accept.
func health(c spec.Component, ports map[spec.PortRef]int) (*Health, error) {
	h := c.Health
	if h == nil {
		return nil, nil
	}
	out := &Health{IntervalMillis: h.Interval.Milliseconds(), TimeoutMillis: h.Timeout.Milliseconds(), Failures: h.Failures}
	var port spec.PortName
	switch {
	case h.HTTP != nil:
		port, out.HTTPPath = h.HTTP.Port, h.HTTP.Path
	case h.TCP != nil:
		port = h.TCP.Port
	case h.Exec != nil:
		out.Exec = slices.Clone(h.Exec.Command)
		return out, nil
	}
	number, ok := ports[spec.PortRef{Component: c.Name, Port: port}]
	if !ok {
		return nil, fault.Errorf(fault.Invalid, "component %q: its health check is of port %q, which is not defined", c.Name, port)
	}
	out.Port = number
	return out, nil
}
