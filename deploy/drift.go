package deploy

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

// ByDrift is who taints when an instance was measured and differs.
const ByDrift = "drift"

// Measures of drift.
const (
	maxFindings    = 16 // in one entry: an entry of the ledger is bounded
	maxDriftCause  = 120
	maxDriftKeys   = 64 // of one instance; more tell nothing new
	promptReplaces = 3  // of a version's instances that differ, one after the other, until replacing waits
	maxDriftWait   = 10 * time.Minute
	driftMemory    = time.Hour // without a finding, what was before counts no more
)

// Recurrence counts how often instances of a version were found to differ, each having replaced the one before.
type Recurrence struct {
	Count int       `json:"count"`
	Last  time.Time `json:"last"`
}

// after returns the recurrence with one more finding, in an instance that was created then. Findings in instances that were there
// already at the last one have the same cause.
func (r Recurrence) after(created, now time.Time) Recurrence {
	switch {
	case now.Sub(r.Last) >= driftMemory:
		r.Count = 1
	case !created.Before(r.Last):
		r.Count++
	}
	r.Last = now
	return r
}

// due returns when an instance that was just found to differ is to be replaced; zero: at once.
func (r Recurrence) due() time.Time {
	if r.Count <= promptReplaces {
		return time.Time{}
	}
	return r.Last.Add(min(maxDriftWait, time.Minute<<min(r.Count-promptReplaces-1, 10)))
}

// drift folds findings.
func (e *Environment) drift(s Step, at time.Time) error {
	i, ok := e.Instances[s.ID]
	switch {
	case !ok:
		return fault.Errorf(fault.Conflict, "no such instance")
	case len(s.Findings) == 0:
		return fault.Errorf(fault.Invalid, "how does it differ?")
	case !slices.Contains(spec.Responses(), s.Response):
		return fault.Errorf(fault.Invalid, "unknown response %q", s.Response)
	}
	i.Drift = slices.Clone(i.Drift)
	for _, f := range s.Findings {
		if !slices.Contains(i.Drift, f.Key()) {
			i.Drift = append(i.Drift, f.Key())
		}
	}
	e.Drifts = maps.Clone(e.Drifts)
	if e.Drifts == nil {
		e.Drifts = map[digest.Digest]Recurrence{}
	}
	e.Drifts[i.Digest] = e.Drifts[i.Digest].after(i.CreatedAt, at)
	e.Instances[s.ID] = i
	if s.Response == spec.Alert || i.taintedBy(ByDrift) {
		return nil
	}
	return e.taint(Step{Kind: Tainted, ID: s.ID, By: ByDrift, Cause: s.Cause, Until: s.Until}, at)
}

// measure records how an instance differs from its release, each thing once.
func (t *turn) measure(i Instance, o instance.Observation) {
	if !i.Live() || o.State != instance.Running || len(i.Drift) >= maxDriftKeys {
		return
	}
	var fresh []instance.Finding
	for _, f := range o.Drift {
		if !slices.Contains(i.Drift, f.Key()) {
			fresh = append(fresh, f)
		}
	}
	if len(fresh) == 0 {
		return
	}
	cause := fresh[0].String()
	if len(cause) > maxDriftCause {
		cause = fresh[0].Key() + " differs"
	}
	if n := len(fresh); n > 1 {
		cause += fmt.Sprintf(" and %d more", n-1)
	}
	step := Step{Kind: Drifted, ID: i.ID, Findings: slices.Clone(fresh[:min(len(fresh), maxFindings)]), Response: t.e.response(), Cause: cause}
	if due := t.e.Drifts[i.Digest].after(i.CreatedAt, t.now).due(); !due.IsZero() && step.Response != spec.Alert {
		step.Until = due.UnixMilli()
	}
	t.emit(step)
}

// response is the environment's rule: the head's. A destroyed environment goes by the one that it had.
func (e *Environment) response() spec.Response {
	if e.Head.Release == "" {
		return e.Previous.Record.Response()
	}
	return e.Head.Record.Response()
}
