package runtime

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// Signals are the stop signals that a spec may name, with their numbers on Linux.
var signals = map[string]int{
	"SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGKILL": 9, "SIGUSR1": 10, "SIGUSR2": 12, "SIGTERM": 15, "SIGWINCH": 28,
}

// Signal returns the number of the stop signal, SIGTERM's unless the spec names one, and 0 for a name that Check refuses.
func (s Spec) Signal() int {
	if s.StopSignal == "" {
		return signals["SIGTERM"]
	}
	return signals[s.StopSignal]
}

// Check returns what every host refuses about a spec, of kind fault.Invalid, naming the field.
// A host may refuse more: what the root does not have, or what the machine can't do.
func (s Spec) Check() error {
	for _, check := range []func() error{s.checkIdentity, s.checkProcess, s.checkMounts, s.checkNetwork, s.checkHealth, s.checkLimits} {
		if err := check(); err != nil {
			return fault.As(fault.Invalid, fmt.Errorf("spec of instance %q: %w", s.Identity.ID, err))
		}
	}
	return nil
}

func (s Spec) checkIdentity() error {
	if id := string(s.Identity.ID); len(id) > 74 || !isLabel(id) {
		return fmt.Errorf("identity.id: want at most 74 characters of a-z, 0-9 and inner hyphens")
	}
	if _, err := digest.Parse(string(s.Root)); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	return nil
}

func (s Spec) checkProcess() error {
	if len(s.Args) == 0 || s.Args[0] == "" {
		return fmt.Errorf("args: no command")
	}
	for _, kv := range s.Env {
		if i := strings.IndexByte(kv, '='); i < 1 {
			return fmt.Errorf("env: %q is not KEY=value", kv)
		}
	}
	for _, v := range slices.Concat(s.Args, s.Env) {
		if strings.IndexByte(v, 0) >= 0 {
			return fmt.Errorf("args and env: a NUL byte in %q", v)
		}
	}
	if s.WorkDir != "" && !isCleanPath(s.WorkDir) {
		return fmt.Errorf("workdir: %q is not an absolute, clean path", s.WorkDir)
	}
	if s.Signal() == 0 {
		return fmt.Errorf("stop_signal: %q is not known", s.StopSignal)
	}
	if s.Isolation != "" && s.Isolation != "gvisor" {
		return fmt.Errorf("isolation: %q is not known: want none or gvisor", s.Isolation)
	}
	return nil
}

// checkMounts keeps files, scratches and volumes off each other's paths and off the paths that are the host's to make.
func (s Spec) checkMounts() error {
	seen := map[string]string{}
	for field, p := range s.targets() {
		if !isCleanPath(p) || p == "/" {
			return fmt.Errorf("%s: %q is not an absolute, clean path below /", field, p)
		}
		for _, own := range []string{"/proc", "/dev", "/sys", "/etc/hosts", "/etc/resolv.conf"} {
			if p == "/dev/shm" && field == "scratches" {
				continue
			}
			if p == own || strings.HasPrefix(p, own+"/") {
				return fmt.Errorf("%s: %q is made by the host", field, p)
			}
		}
		if other, ok := seen[p]; ok {
			return fmt.Errorf("%s: %q is already the target of %s", field, p, other)
		}
		seen[p] = field
	}
	for _, v := range s.Volumes {
		for _, part := range []string{v.Env, v.Component, v.Name} {
			if !isLabel(part) {
				return fmt.Errorf("volumes: %q can't name a directory", part)
			}
		}
		if v.Version < 0 || v.Version == 1 {
			return fmt.Errorf("volumes: version %d of %q: want 2 or more, or none for the first", v.Version, v.Name)
		}
	}
	return nil
}

// Check returns what every host refuses about a place, of kind fault.Invalid.
func (p Place) Check() error {
	for _, part := range []string{p.Env, p.Component, p.Name} {
		if !isLabel(part) {
			return fault.Errorf(fault.Invalid, "volume: %q can't name a directory", part)
		}
	}
	if p.Version < 0 || p.Snapshot < 0 || (p.Version > 0) == (p.Snapshot > 0) {
		return fault.Errorf(fault.Invalid, "volume %s/%s of environment %s: want one version, or one snapshot", p.Component, p.Name, p.Env)
	}
	return nil
}

// Check returns what every host refuses about a copy, of kind fault.Invalid.
func (c VolumeCopy) Check() error {
	if c.From == c.To {
		return fault.Errorf(fault.Invalid, "%s can't be a copy of itself", c.From)
	}
	return cmp.Or(c.From.Check(), c.To.Check())
}

func (s Spec) targets() func(yield func(field, path string) bool) {
	return func(yield func(string, string) bool) {
		for _, f := range s.Files {
			if !yield("files", f.Path) {
				return
			}
		}
		for _, t := range s.Scratches {
			if !yield("scratches", t.Path) {
				return
			}
		}
		for _, v := range s.Volumes {
			if !yield("volumes", v.Path) {
				return
			}
		}
	}
}

func (s Spec) checkNetwork() error {
	for _, p := range s.Ports {
		if p < 1 || p > 65535 {
			return fmt.Errorf("ports: %d is not a port", p)
		}
	}
	for _, h := range s.Hosts {
		if !strings.HasPrefix(h.Address, "127.") || strings.ContainsAny(h.Address, " \t\r\n") {
			return fmt.Errorf("hosts: %q is not an address of 127.0.0.0/8", h.Address)
		}
		for _, n := range h.Names {
			if n == "" || strings.ContainsAny(n, " \t\r\n#") {
				return fmt.Errorf("hosts: %q is not a name", n)
			}
		}
	}
	return nil
}

func (s Spec) checkHealth() error {
	h := s.Health
	if h == nil || len(h.Exec) > 0 {
		return nil
	}
	if h.Port < 1 || h.Port > 65535 {
		return fmt.Errorf("health.port: %d is not a port", h.Port)
	}
	if h.HTTPPath != "" && !strings.HasPrefix(h.HTTPPath, "/") {
		return fmt.Errorf("health.http_path: %q does not begin with /", h.HTTPPath)
	}
	return nil
}

func (s Spec) checkLimits() error {
	if s.CPUMillis < 0 || s.MemoryBytes < 0 || s.PIDs < 0 || s.StopTimeout < 0 {
		return fmt.Errorf("cpu_millis, memory_bytes, pids and stop_timeout can't be negative")
	}
	for _, t := range s.Scratches {
		if t.SizeBytes < 0 {
			return fmt.Errorf("scratches: %s: size_bytes is negative", t.Path)
		}
	}
	return nil
}

func isLabel(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

func isCleanPath(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && strings.IndexByte(p, 0) < 0
}
