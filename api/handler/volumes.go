package handler

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

func (h *Handler) registerVolumes() {
	const missing = http.StatusNotFound
	register(h, envOp("list-volumes", http.MethodGet, api.PathVolumes, "List volumes",
		"Every volume of the environment with its versions, of which instances get the current one, and its snapshots. Tells sizes and digests, and nothing of what is in them.", missing),
		func(_ context.Context, in *envInput) (*body[api.Volumes], error) {
			return answerWith(h.volumes(spec.EnvName(in.Env)))
		})
	register(h, envOp("delete-volume", http.MethodPost, api.PathVolumeDelete, "Delete a version or a snapshot of a volume",
		"For good, to free space. Never the version that instances get: that goes with destroy.", missing, http.StatusConflict),
		func(ctx context.Context, in *envBody[api.VolumeDeleteRequest]) (*body[api.Volumes], error) {
			d := state.VolumeDelete{Component: spec.ComponentName(in.Body.Component), Volume: spec.VolumeName(in.Body.Volume), Version: in.Body.Version, Snapshot: in.Body.Snapshot}
			if err := h.config.Control.DeleteVolume(ctx, actorFrom(ctx), spec.EnvName(in.Env), d, in.Body.Reason); err != nil {
				return nil, err
			}
			return answerWith(h.volumes(spec.EnvName(in.Env)))
		})
}

func (h *Handler) volumes(name spec.EnvName) (api.Volumes, error) {
	e, err := h.config.Control.State().Environment(name)
	if err != nil {
		return api.Volumes{}, err
	}
	out := api.Volumes{Env: string(name), Volumes: []api.Volume{}}
	for _, id := range slices.Sorted(maps.Keys(e.Data)) {
		if v := e.Data[id]; len(v.Versions)+len(v.Snapshots) > 0 {
			out.Volumes = append(out.Volumes, volumeOf(v))
		}
	}
	return out, nil
}

func volumeOf(v deploy.Volume) api.Volume {
	out := api.Volume{Component: string(v.Component), Name: string(v.Name), Current: v.Current, Versions: []api.VolumeKept{}, Snapshots: []api.VolumeKept{}}
	for _, k := range v.Versions {
		out.Versions = append(out.Versions, keptOf(k))
	}
	for _, k := range v.Snapshots {
		if k.Content != nil {
			out.Snapshots = append(out.Snapshots, keptOf(k))
		}
	}
	return out
}

func keptOf(k deploy.Kept) api.VolumeKept {
	out := api.VolumeKept{Number: k.Number, Of: k.Of, Generation: k.Generation, At: whenKnown(k.At)}
	if k.From != nil {
		out.From = k.From.String()
	}
	if c := k.Content; c != nil {
		out.Bytes, out.Files, out.Digest, out.Changed = c.Bytes, c.Files, c.Digest, c.Changed
	}
	return out
}

func whenKnown(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// copiesOf tells how far the copies of an environment's volumes are.
func (h *Handler) copiesOf(name spec.EnvName) []api.VolumeCopy {
	if h.config.Copies == nil {
		return nil
	}
	var out []api.VolumeCopy
	for _, p := range h.config.Copies(name) {
		out = append(out, api.VolumeCopy{Component: string(p.Copy.Component), Volume: string(p.Copy.Volume), To: p.Copy.To.String(), Done: p.Done, Total: p.Total})
	}
	return out
}
