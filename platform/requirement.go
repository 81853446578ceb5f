package platform

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/invarhq/invar/fault"
)

// Requirement is whose approvals a rule asks for: a formula of "K of …", "and", "or" and parentheses.
//
//	2 of group.release-managers and 1 of group.security
//	1 of (group.owners, principal.alice) or (2 of group.ops and 1 of group.risk)
//
// "and" binds tighter than "or". Each approver counts once, wherever he stands: who is in both groups of an "and" meets one
// of its sides. The zero value asks for nothing and can't be parsed.
type Requirement struct {
	op    operator
	parts []Requirement // of and, or
	count int           // of a term
	who   []subject     // of a term
}

type operator int

const (
	term operator = iota
	and
	or
)

// subject is a group, or a principal when group is "".
type subject struct {
	group     GroupName
	principal PrincipalName
}

// maxRequirement bounds the approvals that a rule can ask for, and so the search for who meets what.
const maxRequirement = 16

// maxWays bounds the alternatives that "or" makes, for the same reason.
const maxWays = 256

// ParseRequirement reads a requirement. Its errors are of kind fault.Invalid.
func ParseRequirement(s string) (Requirement, error) {
	p := &requirementParser{tokens: tokens(s)}
	r, err := p.or()
	if err == nil && len(p.tokens) > 0 {
		err = p.unexpected("the end")
	}
	if err == nil && r.most() > maxRequirement {
		err = fmt.Errorf("it asks for up to %d approvals; %d are allowed", r.most(), maxRequirement)
	}
	if err == nil && r.width() > maxWays {
		err = fmt.Errorf("there are more than %d ways to meet it", maxWays)
	}
	if err != nil {
		return Requirement{}, fault.WithHint(fault.Errorf(fault.Invalid, "requirement %q: %w", s, err),
			`write it as "2 of group.NAME and 1 of (group.NAME, principal.NAME)"`)
	}
	return r, nil
}

// tokens splits at white space, parentheses and commas; the latter two are tokens themselves.
func tokens(s string) []string {
	for _, c := range []string{"(", ")", ","} {
		s = strings.ReplaceAll(s, c, " "+c+" ")
	}
	return strings.Fields(s)
}

type requirementParser struct {
	tokens []string
	depth  int
}

func (p *requirementParser) next() string {
	if len(p.tokens) == 0 {
		return ""
	}
	t := p.tokens[0]
	p.tokens = p.tokens[1:]
	return t
}

func (p *requirementParser) take(want string) bool {
	if len(p.tokens) == 0 || p.tokens[0] != want {
		return false
	}
	p.next()
	return true
}

func (p *requirementParser) unexpected(want string) error {
	if len(p.tokens) == 0 {
		return fmt.Errorf("it ends where %s should be", want)
	}
	return fmt.Errorf("%q stands where %s should be", p.tokens[0], want)
}

func (p *requirementParser) or() (Requirement, error)  { return p.list("or", or, p.and) }
func (p *requirementParser) and() (Requirement, error) { return p.list("and", and, p.factor) }

func (p *requirementParser) list(word string, op operator, inner func() (Requirement, error)) (Requirement, error) {
	first, err := inner()
	if err != nil {
		return Requirement{}, err
	}
	parts := []Requirement{first}
	for p.take(word) {
		r, err := inner()
		if err != nil {
			return Requirement{}, err
		}
		parts = append(parts, r)
	}
	if len(parts) == 1 {
		return first, nil
	}
	return Requirement{op: op, parts: parts}, nil
}

func (p *requirementParser) factor() (Requirement, error) {
	if !p.take("(") {
		return p.term()
	}
	if p.depth++; p.depth > maxRequirement {
		return Requirement{}, fmt.Errorf("it has more than %d parentheses inside each other", maxRequirement)
	}
	r, err := p.or()
	if err == nil && !p.take(")") {
		err = p.unexpected(`")"`)
	}
	p.depth--
	return r, err
}

func (p *requirementParser) term() (Requirement, error) {
	if len(p.tokens) == 0 {
		return Requirement{}, p.unexpected("a count")
	}
	n, err := strconv.Atoi(p.tokens[0])
	if err != nil || n < 1 || strconv.Itoa(n) != p.tokens[0] {
		return Requirement{}, p.unexpected("a count")
	}
	p.next()
	if !p.take("of") {
		return Requirement{}, p.unexpected(`"of"`)
	}
	r := Requirement{count: n}
	if !p.take("(") {
		s, err := p.subject()
		r.who = []subject{s}
		return r, err
	}
	for {
		s, err := p.subject()
		if err != nil {
			return Requirement{}, err
		}
		r.who = append(r.who, s)
		if p.take(")") {
			return r, nil
		}
		if !p.take(",") {
			return Requirement{}, p.unexpected(`"," or ")"`)
		}
	}
}

