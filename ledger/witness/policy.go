package witness

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
)

// Limits of a policy.
const (
	maxPolicyBytes = 1 << 20
	maxPolicyNames = 1000
)

// Witness is a witness as a policy knows it.
type Witness struct {
	Name string // in the policy; any word
	Verifier
	URL string // its submission prefix; "" where nobody has to reach it
}

// Log is a log as a witness or a policy knows it. Its origin is the name of its key.
type Log struct {
	note.Verifier
	VKey string
	URL  string
}

// ParseLog returns the log with this verifier key.
func ParseLog(vkey string) (Log, error) {
	v, err := ledger.ParseVerifierKey(vkey)
	return Log{Verifier: v, VKey: vkey}, err
}

// Policy says which cosignatures make a quorum. The zero Policy knows no witness and asks for none. A policy does not change.
type Policy struct {
	logs      []Log
	witnesses []Witness
	groups    []group
	quorum    string // a witness, a group, or none
}

// group is met when at least that many of its members are. Its members come before it.
type group struct {
	name    string
	least   int
	members []string
}

const none = "none"

// NewPolicy returns the policy that any least of these witnesses are a quorum.
func NewPolicy(least int, witnesses ...Witness) (Policy, error) {
	if least < 0 || least > len(witnesses) {
		return Policy{}, fault.Errorf(fault.Invalid, "quorum of %d: there are %d witnesses", least, len(witnesses))
	}
	p := Policy{quorum: none}
	var names []string
	for _, w := range witnesses {
		if w.Name == "" {
			w.Name = w.Verifier.Name()
		}
		if err := p.addWitness(w); err != nil {
			return Policy{}, err
		}
		names = append(names, w.Name)
	}
	if least == 0 {
		return p, nil
	}
	p.quorum = "quorum"
	for p.has(p.quorum) {
		p.quorum += "-"
	}
	p.groups = []group{{p.quorum, least, names}}
	return p, nil
}

// ParsePolicy reads a policy as https://c2sp.org/tlog-policy writes it. It is stricter than
// transparency-dev/formats: a witness counts once, under whatever names it is listed.
func ParsePolicy(text string) (Policy, error) {
	if len(text) > maxPolicyBytes {
		return Policy{}, fault.Errorf(fault.Invalid, "a policy of %d bytes: at most %d", len(text), maxPolicyBytes)
	}
	var p Policy
	used := make(map[string]bool)
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.Trim(strings.TrimSuffix(line, "\n"), " \t")
		if i := strings.IndexFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }); i >= 0 {
			return Policy{}, fault.Errorf(fault.Invalid, "line %d of the policy: a control character", n)
		}
		if line == "" || line[0] == '#' {
			continue
		}
		words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
		if err := p.add(words, used); err != nil {
			return Policy{}, fmt.Errorf("line %d of the policy: %w", n, err)
		}
	}
	if p.quorum == "" {
		return Policy{}, fault.Errorf(fault.Invalid, "the policy has no quorum line")
	}
	return p, nil
}

// add adds one line. Used are the names that are members of a group.
func (p *Policy) add(words []string, used map[string]bool) error {
	if len(p.logs)+len(p.witnesses)+len(p.groups) >= maxPolicyNames {
		return fault.Errorf(fault.Invalid, "more than %d logs, witnesses and groups", maxPolicyNames)
	}
	key, args := words[0], words[1:]
	switch {
	case key == "log" && (len(args) == 1 || len(args) == 2):
		return p.addLog(args)
	case key == "witness" && (len(args) == 2 || len(args) == 3):
		v, err := ParseVerifier(args[1])
		if err != nil {
			return err
		}
		return p.addWitness(Witness{Name: args[0], Verifier: v, URL: strings.Join(args[2:], "")})
	case key == "group" && len(args) >= 3:
		return p.addGroup(args[0], args[1], args[2:], used)
	case key == "quorum" && len(args) == 1:
		if p.quorum != "" {
			return fault.Errorf(fault.Invalid, "a second quorum")
		}
		if args[0] != none && !p.has(args[0]) {
			return fault.Errorf(fault.Invalid, "no witness or group before it is named %q", args[0])
		}
		p.quorum = args[0]
		return nil
	}
	return fault.WithHint(fault.Errorf(fault.Invalid, "%q is no line of a policy", strings.Join(words, " ")),
		"write log VKEY [URL], witness NAME VKEY [URL], group NAME all|any|K NAME..., or quorum NAME")
}

func (p *Policy) addLog(args []string) error {
	l, err := ParseLog(args[0])
	if err != nil {
		return err
	}
	l.URL = strings.Join(args[1:], "")
	for _, other := range p.logs {
		if keyOf(other.VKey) == keyOf(l.VKey) {
			return fault.Errorf(fault.Invalid, "the log %s is listed twice", l.Name())
		}
	}
	p.logs = append(p.logs, l)
	return nil
}

