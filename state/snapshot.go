package state

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
)

// snapshotVersion is raised whenever the fold, or what a snapshot holds, changes: an older snapshot is then of no use,
// and the state is folded from the first entry on.
const snapshotVersion = 12

// snapshot is a state as it is spelled. Lists are sorted by key.
type snapshot struct {
	V            int            `json:"v"`
	Log          Log            `json:"log"`
	Environments []saved        `json:"environments"`
	Generations  []Generation   `json:"generations"`
	Bundles      []KnownBundle  `json:"bundles"`
	Releases     []KnownRelease `json:"releases"`
	Tokens       []Token        `json:"tokens"`
	Changes      []Change       `json:"changes"`
	Revocations  []Revocation   `json:"revocations"`
	Secrets      []KnownSecret  `json:"secrets"`
	Erasures     []KnownErasure `json:"erasures"`
	Host         Host           `json:"host"`
	Drifts       []Drift        `json:"drifts"`
}

// saved is an environment with the components that its head's and its previous release lack, sorted by digest: those of
// instances that retire, and of versions that still have a share of the traffic.
type saved struct {
	Environment
	Loose []release.Component `json:"loose,omitempty"`
}

func save(e Environment) saved {
	held := map[digest.Digest]bool{}
	for _, g := range []deploy.Generation{e.Head, e.Previous} {
		for _, d := range g.Digests {
			held[d] = true
		}
	}
	out := saved{Environment: e}
	for _, d := range slices.Sorted(maps.Keys(e.Components)) {
		if !held[d] {
			out.Loose = append(out.Loose, e.Components[d])
		}
	}
	return out
}

// load is the reverse of save.
func (s saved) load(records Records) (Environment, error) {
	resolved, err := s.Resolve(records)
	if err != nil {
		return Environment{}, err
	}
	for _, c := range s.Loose {
		d, err := c.Digest()
		if err != nil {
			return Environment{}, err
		}
		resolved.Components[d] = c
	}
	s.Environment.Environment = resolved
	return s.Environment, nil
}

// Encode returns the state as bytes: equal states give equal bytes.
func (s State) Encode() ([]byte, error) {
	tx := s.db.Txn(false)
	var environments []saved
	for e := range s.Environments() {
		environments = append(environments, save(e))
	}
	b, err := json.Marshal(snapshot{
		V:            snapshotVersion,
		Log:          s.Log(),
		Environments: environments,
		Generations:  slices.Collect(all[Generation](tx, tableGenerations, "")),
		Bundles:      slices.Collect(all[KnownBundle](tx, tableBundles, "")),
		Releases:     slices.Collect(all[KnownRelease](tx, tableReleases, "")),
		Tokens:       slices.Collect(all[Token](tx, tableTokens, "")),
		Changes:      slices.Collect(all[Change](tx, tableChanges, "")),
		Revocations:  slices.Collect(all[Revocation](tx, tableRevocations, "")),
		Secrets:      slices.Collect(all[KnownSecret](tx, tableSecrets, "")),
		Erasures:     slices.Collect(all[KnownErasure](tx, tableErasures, "")),
		Host:         s.Host(),
		Drifts:       slices.Collect(all[Drift](tx, tableDrifts, "")),
	})
	if err != nil {
		return nil, fmt.Errorf("encoding the state at %d: %w", s.Size(), err)
	}
	return b, nil
}

// DecodeState reads what State.Encode wrote. It fails with fault.Corrupt, or as records does; the state
// can always be folded from the entries instead.
func DecodeState(b []byte, records Records) (State, error) {
	var v struct {
		V int `json:"v"`
	}
	if err := json.Unmarshal(b, &v); err != nil || v.V != snapshotVersion {
		return State{}, fault.Errorf(fault.Corrupt, "decoding a state: version %d, not %d", v.V, snapshotVersion)
	}
	var w snapshot
	if err := strict(b, &w); err != nil {
		return State{}, fault.Errorf(fault.Corrupt, "decoding a state: %w", err)
	}
	s := New(records)
	tx := s.db.Txn(true)
	defer tx.Abort()
	environments := make([]Environment, len(w.Environments))
	for i, e := range w.Environments {
		var err error
		if environments[i], err = e.load(records); err != nil {
			return State{}, fmt.Errorf("decoding a state: %w", err)
		}
	}
	if err := insert(tx.Insert, &w, environments); err != nil {
		return State{}, fault.Errorf(fault.Corrupt, "decoding a state: %w", err)
	}
	tx.Commit()
	return s, nil
}

func insert(put func(string, any) error, w *snapshot, environments []Environment) error {
	if err := put(tableLog, &w.Log); err != nil {
		return err
	}
	for _, err := range []error{
		each(put, tableEnvironments, environments),
		each(put, tableGenerations, w.Generations),
		each(put, tableBundles, w.Bundles),
		each(put, tableReleases, w.Releases),
		each(put, tableTokens, w.Tokens),
		each(put, tableChanges, w.Changes),
		each(put, tableRevocations, w.Revocations),
		each(put, tableSecrets, w.Secrets),
		each(put, tableErasures, w.Erasures),
		put(tableHost, &w.Host),
		each(put, tableDrifts, w.Drifts),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

func each[T any](put func(string, any) error, table string, list []T) error {
	for i := range list {
		if err := put(table, &list[i]); err != nil {
			return err
		}
	}
	return nil
}
