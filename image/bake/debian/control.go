package debian

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/invarhq/invar/image"
)

// control is what a package says of itself, as far as the order of installation needs it.
type control struct {
	name       string
	essential  bool
	preDepends [][]string // each is a choice of names
	depends    [][]string // with those of preDepends
	provides   []string
}

// parseControl reads the fields that dpkg-deb --field prints (deb-control(5)).
func parseControl(s string) control {
	var c control
	for line := range strings.Lines(s) {
		field, value, ok := strings.Cut(line, ":")
		if !ok || strings.HasPrefix(line, " ") {
			continue
		}
		value = strings.TrimSpace(value)
		switch field {
		case "Package":
			c.name = value
		case "Essential":
			c.essential = value == "yes"
		case "Pre-Depends":
			c.preDepends = relations(value)
			c.depends = append(c.depends, c.preDepends...)
		case "Depends":
			c.depends = append(c.depends, relations(value)...)
		case "Provides":
			for _, choice := range relations(value) {
				c.provides = append(c.provides, choice...)
			}
		}
	}
	return c
}

// relations reads "a (>= 1), b:any | c" as [[a] [b c]]: apt has seen to the versions.
func relations(s string) [][]string {
	var all [][]string
	for relation := range strings.SplitSeq(s, ",") {
		var choice []string
		for alternative := range strings.SplitSeq(relation, "|") {
			name, _, _ := strings.Cut(strings.TrimSpace(alternative), " ")
			name, _, _ = strings.Cut(name, ":")
			name, _, _ = strings.Cut(name, "(")
			if name != "" {
				choice = append(choice, name)
			}
		}
		if choice != nil {
			all = append(all, choice)
		}
	}
	return all
}

// controls asks every package.
func (a apt) controls(ctx context.Context, packages []image.LockedPackage) ([]control, error) {
	all := make([]control, 0, len(packages))
	for _, p := range packages {
		out, err := exec.CommandContext(ctx, "dpkg-deb", "--field", a.deb(p), "Package", "Essential", "Pre-Depends", "Depends", "Provides").Output()
		if err != nil {
			return nil, fmt.Errorf("reading package %s: %w", p.Name, err)
		}
		all = append(all, parseControl(string(out)))
	}
	return all, nil
}

// first returns the packages that have to be there before dpkg can unpack the others: the essential ones, what any
// package pre-depends on, and all that these depend on.
func first(all []control) map[string]bool {
	byName, provided := map[string]control{}, map[string]string{}
	for _, c := range all {
		byName[c.name] = c
		for _, p := range c.provides {
			if provided[p] == "" {
				provided[p] = c.name
			}
		}
	}
	need := map[string]bool{}
	var add func(choice []string)
	add = func(choice []string) {
		for _, name := range choice {
			if _, ok := byName[name]; !ok {
				name = provided[name]
			}
			if name == "" || need[name] {
				continue
			}
			need[name] = true
			for _, d := range byName[name].depends {
				add(d)
			}
		}
	}
	for _, c := range all {
		if c.essential {
			add([]string{c.name})
		}
		for _, p := range c.preDepends {
			add(p)
		}
	}
	return need
}
