package reconcile

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/spec"
)

// Secrets returns the value of the version of an environment's secret.
type Secrets = func(context.Context, spec.EnvName, release.Secret) ([]byte, error)

// Spec returns what a host needs to run an instance of the component. Used components get a loopback address each and
// their names in the hosts file; with egress, the usual variables name the forward proxy unless the component sets them.
func Spec(ctx context.Context, i deploy.Instance, c release.Component, secrets Secrets) (runtime.Spec, error) {
	s := runtime.Spec{
		Identity: i.Identity, Root: c.Root, Args: c.Args, Env: environ(c), WorkDir: c.WorkDir, User: c.User,
		Hosts: hosts(c), Health: health(c.Health),
		CPUMillis: c.Resources.CPUMillis, MemoryBytes: c.Resources.MemoryBytes, PIDs: c.Resources.PIDs,
		StopSignal: c.StopSignal, StopTimeout: millis(c.StopMillis), Isolation: c.Isolation, DynamicPorts: c.DynamicPorts,
	}
	for _, p := range c.Ports {
		s.Ports = append(s.Ports, p.Number)
	}
	for _, m := range c.Scratches {
		s.Scratches = append(s.Scratches, runtime.Scratch{Path: m.Path, SizeBytes: m.SizeBytes, Mode: m.Mode})
	}
	for _, v := range c.Volumes {
		s.Volumes = append(s.Volumes, runtime.Volume{Env: string(i.Env), Component: string(i.Component), Name: string(v.Name), Path: v.Path, Version: i.Volumes[v.Name]})
	}
	var err error
	if s.Files, err = files(ctx, i.Env, c, secrets); err != nil {
		return s, fmt.Errorf("preparing instance %s: %w", i.ID, err)
	}
	return s, nil
}

// environ returns the component's variables as KEY=value, sorted.
func environ(c release.Component) []string {
	env := map[string]string{}
	if len(c.Egress) > 0 {
		proxy := "http://" + gateway.EgressAddress
		for _, key := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
			env[key] = proxy
		}
		for _, key := range []string{"NO_PROXY", "no_proxy"} {
			env[key] = "localhost,127.0.0.0/8"
			for _, h := range hosts(c) {
				env[key] += "," + h.Names[0]
			}
		}
	}
	maps.Copy(env, c.Env)
	list := make([]string, 0, len(env))
	for key, value := range env {
		list = append(list, key+"="+value)
	}
	slices.Sort(list)
	return list
}

// hosts names the used components.
func hosts(c release.Component) []runtime.HostEntry {
	var list []runtime.HostEntry
	for name, address := range gateway.UseAddresses(deploy.Uses(c)) {
		list = append(list, runtime.HostEntry{Address: address, Names: []string{string(name)}})
	}
	slices.SortFunc(list, func(a, b runtime.HostEntry) int { return cmp.Compare(a.Names[0], b.Names[0]) })
	return list
}

func health(h *release.Health) *runtime.Health {
	if h == nil {
		return nil
	}
	return &runtime.Health{
		Port: h.Port, HTTPPath: h.HTTPPath, Exec: h.Exec,
		Interval: millis(h.IntervalMillis), Timeout: millis(h.TimeoutMillis), Failures: h.Failures,
	}
}

func files(ctx context.Context, env spec.EnvName, c release.Component, secrets Secrets) ([]runtime.File, error) {
	var list []runtime.File
	for _, f := range c.Files {
		content := []byte(f.Text)
		if f.Base64 != "" {
			var err error
			if content, err = base64.StdEncoding.DecodeString(f.Base64); err != nil {
				return nil, fault.Errorf(fault.Invalid, "file %s: %w", f.Path, err)
			}
		}
		list = append(list, runtime.File{Path: f.Path, Content: content, Mode: f.Mode, User: f.User})
	}
	for _, s := range c.Secrets {
		if secrets == nil {
			return nil, fault.Errorf(fault.Invalid, "secret %s: this server has no store of secrets", s.Name)
		}
		content, err := secrets(ctx, env, s)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", s.Name, err)
		}
		list = append(list, runtime.File{Path: s.Path, Content: content, Mode: s.Mode, User: cmp.Or(s.User, c.User), Secret: s.Version})
	}
	return list, nil
}

func millis(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