func (p *requirementParser) subject() (subject, error) {
	if len(p.tokens) > 0 {
		if name, ok := strings.CutPrefix(p.tokens[0], "group."); ok && name != "" {
			p.next()
			return subject{group: GroupName(name)}, nil
		}
		if name, ok := strings.CutPrefix(p.tokens[0], "principal."); ok && name != "" {
			p.next()
			return subject{principal: PrincipalName(name)}, nil
		}
	}
	return subject{}, p.unexpected("group.NAME or principal.NAME")
}

// String prints the requirement with as few parentheses as it needs; ParseRequirement reads it back.
func (r Requirement) String() string {
	if r.op == term {
		var who []string
		for _, s := range r.who {
			who = append(who, s.String())
		}
		if len(who) == 1 {
			return fmt.Sprintf("%d of %s", r.count, who[0])
		}
		return fmt.Sprintf("%d of (%s)", r.count, strings.Join(who, ", "))
	}
	word := map[operator]string{and: " and ", or: " or "}[r.op]
	var parts []string
	for _, p := range r.parts {
		s := p.String()
		if p.op == or || p.op == r.op {
			s = "(" + s + ")"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, word)
}

func (s subject) String() string {
	if s.group != "" {
		return "group." + string(s.group)
	}
	return "principal." + string(s.principal)
}

// most is the largest number of approvals that the requirement can ask for.
func (r Requirement) most() int {
	n := r.count
	for _, p := range r.parts {
		if r.op == or {
			n = max(n, p.most())
		} else {
			n += p.most()
		}
	}
	return n
}

// width is how many ways there are, without listing them; more than maxWays is maxWays+1.
func (r Requirement) width() int {
	if r.op == term {
		return 1
	}
	n := 0
	if r.op == and {
		n = 1
	}
	for _, p := range r.parts {
		if r.op == or {
			n += p.width()
		} else {
			n *= p.width()
		}
		n = min(n, maxWays+1)
	}
	return n
}

// subjects are all groups and principals that the requirement names.
func (r Requirement) subjects() []subject {
	out := slices.Clone(r.who)
	for _, p := range r.parts {
		out = append(out, p.subjects()...)
	}
	return out
}

// ways returns the sets of terms of which one has to be met in full: the disjunctive normal form.
func (r Requirement) ways() [][]Requirement {
	switch r.op {
	case or:
		var out [][]Requirement
		for _, p := range r.parts {
			out = append(out, p.ways()...)
		}
		return out
	case and:
		out := [][]Requirement{{}}
		for _, p := range r.parts {
			var next [][]Requirement
			for _, head := range out {
				for _, tail := range p.ways() {
					next = append(next, slices.Concat(head, tail))
				}
			}
			out = next
		}
		return out
	}
	return [][]Requirement{{r}}
}

// Met reports whether the approvers meet the requirement, each counting once. It is monotone: one more approver never
// makes it unmet.
func (d Definition) Met(r Requirement, approvers []PrincipalName) bool {
	return slices.ContainsFunc(r.ways(), func(terms []Requirement) bool { return d.assign(terms, approvers) })
}

// assign reports whether distinct approvers can be given to all places of the terms: a maximum matching by augmenting
// paths (Kuhn's algorithm).
func (d Definition) assign(terms []Requirement, approvers []PrincipalName) bool {
	approvers = slices.Compact(slices.Sorted(slices.Values(approvers)))
	var places []func(PrincipalName) bool
	for _, t := range terms {
		for range t.count {
			places = append(places, func(n PrincipalName) bool { return d.eligible(t, n) })
		}
	}
	holds := make([]int, len(approvers)) // the place of each approver, -1 for none
	for i := range holds {
		holds[i] = -1
	}
	var seat func(place int, tried []bool) bool
	seat = func(place int, tried []bool) bool {
		for i, name := range approvers {
			if tried[i] || !places[place](name) {
				continue
			}
			tried[i] = true
			if holds[i] < 0 || seat(holds[i], tried) {
				holds[i] = place
				return true
			}
		}
		return false
	}
	for place := range places {
		if !seat(place, make([]bool, len(approvers))) {
			return false
		}
	}
	return true
}

func (d Definition) eligible(t Requirement, name PrincipalName) bool {
	return slices.ContainsFunc(t.who, func(s subject) bool {
		if s.group == "" {
			return s.principal == name
		}
		return slices.Contains(d.Members(s.group), name)
	})
}

// Eligible lists everybody whose approval can count for the requirement, sorted: persons who are not disabled.
func (d Definition) Eligible(r Requirement) []PrincipalName {
	var out []PrincipalName
	for _, p := range d.Principals {
		one := Requirement{who: r.subjects()}
		if !p.Disabled && !p.Machine && d.eligible(one, p.Name) {
			out = append(out, p.Name)
		}
	}
	return out
}
