package release

import (
	"maps"
	"slices"
	"strings"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// Pins are the versions of secrets that a release is evaluated with, by name. They are inputs of the environment, as its name is:
// equal sources and equal pins give an equal release.
type Pins map[string]digest.Digest

// PinsOf returns the pins that a release was evaluated with, as far as it uses them. An auditor evaluates the bundle again with them,
// and gets the same release.
func PinsOf(r Record) Pins {
	out := Pins{}
	for _, p := range r.Components {
		for _, s := range p.Component.Secrets {
			out[s.Name] = s.Version
		}
	}
	return out
}

// Newer returns the names whose version in now is another than in p, sorted. Names that p lacks don't count.
func (p Pins) Newer(now Pins) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(p)) {
		if now[name] != p[name] {
			out = append(out, name)
		}
	}
	return out
}

// pinned checks that every secret that the app names has a version. It names all that have none.
func pinned(app spec.App, pins Pins) error {
	missing := map[string]bool{}
	for _, c := range app.Components {
		for _, s := range c.Secrets {
			if pins[s.Name] == "" {
				missing[s.Name] = true
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	names := slices.Sorted(maps.Keys(missing))
	return fault.WithHint(fault.Errorf(fault.Invalid, "environment %s has no version of secret %s", app.Env.Name, strings.Join(names, ", ")),
		"invar secret set %s/%s", app.Env.Name, names[0])
}

// checkSecrets checks that each version is a digest, and that all components have the same one of a secret. A record of the
// time before there were versions has none.
func (r Record) checkSecrets() error {
	pins := Pins{}
	for _, p := range r.Components {
		for _, s := range p.Component.Secrets {
			if s.Version != "" {
				if _, err := digest.Parse(string(s.Version)); err != nil {
					return fault.Errorf(fault.Invalid, "component %q: secret %q: %w", p.Component.Name, s.Name, err)
				}
			}
			if have, ok := pins[s.Name]; ok && have != s.Version {
				return fault.Errorf(fault.Invalid, "release: secret %q is pinned to %s and to %s", s.Name, have.Short(), s.Version.Short())
			}
			pins[s.Name] = s.Version
		}
	}
	return nil
}
