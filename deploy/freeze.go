package deploy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

// Measures of freezing.
const (
	maxFreezeDrain = 5 * time.Second  // for what is under way in an instance that is to be frozen
	freezeLimit    = 30 * time.Second // from then on, for its evidence
)

// freezing reports whether the instance is to be frozen, and its evidence is not recorded yet.
func (i Instance) freezing() bool { return i.Live() && !i.FreezeAt.IsZero() && i.FrozenAt.IsZero() }

// freeze folds that an instance is to be frozen, and that its evidence is kept.
func (e *Environment) freeze(s Step, at time.Time) error {
	i, ok := e.Instances[s.ID]
	switch {
	case !ok || !i.Live():
		return fault.Errorf(fault.Conflict, "no such instance, or it is not live")
	case s.Kind == Freeze && (i.Response != spec.Freeze || !i.FreezeAt.IsZero()):
		return fault.Errorf(fault.Conflict, "it is not to be kept, or is frozen already")
	case s.Kind == Frozen && !i.freezing():
		return fault.Errorf(fault.Conflict, "it is not being frozen")
	case s.Kind == Frozen && s.Evidence == "" && s.Cause == "":
		return fault.Errorf(fault.Invalid, "no evidence, and no cause why")
	}
	if s.Kind == Freeze {
		i.FreezeAt, i.Barred = at, true
	} else {
		i.FrozenAt = at
	}
	e.Instances[s.ID] = i
	return nil
}

// freeze takes every instance that is to be kept as evidence one step further.
func (t *turn) freeze() {
	for _, id := range slices.Sorted(maps.Keys(t.e.Instances)) {
		i := t.e.Instances[id]
		if i.Live() && i.Response == spec.Freeze && i.FreezeAt.IsZero() && t.spent(i) && t.spare(i) {
			t.retire(id, "")
		}
		if i = t.e.Instances[id]; i.freezing() {
			t.keep(i)
		}
		if i = t.e.Instances[id]; i.Live() && !i.FrozenAt.IsZero() {
			t.retire(id, "kept as evidence: "+i.replaced())
		}
	}
}

// spare reports whether its version can do without the instance at once: of several, the last that serves keeps its traffic until
// another does.
func (t *turn) spare(i Instance) bool {
	wanted := max(placed(t.e.Head.Record, i.Component).Replicas, placed(t.e.Previous.Record, i.Component).Replicas)
	if wanted < 2 || !t.e.Serving(i) {
		return true
	}
	return slices.ContainsFunc(t.groups[i.Component], func(id instance.ID) bool {
		other, ok := t.e.Instances[id]
		return ok && id != i.ID && other.Digest == i.Digest && t.e.Serving(other)
	})
}

// keep records the evidence, or that there is none.
func (t *turn) keep(i Instance) {
	kept := t.have[i.ID].Kept
	if kept == (instance.Kept{}) {
		if !t.reached(i.FreezeAt.Add(t.e.freezeDrain(i) + freezeLimit)) {
			return
		}
		kept.Cause = fmt.Sprintf("no evidence within %v", freezeLimit)
	}
	t.emit(Step{Kind: Frozen, ID: i.ID, Evidence: kept.Evidence, Bytes: kept.Bytes, Cause: kept.Cause})
}

// retire retires an instance; one that is to be kept as evidence is frozen before.
func (t *turn) retire(id instance.ID, cause string) {
	i := t.e.Instances[id]
	switch {
	case i.Response != spec.Freeze || !i.FrozenAt.IsZero():
		t.emit(Step{Kind: Retire, ID: id, Cause: cause})
	case i.FreezeAt.IsZero():
		t.emit(Step{Kind: Freeze, ID: id, Cause: cmp.Or(cause, i.replaced())})
	}
}
