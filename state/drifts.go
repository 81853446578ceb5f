package state

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

// Drift is a time in which something that runs differed from what was released: from the first finding until that is resolved. Entries are
// named by their index; 0 is none, since that is the genesis.
type Drift struct {
	Env       spec.EnvName       `json:"env,omitempty"` // unset, as the next two: it is of the machine, and has one key
	Instance  instance.ID        `json:"instance,omitempty"`
	Component spec.ComponentName `json:"component,omitempty"`
	At        time.Time          `json:"at"`
	Detected  []int64            `json:"detected"` // the entries of the findings; the first names it
	Keys      []string           `json:"keys"`     // of the findings
	Causes    []string           `json:"causes"`   // what differs, one sentence for each entry
	Response  string             `json:"response"` // the newest

	Frozen   int64         `json:"frozen,omitempty"`   // the entry with its evidence, or that there is none
	Evidence digest.Digest `json:"evidence,omitempty"` // the body of that

	ResolvedAt time.Time         `json:"resolved_at,omitzero"` // zero: it is open
	Resolved   int64             `json:"resolved,omitempty"`   // the entry; before there were such entries, that of the instance's end
	Resolution deploy.Resolution `json:"resolution,omitempty"`
	How        string            `json:"how,omitempty"` // of the machine: instead of a resolution
	Successors []instance.ID     `json:"successors,omitempty"`
}

// Open reports whether it is not resolved.
func (d Drift) Open() bool { return d.ResolvedAt.IsZero() }

// maxDriftEntries is how many entries of one time are listed; those beyond are in the ledger.
const maxDriftEntries = 64

// driftKey has the key of the finding as well: an entry about the machine may have several, each of which is over by itself.
func driftKey(d *Drift) string { return fmt.Sprintf("%s/%019d/%s", d.Env, d.Detected[0], d.Keys[0]) }

// differing is what the index of open ones has.
func differing(d *Drift) string {
	switch {
	case !d.Open():
		return ""
	case d.Instance == "":
		return openOnMachine(d.Keys[0])
	}
	return openInstance(d.Env, d.Instance)
}

func openInstance(env spec.EnvName, id instance.ID) string { return string(env) + "/" + string(id) }
func openOnMachine(findingKey string) string               { return "/" + findingKey }

// Drifts yields what differed in an environment, oldest first; for "" what differed on the machine, then in all environments by name.
func (s State) Drifts(env spec.EnvName) iter.Seq[Drift] {
	prefix := ""
	if env != "" {
		prefix = string(env) + "/"
	}
	return all[Drift](s.db.Txn(false), tableDrifts, prefix)
}

// drifts folds what the steps say of instances that differ. env is as before them.
func (f *fold) drifts(env Environment, entries []Entry) {
	for n, e := range entries {
		index := f.log.Size + int64(n)
		switch s := e.Data.(Step).Step; s.Kind {
		case deploy.Drifted:
			f.detected(env.Instances[s.ID], index, e.Time, s)
		case deploy.Frozen:
			if d := f.differs(openInstance(env.Name, s.ID)); d != nil {
				d.Frozen, d.Evidence = index, s.Evidence
				f.put(tableDrifts, d)
			}
		case deploy.Settled:
			f.resolved(env.Name, index, e.Time, s)
		case deploy.Gone: // without an entry before it: it was written before there were such
			f.resolved(env.Name, index, e.Time, deploy.Step{ID: s.ID, Resolution: deploy.Removed})
		}
	}
}

func (f *fold) detected(i deploy.Instance, index int64, at time.Time, s deploy.Step) {
	d := f.differs(openInstance(i.Env, i.ID))
	if d == nil {
		d = &Drift{Env: i.Env, Instance: i.ID, Component: i.Component, At: at}
	}
	d.Response = string(s.Response)
	if len(d.Detected) < maxDriftEntries {
		d.Detected, d.Causes = append(slices.Clip(d.Detected), index), append(slices.Clip(d.Causes), s.Cause)
	}
	d.Keys = slices.Clip(d.Keys)
	for _, finding := range s.Findings {
		if k := finding.Key(); !slices.Contains(d.Keys, k) {
			d.Keys = append(d.Keys, k)
		}
	}
	f.put(tableDrifts, d)
}

func (f *fold) resolved(env spec.EnvName, index int64, at time.Time, s deploy.Step) {
	d := f.differs(openInstance(env, s.ID))
	if d == nil {
		return
	}
	d.ResolvedAt, d.Resolved, d.Resolution, d.Successors = at, index, s.Resolution, s.Successors
	f.put(tableDrifts, d)
}

// detectedBeside folds what was found on the machine.
func (f *fold) detectedBeside(e Entry, d HostDrift) {
	for _, finding := range d.Findings {
		f.put(tableDrifts, &Drift{At: e.Time, Detected: []int64{f.log.Size}, Keys: []string{finding.Key()}, Causes: []string{finding.String()},
			Response: string(d.Response)})
	}
}

func (f *fold) resolvedBeside(e Entry, d HostResolved) {
	for _, k := range d.Keys {
		if open := f.differs(openOnMachine(k)); open != nil {
			open.ResolvedAt, open.Resolved, open.How = e.Time, f.log.Size, d.How
			f.put(tableDrifts, open)
		}
	}
}

// differs returns a copy of what is open, nil when nothing is.
func (f *fold) differs(open string) *Drift {
	d := get[Drift](f.tx, tableDrifts, indexOpen, open)
	if d == nil {
		return nil
	}
	return new(*d)
}
