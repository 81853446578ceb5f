package handler

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// driftsInput asks for what differed.
type driftsInput struct {
	Open  bool      `query:"open" doc:"Only what is not resolved."`
	Since time.Time `query:"since" doc:"Only what was open then or later."`
}

// driftInput asks for what differed in one environment. (huma sees no fields of embedded types that are not exported.)
type driftInput struct {
	Env   string    `path:"env" maxLength:"63" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?$" example:"staging" doc:"Name of the environment."`
	Open  bool      `query:"open" doc:"Only what is not resolved."`
	Since time.Time `query:"since" doc:"Only what was open then or later."`
}

func (h *Handler) registerDrifts() {
	const order = "What was measured and differed from its release, oldest first: when, in what, what followed, and how it was resolved."
	register(h, envOp("get-drift", http.MethodGet, api.PathDrift, "List what differed in an environment", order, http.StatusNotFound),
		func(ctx context.Context, in *driftInput) (*body[api.Drifts], error) {
			env := spec.EnvName(in.Env)
			if _, err := h.config.Control.State().Environment(env); err != nil {
				return answerWith(api.Drifts{}, err)
			}
			return answerWith(h.drifts(ctx, env, driftsInput{in.Open, in.Since}), nil)
		})
	register(h, envOp("list-drift", http.MethodGet, api.PathDrifts, "List what differed",
		order+" Of the environments that the caller may read, and of the machine for whoever may read the ledger."),
		func(ctx context.Context, in *driftsInput) (*body[api.Drifts], error) {
			return answerWith(h.drifts(ctx, "", *in), nil)
		})
}

// drifts lists what differed in an environment, or for "" in all that the caller sees.
func (h *Handler) drifts(ctx context.Context, env spec.EnvName, asked driftsInput) api.Drifts {
	out := api.Drifts{Drifts: []api.Drift{}}
	for d := range h.config.Control.State().Drifts(env) {
		over := !d.Open()
		if over && (asked.Open || d.ResolvedAt.Before(asked.Since)) || env == "" && !h.sees(ctx, d.Env) {
			continue
		}
		out.Drifts = append(out.Drifts, driftOf(d))
	}
	slices.SortStableFunc(out.Drifts, func(a, b api.Drift) int { return cmp.Compare(a.Entries[0], b.Entries[0]) })
	return out
}

func driftOf(d state.Drift) api.Drift {
	out := api.Drift{
		Env: string(d.Env), Instance: string(d.Instance), Component: string(d.Component), At: d.At,
		Findings: d.Keys, Causes: d.Causes, Response: d.Response,
		Frozen: uint64(d.Frozen), Evidence: d.Evidence,
	}
	for _, n := range d.Detected {
		out.Entries = append(out.Entries, uint64(n))
	}
	if d.Open() {
		return out
	}
	out.Resolved = &api.DriftResolved{At: d.ResolvedAt, Entry: uint64(d.Resolved), How: cmp.Or(string(d.Resolution), d.How)}
	for _, id := range d.Successors {
		out.Resolved.Successors = append(out.Resolved.Successors, string(id))
	}
	return out
}
