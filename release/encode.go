package release

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
)

// Limits of the encoded forms.
const (
	MaxRecordBytes = 64 << 20
	MaxBundleBytes = 4 << 20
)

// Encode returns the canonical JSON of a record, after checking it.
func Encode(r Record) ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	return encode(r, "release", MaxRecordBytes)
}

// EncodeBundle returns the canonical JSON of a bundle, after checking it.
func EncodeBundle(b Bundle) ([]byte, error) {
	if err := b.Check(); err != nil {
		return nil, err
	}
	return encode(b, "bundle", MaxBundleBytes)
}

func encode(v any, what string, limit int) ([]byte, error) {
	out, err := digest.Canonical(v)
	if err != nil {
		return nil, err
	}
	if len(out) > limit {
		return nil, fault.Errorf(fault.Invalid, "encoding the %s: %s are more than %s", what, spec.FormatSize(int64(len(out))), spec.FormatSize(int64(limit)))
	}
	return out, nil
}

// Decode reads a record. It accepts the bytes that Encode gives and no other spelling of the same record: no
// unknown field, no other order, no white space. Its errors are of kind fault.Invalid.
func Decode(b []byte) (Record, error) {
	var r Record
	if err := decode(b, &r, "release", MaxRecordBytes); err != nil {
		return Record{}, err
	}
	if err := r.Check(); err != nil {
		return Record{}, err
	}
	return r, same(b, r, "release")
}

// DecodeBundle reads a bundle as Decode reads a record.
func DecodeBundle(data []byte) (Bundle, error) {
	var b Bundle
	if err := decode(data, &b, "bundle", MaxBundleBytes); err != nil {
		return Bundle{}, err
	}
	if err := b.Check(); err != nil {
		return Bundle{}, err
	}
	return b, same(data, b, "bundle")
}

