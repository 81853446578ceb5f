package state

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// KindVolumeDelete is the kind of VolumeDelete.
const KindVolumeDelete Kind = "volume.delete"

// VolumeDelete asks for the deletion of a version or a snapshot of a volume: never of the version that instances get.
type VolumeDelete struct {
	Component spec.ComponentName `json:"component"`
	Volume    spec.VolumeName    `json:"volume"`
	Version   int                `json:"version,omitempty"`  // one of the two is set
	Snapshot  int                `json:"snapshot,omitempty"` // one of the two is set
}

// EntryKind returns the kind.
func (VolumeDelete) EntryKind() Kind { return KindVolumeDelete }

// Place is what is to be deleted.
func (d VolumeDelete) Place() deploy.Place {
	return deploy.Place{Version: d.Version, Snapshot: d.Snapshot}
}

func (d VolumeDelete) check(e Entry) error {
	if d.Version < 0 || d.Snapshot < 0 || (d.Version > 0) == (d.Snapshot > 0) {
		return fmt.Errorf("version %d and snapshot %d: want one of them", d.Version, d.Snapshot)
	}
	return cmp.Or(somewhere(e), spec.CheckName(string(d.Component)), spec.CheckName(string(d.Volume)))
}

func (f *fold) volumeDelete(e Entry, d VolumeDelete) error {
	env := f.environment(e.Env)
	id := deploy.IDOf(d.Component, d.Volume)
	for _, other := range slices.Collect(all[Environment](f.tx, tableEnvironments, "")) {
		if other.Name != e.Env && other.ReadsFrom(id, deploy.Place{Env: e.Env, Version: d.Version, Snapshot: d.Snapshot}) {
			return fault.Errorf(fault.Conflict, "environment %s is being made from %s of volume %s", other.Name, d.Place(), id)
		}
	}
	next, err := env.Doom(id, d.Place())
	if err != nil {
		return err
	}
	env.Environment, env.Entry = next, f.log.Size
	f.put(tableEnvironments, &env)
	return nil
}

// checkRestores says what is wrong with restores by themselves. Those of a fork are from another environment, others never.
func checkRestores(list []deploy.Restore, from spec.EnvName) error {
	for i, r := range list {
		switch {
		case r.From.Env != from || r.From.Version < 0 || r.From.Snapshot < 0 || (r.From.Version > 0) == (r.From.Snapshot > 0):
			return fmt.Errorf("volume %s of component %s is restored from %s", r.Volume, r.Component, r.From)
		case r.Live && (from == "" || r.From.Version == 0):
			return fmt.Errorf("volume %s of component %s is restored from what nobody uses, as live", r.Volume, r.Component)
		case i > 0 && deploy.IDOf(list[i-1].Component, list[i-1].Volume) >= deploy.IDOf(r.Component, r.Volume):
			return fmt.Errorf("volume %s of component %s: they are not sorted, or it is there twice", r.Volume, r.Component)
		}
		if err := cmp.Or(spec.CheckName(string(r.Component)), spec.CheckName(string(r.Volume))); err != nil {
			return err
		}
	}
	return nil
}

// restores returns what a head's rollout has to restore. What it is restored from must exist, and the release must have the volume.
func (f *fold) restores(env Environment, list []deploy.Restore, record release.Record) ([]deploy.Restoring, error) {
	var out []deploy.Restoring
	for _, r := range list {
		source := env
		if r.From.Env != "" {
			source = f.environment(r.From.Env)
		}
		if err := restorable(env.Environment, source.Environment, r, record); err != nil {
			return nil, err
		}
		out = append(out, deploy.Restoring{Restore: r})
	}
	return out, nil
}

func restorable(env, source deploy.Environment, r deploy.Restore, record release.Record) error {
	id := deploy.IDOf(r.Component, r.Volume)
	from := source.Data[id]
	_, has := from.Has(deploy.Place{Version: r.From.Version, Snapshot: r.From.Snapshot})
	current := r.From.Snapshot == 0 && r.From.Version == from.Current
	switch {
	case !record.HasVolume(r.Component, r.Volume):
		return fault.Errorf(fault.Conflict, "the release has no volume %s of component %s", r.Volume, r.Component)
	case !has:
		return fault.Errorf(fault.Conflict, "volume %s of environment %s has no %s any more", id, source.Name, deploy.Place{Version: r.From.Version, Snapshot: r.From.Snapshot})
	case current != r.Live:
		return fault.Errorf(fault.Conflict, "version %d of volume %s of environment %s: it is in use: %v", r.From.Version, id, source.Name, current)
	case r.From.Env != "" && env.Data[id].Current > 0:
		return fault.Errorf(fault.Conflict, "environment %s has volume %s already", env.Name, id)
	}
	return nil
}

// DataOf returns what every volume of a release gets so that it has what the generation left in it, and what of that a plan shows; lost
// names those of which nothing is kept. A volume that only this version of its component has had since stays as it is.
func DataOf(env deploy.Environment, generation int, r release.Record) (list []deploy.Restore, items []change.VolumeItem, lost []string, err error) {
	for _, p := range r.Components {
		version, err := p.Component.Digest()
		if err != nil {
			return nil, nil, nil, err
		}
		for _, vol := range p.Component.Volumes {
			v := env.Data[deploy.IDOf(p.Component.Name, vol.Name)]
			item := change.VolumeItem{Component: p.Component.Name, Volume: vol.Name, Keeps: v.Current}
			at, kept, ok := v.AsLeft(generation)
			switch {
			case v.Untouched(generation, version):
				item.Stays = true
			case !ok:
				lost = append(lost, fmt.Sprintf("%s/%s", p.Component.Name, vol.Name))
			default:
				list = append(list, deploy.Restore{Component: p.Component.Name, Volume: vol.Name, From: at})
				item.Version, item.Snapshot, item.At, item.Generation = at.Version, at.Snapshot, kept.At, kept.Generation
				if kept.Content != nil && at.Snapshot > 0 {
					item.Bytes = kept.Content.Bytes
				}
			}
			items = append(items, item)
		}
	}
	slices.SortFunc(list, func(a, b deploy.Restore) int {
		return strings.Compare(string(deploy.IDOf(a.Component, a.Volume)), string(deploy.IDOf(b.Component, b.Volume)))
	})
	return list, items, lost, nil
}
