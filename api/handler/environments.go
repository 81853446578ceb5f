package handler

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/planview"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// envInput names an environment in the path.
type envInput struct {
	Env string `path:"env" maxLength:"63" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?$" example:"staging" doc:"Name of the environment."`
}

// envBody is an envInput with a JSON body. (huma sees no fields of embedded types that are not exported.)
type envBody[T any] struct {
	Env  string `path:"env" maxLength:"63" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?$" example:"staging" doc:"Name of the environment."`
	Body T
}

// envOp describes an operation on environments.
func envOp(id, method, path, summary, description string, statuses ...int) huma.Operation {
	return huma.Operation{
		OperationID: id, Method: method, Path: path, Tags: []string{tagEnvironments},
		Summary: summary, Description: description, Errors: statuses,
	}
}

func (h *Handler) registerEnvironments() {
	const read, missing = http.MethodGet, http.StatusNotFound
	register(h, envOp("list-environments", read, api.PathEnvironments, "List environments", "All that ever had a head, also those that are destroyed."),
		func(ctx context.Context, _ *struct{}) (*body[api.Environments], error) {
			return answerWith(h.environments(ctx))
		})
	register(h, envOp("get-environment", read, api.PathEnvironment, "Show an environment",
		"Its head, how the rollout goes, the versions of each component with their share of the traffic, every instance, and where the routes can be reached.", missing),
		func(ctx context.Context, in *envInput) (*body[api.Environment], error) {
			return answerWith(h.environment(ctx, spec.EnvName(in.Env)))
		})
	register(h, envOp("get-history", read, api.PathHistory, "List the heads that an environment had", "Newest first.", missing),
		func(ctx context.Context, in *envInput) (*body[api.History], error) {
			return answerWith(h.history(spec.EnvName(in.Env)))
		})
	h.registerMoves()
	h.registerVolumes()
	h.registerForks()
	h.registerMeasure()
	h.registerDrifts()
	h.registerLogs()
}

// registerMoves adds the operations that move a head, and the one that says what a move would do.
func (h *Handler) registerMoves() {
	const write, missing, stale = http.MethodPost, http.StatusNotFound, http.StatusConflict
	register(h, envOp("plan", write, api.PathPlan, "Plan an apply",
		"Says what applying a release would do, and changes nothing. The bundle, its sources and its images are in the registry already. The server evaluates the bundle again, and refuses a release with another digest.", missing, stale),
		func(ctx context.Context, in *envBody[api.PlanRequest]) (*body[api.Plan], error) {
			return answerWith(h.plan(ctx, in.proposal(in.Body.Bundle, in.Body.Release)))
		})
	register(h, envOp("apply", write, api.PathApply, "Apply a plan",
		"Moves the head to the release, by a plan that was looked at. It returns when that is in the ledger; the rollout follows, and events show it. Refused with 409 when the environment has moved on since the plan.", missing, stale),
		func(ctx context.Context, in *envBody[api.ApplyRequest]) (*body[api.Accepted], error) {
			how, err := h.how(ctx, "apply", spec.EnvName(in.Env), in.Body.How, in.Body.Reason)
			if err != nil {
				return nil, err
			}
			promoted, err := h.promoted(ctx, in.Body.Promoted)
			if err != nil {
				return nil, err
			}
			moved, err := h.config.Control.Apply(ctx, actorFrom(ctx), control.Move{
				Proposal: in.proposal(in.Body.Bundle, in.Body.Release), Base: in.Body.BaseGeneration, Plan: in.Body.PlanDigest, Reason: in.Body.Reason, How: how, From: promoted,
			})
			return answerWith(acceptedOf(moved), err)
		})
	register(h, envOp("rollback", write, api.PathRollback, "Go back to an earlier release",
		"Moves the head to the release of an earlier generation, as a new generation. While the old instances are warm, only the traffic switches.", missing, stale),
		func(ctx context.Context, in *envBody[api.RollbackRequest]) (*body[api.Accepted], error) {
			how, err := h.how(ctx, "rollback", spec.EnvName(in.Env), in.Body.How, in.Body.Reason)
			if err != nil {
				return nil, err
			}
			moved, err := h.config.Control.GoBack(ctx, actorFrom(ctx), control.Back{Env: spec.EnvName(in.Env), To: in.Body.To, WithData: in.Body.WithData,
				Plan: in.Body.PlanDigest, Reason: in.Body.Reason, How: how})
			return answerWith(acceptedOf(moved), err)
		})
	register(h, envOp("plan-rollback", write, api.PathRollbackPlan, "Plan a rollback",
		"Says what going back would do, and changes nothing. With data, it says of each volume what it would get, from when that is, and which version keeps what there is now. Refused with 404 when nothing is kept of what a volume had.", missing, stale),
		func(ctx context.Context, in *envBody[api.RollbackPlanRequest]) (*body[api.Plan], error) {
			planned, err := h.config.Control.PlanRollback(control.Back{Env: spec.EnvName(in.Env), To: in.Body.To, WithData: in.Body.WithData})
			out := planview.Of(planned.Plan, planned.Digest)
			if rules, ok := h.config.Control.State().Platform(); ok {
				out.Governed = rules.Governed(spec.EnvName(in.Env))
			}
			return answerWith(out, err)
		})
	register(h, envOp("destroy", write, api.PathDestroy, "Retire all that an environment runs",
		"Its history stays. Its volumes stay too, unless they are asked to be deleted.", missing, stale),
		func(ctx context.Context, in *envBody[api.DestroyRequest]) (*body[api.Accepted], error) {
			how, err := h.how(ctx, "destroy", spec.EnvName(in.Env), in.Body.How, in.Body.Reason)
			if err != nil {
				return nil, err
			}
			moved, err := h.config.Control.Destroy(ctx, actorFrom(ctx), spec.EnvName(in.Env), in.Body.Volumes, in.Body.Reason, how)
			return answerWith(acceptedOf(moved), err)
		})
}