func decode(b []byte, into any, what string, limit int) error {
	if len(b) > limit {
		return fault.Errorf(fault.Invalid, "decoding a %s: %d bytes are more than %s", what, len(b), spec.FormatSize(int64(limit)))
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fault.Errorf(fault.Invalid, "decoding a %s: %w", what, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fault.Errorf(fault.Invalid, "decoding a %s: there is more after it", what)
	}
	return nil
}

func same(b []byte, v any, what string) error {
	again, err := digest.Canonical(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, again) {
		return fault.Errorf(fault.Invalid, "decoding a %s: its JSON is not canonical", what)
	}
	return nil
}

// Check says what is wrong with the bundle. Its errors are of kind fault.Invalid.
func (b Bundle) Check() error {
	if b.V != Version {
		return fault.Errorf(fault.Invalid, "bundle: version %d; this program reads %d", b.V, Version)
	}
	if err := spec.CheckName(string(b.App)); err != nil {
		return err
	}
	if _, err := digest.Parse(string(b.Source)); err != nil {
		return err
	}
	if b.Images == nil {
		return fault.Errorf(fault.Invalid, "bundle: images is null")
	}
	for name, img := range b.Images {
		if err := spec.CheckName(string(name)); err != nil {
			return err
		}
		if err := checkImage(img); err != nil {
			return fault.Errorf(fault.Invalid, "bundle: image %q: %w", name, err)
		}
	}
	return nil
}

func checkImage(img image.Resolved) error {
	for _, d := range []digest.Digest{img.Manifest, img.Root} {
		if _, err := digest.Parse(string(d)); err != nil {
			return err
		}
	}
	if img.Size <= 0 || img.RootSize <= 0 {
		return fault.Errorf(fault.Invalid, "its size is missing")
	}
	if img.Platform.OS == "" || img.Platform.Architecture == "" {
		return fault.Errorf(fault.Invalid, "its platform is missing")
	}
	return nil
}

// Check says what is wrong with the record: everything that whoever runs it relies on. Its errors are of kind
// fault.Invalid.
func (r Record) Check() error {
	if r.V != Version {
		return fault.Errorf(fault.Invalid, "release: version %d; this program reads %d", r.V, Version)
	}
	for _, n := range []string{string(r.App), string(r.Env)} {
		if err := spec.CheckName(n); err != nil {
			return err
		}
	}
	if _, err := digest.Parse(string(r.Bundle)); err != nil {
		return err
	}
	if r.Components == nil || r.Routes == nil {
		return fault.Errorf(fault.Invalid, "release: components or routes is null")
	}
	ports := map[spec.PortRef]int{}
	for i, p := range r.Components {
		if i > 0 && r.Components[i-1].Component.Name >= p.Component.Name {
			return fault.Errorf(fault.Invalid, "release: components are not sorted, or %q is twice", p.Component.Name)
		}
		if p.Replicas < 0 || p.Replicas > spec.MaxReplicas {
			return fault.Errorf(fault.Invalid, "component %q: %d replicas", p.Component.Name, p.Replicas)
		}
		if err := cmp.Or(p.Component.check(), p.checkSnapshots()); err != nil {
			return fault.Errorf(fault.Invalid, "component %q: %w", p.Component.Name, err)
		}
		for _, port := range p.Component.Ports {
			ports[spec.PortRef{Component: p.Component.Name, Port: port.Name}] = port.Number
		}
	}
	return cmp.Or(r.checkReferences(ports), r.checkSecrets(), r.Rollout.check(), r.checkResponse(), r.checkPlatform())
}

// checkPlatform sees to it that the environment of the platform has its definition and nothing else, and that no other has one.
func (r Record) checkPlatform() error {
	ours := r.Env == platform.Env
	switch {
	case ours != (r.App == platform.App) || ours != (r.Platform != nil):
		return fault.Errorf(fault.Invalid, "release: environment %s, app %s and a definition of the platform belong together", platform.Env, platform.App)
	case !ours:
		return nil
	case len(r.Components)+len(r.Routes) > 0:
		return fault.Errorf(fault.Invalid, "release: the platform's definition has components or routes beside it")
	}
	return checkDefinition(*r.Platform)
}

func checkDefinition(d platform.Definition) error {
	null := d.Principals == nil || d.Roles == nil || d.Grants == nil ||
		slices.ContainsFunc(d.Roles, func(r platform.Role) bool { return r.Permissions == nil })
	if null {
		return fault.Errorf(fault.Invalid, "release: principals, roles, their permissions or grants are null")
	}
	for _, p := range d.Check() {
		return fault.Errorf(fault.Invalid, "release: the platform's definition: %w", p)
	}
	return nil
}

func (r Record) checkReferences(ports map[spec.PortRef]int) error {
	for _, p := range r.Components {
		for _, u := range p.Component.Uses {
			if n, ok := ports[spec.PortRef{Component: u.Component, Port: u.Port}]; !ok || n != u.Number {
				return fault.Errorf(fault.Invalid, "component %q uses port %q of %q at %d, which is not so", p.Component.Name, u.Port, u.Component, u.Number)
			}
		}
	}
	for i, rt := range r.Routes {
		if i > 0 && r.Routes[i-1].Name >= rt.Name {
			return fault.Errorf(fault.Invalid, "release: routes are not sorted, or %q is twice", rt.Name)
		}
		if err := spec.CheckName(string(rt.Name)); err != nil {
			return err
		}
		if n, ok := ports[spec.PortRef{Component: rt.Component, Port: rt.Port}]; !ok || n != rt.Number {
			return fault.Errorf(fault.Invalid, "route %q goes to port %q of %q at %d, which is not so", rt.Name, rt.Port, rt.Component, rt.Number)
		}
		if (rt.TCP == "") == (rt.Host == "") {
			return fault.Errorf(fault.Invalid, "route %q has not one of host and tcp", rt.Name)
		}
	}
	return nil
}

// checkResponse accepts one spelling of each response.
func (r Record) checkResponse() error {
	if r.OnDrift == spec.Replace || !slices.Contains(spec.Responses(), r.Response()) {
		return fault.Errorf(fault.Invalid, "release: on_drift is %q", r.OnDrift)
	}
	return nil
}

func (r Rollout) check() error {
	if r.MaxParallel < 1 {
		return fault.Errorf(fault.Invalid, "rollout: max_parallel is %d", r.MaxParallel)
	}
	for i, c := range r.Canary {
		if c < 1 || c > 99 || (i > 0 && c <= r.Canary[i-1]) {
			return fault.Errorf(fault.Invalid, "rollout: canary %v does not grow from 1 to 99", r.Canary)
		}
	}
	for _, ms := range []int64{r.MinHealthyMillis, r.HealthyDeadlineMillis, r.ProgressDeadlineMillis, r.KeepWarmMillis, r.DrainMillis} {
		if ms < 0 || ms > spec.MaxDuration.Milliseconds() {
			return fault.Errorf(fault.Invalid, "rollout: a time of %d ms", ms)
		}
	}
	return nil
}

func (c Component) check() error {
	if err := spec.CheckName(string(c.Name)); err != nil {
		return err
	}
	for _, d := range []digest.Digest{c.Image, c.Root} {
		if _, err := digest.Parse(string(d)); err != nil {
			return err
		}
	}
	if len(c.Args) == 0 {
		return fault.Errorf(fault.Invalid, "there is nothing to run")
	}
	if s := c.badText(); s != "" {
		return fault.Errorf(fault.Invalid, "%q is not text that a process can be given", s)
	}
	if c.Resources.CPUMillis < 0 || c.Resources.MemoryBytes < 0 || c.Resources.PIDs < 0 || c.StopMillis < 0 {
		return fault.Errorf(fault.Invalid, "a limit is negative")
	}
	return cmp.Or(c.checkPorts(), c.checkPlaces(), c.checkHealth())
}

// badText returns a text of the process that has a NUL or is not UTF-8: JSON would change it.
func (c Component) badText() string {
	texts := append([]string{c.WorkDir, c.User, c.StopSignal, c.Isolation}, c.Args...)
	for k, v := range c.Env {
		if k == "" || strings.Contains(k, "=") {
			return k
		}
		texts = append(texts, k, v)
	}
	for _, t := range append(texts, c.Egress...) {
		if strings.ContainsRune(t, 0) || !utf8.ValidString(t) {
			return t
		}
	}
	return ""
}

func (c Component) checkPorts() error {
	for i, p := range c.Ports {
		if err := spec.CheckName(string(p.Name)); err != nil {
			return err
		}
		if p.Number < 1 || p.Number > 65535 {
			return fault.Errorf(fault.Invalid, "port %q is %d", p.Name, p.Number)
		}
		if i > 0 && c.Ports[i-1].Name >= p.Name {
			return fault.Errorf(fault.Invalid, "ports are not sorted, or %q is twice", p.Name)
		}
	}
	return nil
}

// checkPlaces sees to it that every path is clean and absolute, so that nothing is mounted outside the root.
func (c Component) checkPlaces() error {
	paths := make([]string, 0, len(c.Files)+len(c.Secrets)+len(c.Scratches)+len(c.Volumes))
	for _, f := range c.Files {
		if f.Text != "" && f.Base64 != "" {
			return fault.Errorf(fault.Invalid, "file %q has both text and base64", f.Path)
		}
		b, err := f.Content()
		if err != nil {
			return err
		}
		if len(b) > spec.MaxFileBytes || !utf8.ValidString(f.Text) || (f.Base64 != "" && utf8.Valid(b)) {
			return fault.Errorf(fault.Invalid, "file %q is too large, or has the wrong encoding", f.Path)
		}
		paths = append(paths, f.Path)
	}
	for _, s := range c.Secrets {
		paths = append(paths, s.Path)
	}
	for _, s := range c.Scratches {
		paths = append(paths, s.Path)
	}
	for _, v := range c.Volumes {
		if err := spec.CheckName(string(v.Name)); err != nil {
			return err
		}
		paths = append(paths, v.Path)
	}
	seen := map[string]bool{}
	for _, p := range paths {
		if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || strings.ContainsRune(p, 0) || !utf8.ValidString(p) || seen[p] {
			return fault.Errorf(fault.Invalid, "path %q is not clean and absolute, or is there twice", p)
		}
		seen[p] = true
	}
	return nil
}

// checkSnapshots sees to it that what is copied before a change is a volume of the component, once.
func (p Placed) checkSnapshots() error {
	for i, name := range p.Snapshots {
		known := slices.ContainsFunc(p.Component.Volumes, func(v Volume) bool { return v.Name == name })
		if !known || i > 0 && p.Snapshots[i-1] >= name {
			return fault.Errorf(fault.Invalid, "snapshots: there is no volume %q, or they are not sorted", name)
		}
	}
	return nil
}

func (c Component) checkHealth() error {
	h := c.Health
	if h == nil {
		return nil
	}
	if (len(h.Exec) > 0) == (h.Port != 0) || (h.HTTPPath != "" && h.Port == 0) {
		return fault.Errorf(fault.Invalid, "its health check is not one of HTTP, TCP and exec")
	}
	if h.Port < 0 || h.Port > 65535 || h.IntervalMillis < 1 || h.TimeoutMillis < 1 || h.Failures < 1 {
		return fault.Errorf(fault.Invalid, "its health check has a number out of range")
	}
	return nil
}