// keyOf returns the material in a vkey.
func keyOf(vkey string) string {
	return strings.SplitN(vkey, "+", 3)[2]
}

func (p *Policy) addWitness(w Witness) error {
	if err := p.checkName(w.Name); err != nil {
		return err
	}
	for _, other := range p.witnesses {
		if other.material == w.material {
			return fault.Errorf(fault.Invalid, "%s and %s have the same key: a witness counts once", other.Name, w.Name)
		}
	}
	if w.URL != "" {
		if u, err := url.Parse(w.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fault.Errorf(fault.Invalid, "witness %s: %q is not a URL of http or https", w.Name, w.URL)
		}
	}
	p.witnesses = append(p.witnesses, w)
	return nil
}

func (p *Policy) addGroup(name, least string, members []string, used map[string]bool) error {
	if err := p.checkName(name); err != nil {
		return err
	}
	g := group{name: name, members: slices.Clone(members)}
	switch least {
	case "all":
		g.least = len(members)
	case "any":
		g.least = 1
	default:
		n, err := strconv.Atoi(least)
		if err != nil || strconv.Itoa(n) != least || n < 1 || n > len(members) {
			return fault.Errorf(fault.Invalid, "group %s: %q is neither all, any, nor a number from 1 to %d", name, least, len(members))
		}
		g.least = n
	}
	for _, m := range members {
		if !p.has(m) {
			return fault.Errorf(fault.Invalid, "group %s: no witness or group before it is named %q", name, m)
		}
		if used[m] {
			return fault.Errorf(fault.Invalid, "group %s: %s is a member already, and may be of one group, once", name, m)
		}
		used[m] = true
	}
	p.groups = append(p.groups, g)
	return nil
}

func (p *Policy) checkName(name string) error {
	if name == "" || name == none || strings.ContainsAny(name, " \t\n") || p.has(name) {
		return fault.Errorf(fault.Invalid, "%q can't be the name of another witness or group", name)
	}
	return nil
}

func (p *Policy) has(name string) bool {
	return slices.ContainsFunc(p.witnesses, func(w Witness) bool { return w.Name == name }) ||
		slices.ContainsFunc(p.groups, func(g group) bool { return g.name == name })
}

// With returns the policy with further witnesses. Those whose key it knows already are left out; what makes a quorum stays as it is.
func (p Policy) With(more ...Witness) Policy {
	out := p
	out.witnesses = slices.Clone(p.witnesses)
	for _, w := range more {
		if slices.ContainsFunc(out.witnesses, func(other Witness) bool { return other.material == w.material }) {
			continue
		}
		for w.Name == none || out.has(w.Name) {
			w.Name += "-"
		}
		out.witnesses = append(out.witnesses, w)
	}
	return out
}

// Witnesses returns those that the policy knows, in its order.
func (p Policy) Witnesses() []Witness { return slices.Clone(p.witnesses) }

// Logs returns the logs that the policy names.
func (p Policy) Logs() []Log { return slices.Clone(p.logs) }

// Asks reports whether a checkpoint needs any cosignature.
func (p Policy) Asks() bool { return p.quorum != "" && p.quorum != none }

func (p Policy) verifiers() []Verifier {
	var out []Verifier
	for _, w := range p.witnesses {
		out = append(out, w.Verifier)
	}
	return out
}

// met tells whether the witnesses with these vkeys are a quorum.
func (p Policy) met(has map[string]bool) bool {
	if !p.Asks() {
		return true
	}
	is := make(map[string]bool)
	for _, w := range p.witnesses {
		is[w.Name] = has[w.vkey]
	}
	for _, g := range p.groups { // members come before their group
		n := 0
		for _, m := range g.members {
			if is[m] {
				n++
			}
		}
		is[g.name] = n >= g.least
	}
	return is[p.quorum]
}

// String returns the policy as ParsePolicy reads it.
func (p Policy) String() string {
	var b strings.Builder
	line := func(words ...string) { b.WriteString(strings.TrimSuffix(strings.Join(words, " "), " ") + "\n") }
	for _, l := range p.logs {
		line("log", l.VKey, l.URL)
	}
	for _, w := range p.witnesses {
		line("witness", w.Name, w.vkey, w.URL)
	}
	for _, g := range p.groups {
		line("group", g.name, strconv.Itoa(g.least), strings.Join(g.members, " "))
	}
	quorum := p.quorum
	if quorum == "" {
		quorum = none
	}
	line("quorum", quorum)
	return b.String()
}
