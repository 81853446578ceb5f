package deploy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

// Taint is one reason why an instance may differ from its release. It is never taken back.
type Taint struct {
	Since time.Time `json:"since"`
	By    string    `json:"by"` // BySession(id) or ByForeign
	Cause string    `json:"cause"`
	Until time.Time `json:"until,omitzero"` // when the instance may be replaced; zero: at once
	Over  bool      `json:"over,omitempty"` // the session's end was recorded
}

// ByForeign is who taints when a process that is not the instance's was found in it.
const ByForeign = "foreign process"

// BySession is who taints by a session.
func BySession(id string) string { return "session:" + id }

// maxForeign is how many processes are recorded with a taint: an entry of the ledger is bounded.
const maxForeign = 16

// Tainted returns all that tainted the instance as one: since the first, due when the last session is over; false: nothing did.
func (i Instance) Tainted() (Taint, bool) {
	if len(i.Taints) == 0 {
		return Taint{}, false
	}
	all := Taint{Since: i.Taints[0].Since, Until: i.due()}
	var by, causes []string
	for _, t := range i.Taints {
		by, causes = append(by, t.By), append(causes, t.Cause)
	}
	all.By, all.Cause = strings.Join(by, ", "), strings.Join(causes, "; ")
	return all, true
}

// due returns when a tainted instance is to be replaced, zero for at once: open sessions are waited for, but not with a
// foreign process in it.
func (i Instance) due() time.Time {
	var last time.Time
	for _, t := range i.Taints {
		if t.Until.IsZero() {
			return time.Time{}
		}
		if t.Until.After(last) {
			last = t.Until
		}
	}
	return last
}

func (i Instance) taintedBy(by string) bool {
	return slices.ContainsFunc(i.Taints, func(t Taint) bool { return t.By == by })
}

// taint folds a taint. A second one of the same session moves its time, and nothing else.
func (e *Environment) taint(s Step, at time.Time) error {
	i, ok := e.Instances[s.ID]
	switch {
	case !ok:
		return fault.Errorf(fault.Conflict, "no such instance")
	case s.By == "" || s.Cause == "":
		return fault.Errorf(fault.Invalid, "who tainted it, and why?")
	}
	var until time.Time
	if s.Until != 0 {
		until = time.UnixMilli(s.Until).UTC()
	}
	i.Taints = slices.Clone(i.Taints)
	if n := slices.IndexFunc(i.Taints, func(t Taint) bool { return t.By == s.By }); n >= 0 {
		i.Taints[n].Until, i.Taints[n].Over = until, true
	} else {
		i.Taints = append(i.Taints, Taint{Since: at, By: s.By, Cause: s.Cause, Until: until})
	}
	i.Barred = i.Barred || share(e.Traffic[i.Component], i.Digest) == 0
	e.Instances[s.ID] = i
	return nil
}

// suspect taints an instance in which the host sees processes that are not its own. Once is enough: it is replaced at once.
func (t *turn) suspect(i Instance, o instance.Observation) {
	if len(o.Foreign) == 0 || i.taintedBy(ByForeign) {
		return
	}
	cause := o.Foreign[0].String()
	if n := len(o.Foreign); n > 1 {
		cause += fmt.Sprintf(" and %d more", n-1)
	}
	t.emit(Step{
		Kind: Tainted, ID: i.ID, By: ByForeign, Cause: cause, Foreign: slices.Clone(o.Foreign[:min(len(o.Foreign), maxForeign)]),
	})
	if i.Live() && o.State == instance.Running && t.e.response() == spec.Freeze { // it is evidence, too
		t.detect(i, []instance.Finding{{Kind: "process", Field: "foreign", Found: o.Foreign[0].String(), Controls: []string{"CM-7", "SI-7"}}})
	}
}

// spent reports whether a tainted instance is to be replaced now.
func (t *turn) spent(i Instance) bool { return len(i.Taints) > 0 && t.reached(i.due()) }

// replaced says for what a failing or tainted instance is retired.
func (i Instance) replaced() string {
	if taint, ok := i.Tainted(); ok && i.Health != instance.Failing {
		return "tainted: " + taint.Cause
	}
	return i.Cause
}

// TaintedInstances counts the instances that are tainted.
func (e Environment) TaintedInstances() int {
	n := 0
	for _, i := range e.Instances {
		if len(i.Taints) > 0 {
			n++
		}
	}
	return n
}
