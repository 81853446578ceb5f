package deploy

import (
	"encoding/json"
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
	maxFindingText = 1 << 10
	maxListBytes   = 32 << 10 // of an entry's findings, and of its keys
	maxSuccessors  = 16
	maxDriftCause  = 120
	maxDriftKeys   = 64 // of one instance; more tell nothing new
	promptReplaces = 3  // of a version's instances that differ, one after the other, until replacing waits
	maxDriftWait   = 10 * time.Minute
	driftMemory    = time.Hour // without a finding, what was before counts no more
)

// Resolution is how it came that an instance differs no more.
type Resolution string

// The resolutions.
const (
	Replaced Resolution = "replaced" // it is gone, and others took over
	Removed  Resolution = "removed"  // it is gone
	Ceased   Resolution = "ceased"   // two looks found it as released
)

// Recurrence counts how often the same happened, one time after the other: that instances of a version were found to differ, each
// having replaced the one before, or that an instance was found as released again.
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

// at returns the recurrence as it counts at that time.
func (r Recurrence) at(now time.Time) Recurrence {
	if now.Sub(r.Last) >= driftMemory {
		return Recurrence{}
	}
	return r
}

// wait returns how long what follows takes: none the first times.
func (r Recurrence) wait() time.Duration {
	if r.Count <= promptReplaces {
		return 0
	}
	return min(maxDriftWait, time.Minute<<min(r.Count-promptReplaces-1, 10))
}

// due returns when an instance that was just found to differ is to be replaced; zero: at once.
func (r Recurrence) due() time.Time {
	if r.wait() == 0 {
		return time.Time{}
	}
	return r.Last.Add(r.wait())
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
	if len(i.Drift) == 0 {
		i.DriftAt = at
	}
	if i.Response == "" || i.Response == spec.Alert {
		i.Response = s.Response
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

// settle folds that an instance differs no more.
func (e *Environment) settle(s Step, at time.Time) error {
	i, ok := e.Instances[s.ID]
	switch {
	case !ok || len(i.Drift) == 0:
		return fault.Errorf(fault.Conflict, "no such instance, or it does not differ")
	case s.Resolution != Replaced && s.Resolution != Removed && s.Resolution != Ceased:
		return fault.Errorf(fault.Invalid, "unknown resolution %q", s.Resolution)
	case s.Resolution == Ceased && i.Response != spec.Alert:
		return fault.Errorf(fault.Conflict, "it is to be replaced whatever it is like by now")
	}
	if s.Resolution == Ceased {
		i.Ceased = i.Ceased.after(at, at)
	}
	i.Drift, i.DriftAt, i.Response = nil, time.Time{}, ""
	e.Instances[s.ID] = i
	return nil
}

// measure records how an instance differs from its release, each thing once, and that it differs no more.
func (t *turn) measure(i Instance, o instance.Observation) {
	switch {
	case !i.Live() || o.State != instance.Running:
	case o.Clean && len(o.Drift) == 0:
		t.cease(i)
	default:
		t.detect(i, o.Drift)
	}
}

// detect records what is new of the findings; all of them, when something else follows on them by now.
func (t *turn) detect(i Instance, found []instance.Finding) {
	response := t.e.response()
	stricter := i.Response == spec.Alert && response != spec.Alert
	fresh := found
	if !stricter {
		fresh = i.fresh(found)
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
	step := Step{Kind: Drifted, ID: i.ID, Findings: fitting(fresh), Response: response, Cause: cause}
	if due := t.e.Drifts[i.Digest].after(i.CreatedAt, t.now).due(); !due.IsZero() && response != spec.Alert {
		step.Until = due.UnixMilli()
	}
	t.emit(step)
}

// fresh returns the findings that were not recorded yet.
func (i Instance) fresh(found []instance.Finding) []instance.Finding {
	if len(i.Drift) >= maxDriftKeys {
		return nil
	}
	var fresh []instance.Finding
	for _, f := range found {
		if !slices.Contains(i.Drift, f.Key()) {
			fresh = append(fresh, f)
		}
	}
	return fresh
}

// fitting returns as many of the findings as an entry can carry, at least one. The others are fresh in the next turn.
func fitting(found []instance.Finding) []instance.Finding {
	var list []instance.Finding
	for _, f := range found[:min(len(found), maxFindings)] {
		list = append(list, f.Cut(maxFindingText))
	}
	return list[:fits(list)]
}

// fits returns how many elements of the list an entry can carry, at least one.
func fits[T any](list []T) int {
	size := 0
	for n, x := range list {
		b, _ := json.Marshal(x) // text and lists of text always have JSON
		if size += len(b); size > maxListBytes && n > 0 {
			return n
		}
	}
	return len(list)
}

// cease records that an instance that was to be left alone is as released again.
func (t *turn) cease(i Instance) {
	if len(i.Drift) == 0 || i.Response != spec.Alert || !t.reached(i.DriftAt.Add(i.Ceased.at(i.DriftAt).wait())) {
		return
	}
	t.emit(t.resolution(i, Ceased))
}

// outlive records that an instance that differs is gone.
func (t *turn) outlive(i Instance) {
	s := t.resolution(i, Removed)
	for _, id := range t.groups[i.Component] {
		other, ok := t.e.Instances[id]
		if ok && id != i.ID && other.Live() && !other.CreatedAt.Before(i.DriftAt) && len(s.Successors) < maxSuccessors {
			s.Resolution, s.Successors = Replaced, append(s.Successors, id)
		}
	}
	t.emit(s)
}

func (t *turn) resolution(i Instance, how Resolution) Step {
	return Step{Kind: Settled, ID: i.ID, Resolution: how, Keys: slices.Clone(i.Drift[:fits(i.Drift)]), OpenMillis: t.now.Sub(i.DriftAt).Milliseconds()}
}

// response is the environment's rule: the head's. A destroyed environment goes by the one that it had.
func (e *Environment) response() spec.Response {
	if e.Head.Release == "" {
		return e.Previous.Record.Response()
	}
	return e.Head.Record.Response()
}