// plan makes a plan, and asks the policies about it.
func (h *Handler) plan(ctx context.Context, p control.Proposal) (api.Plan, error) {
	planned, err := h.config.Control.Plan(ctx, p)
	if err != nil {
		return api.Plan{}, err
	}
	return h.shown(ctx, p, planned)
}

// shown is a plan with what the policies say of it.
func (h *Handler) shown(ctx context.Context, p control.Proposal, planned control.Planned) (api.Plan, error) {
	verdicts, err := h.config.Control.Verdicts(ctx, actorFrom(ctx), p, planned)
	if err != nil {
		return api.Plan{}, err
	}
	out := planview.Of(planned.Plan, planned.Digest)
	out.Decisions = each(verdicts, decisionOf)
	if rules, ok := h.config.Control.State().Platform(); ok {
		out.Governed = rules.Governed(p.Env)
	}
	return out, nil
}

func (in *envBody[T]) proposal(bundle, rel digest.Digest) control.Proposal {
	return control.Proposal{Env: spec.EnvName(in.Env), Bundle: bundle, Release: rel}
}

func (h *Handler) environments(ctx context.Context) (api.Environments, error) {
	st := h.config.Control.State()
	rules, _ := st.Platform()
	out := api.Environments{Environments: []api.EnvironmentSummary{}}
	for e := range st.Environments() {
		if !h.sees(ctx, e.Name) {
			continue
		}
		head, err := st.Generation(e.Name, e.Head.Number)
		if err != nil {
			return out, fmt.Errorf("reading the head of %s: %w", e.Name, err)
		}
		summary := summaryOf(e, head)
		summary.Notices = noticesOf(st, e, rules, time.Now())
		out.Environments = append(out.Environments, summary)
	}
	return out, nil
}

func (h *Handler) environment(ctx context.Context, name spec.EnvName) (api.Environment, error) {
	v, err := h.view(ctx, h.config.Control.State(), name)
	if err != nil {
		return api.Environment{}, err
	}
	st := h.config.Control.State()
	rules, _ := st.Platform()
	out := v.environment()
	out.Copies = h.copiesOf(name)
	out.Notices = noticesOf(st, v.env, rules, v.now)
	return out, nil
}

// view gathers what is known of an environment.
func (h *Handler) view(ctx context.Context, st state.State, name spec.EnvName) (view, error) {
	e, err := st.Environment(name)
	if err != nil {
		return view{}, err
	}
	head, err := st.Generation(name, e.Head.Number)
	if err != nil {
		return view{}, fmt.Errorf("reading the head of %s: %w", name, err)
	}
	list, err := h.config.Host.List(ctx)
	if err != nil {
		return view{}, fmt.Errorf("observing instances: %w", err)
	}
	entrance, err := h.entrance(ctx)
	if err != nil {
		entrance = gateway.Status{} // its addresses are missing from the URLs; the rest still holds
	}
	return view{env: e, head: head, seen: observe(list), gateway: entrance, size: st.Size(), now: time.Now()}, nil
}

func (h *Handler) history(name spec.EnvName) (api.History, error) {
	st := h.config.Control.State()
	if _, err := st.Environment(name); err != nil {
		return api.History{}, err
	}
	out := api.History{Generations: []api.Generation{}}
	for g := range st.History(name) {
		out.Generations = append(out.Generations, generationOf(g))
	}
	slices.Reverse(out.Generations)
	return out, nil
}
