package handler

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

func (h *Handler) registerForks() {
	const write, missing, stale = http.MethodPost, http.StatusNotFound, http.StatusConflict
	register(h, envOp("fork", write, api.PathFork, "Fork an environment",
		"The environment in the path gets the release of another, which stays as it is: with routes of its own, secrets of its own, volumes of its own, and an end. Needs apply on the new one and read on the other.", missing, stale),
		func(ctx context.Context, in *envBody[api.ForkRequest]) (*body[api.Accepted], error) {
			return answerWith(h.fork(ctx, spec.EnvName(in.Env), in.Body))
		})
	register(h, envOp("plan-promotion", write, api.PathPromotion, "Plan a promotion",
		"Says what applying the bundle of another environment's head would do here, how the two releases differ, and since when that head has run healthy. Changes nothing. Needs plan here and read on the other.", missing, stale),
		func(ctx context.Context, in *envBody[api.PromotionRequest]) (*body[api.Promotion], error) {
			return answerWith(h.promotion(ctx, spec.EnvName(in.Env), in.Body))
		})
}

func (h *Handler) fork(ctx context.Context, name spec.EnvName, in api.ForkRequest) (api.Accepted, error) {
	from, volumes := spec.EnvName(in.From), in.Volumes
	if volumes == api.VolumesEmpty {
		volumes = control.VolumesEmpty
	}
	if err := h.authorize(ctx, "fork", platform.Read, from); err != nil {
		return api.Accepted{}, err
	}
	if volumes != control.VolumesEmpty { // whoever has a copy of the data may do with it as in a shell beside it
		if err := h.authorize(ctx, "fork", platform.Exec, from); err != nil {
			return api.Accepted{}, err
		}
	}
	how, err := h.how(ctx, "fork", name, in.How, in.Reason)
	if err != nil {
		return api.Accepted{}, err
	}
	moved, err := h.config.Control.Fork(ctx, actorFrom(ctx), control.Fork{
		Env: name, From: from, Generation: in.Generation, Bundle: in.Bundle, Release: in.Release, Volumes: volumes,
		TTL: time.Duration(in.TTLMS) * time.Millisecond, Reason: in.Reason, How: how,
	})
	return acceptedOf(moved), err
}

// forkOf tells what the environment is a fork of, nil for one that is none.
func forkOf(e state.Environment) *api.Fork {
	if !e.Live() {
		return nil
	}
	f := e.Fork
	out := &api.Fork{From: string(f.From), Generation: f.FromGeneration, Owner: f.Owner, ExpiresAt: f.ExpiresAt, Volumes: api.VolumesEmpty, Secrets: []string{}}
	switch {
	case len(f.Restore) > 0 && f.Restore[0].Live:
		out.Volumes = api.VolumesCopy
	case len(f.Restore) > 0:
		out.Volumes = api.VolumesSnapshot
	}
	out.Secrets = append(out.Secrets, slices.Sorted(maps.Keys(f.Secrets))...)
	return out
}

func (h *Handler) promotion(ctx context.Context, to spec.EnvName, in api.PromotionRequest) (api.Promotion, error) {
	from := spec.EnvName(in.From)
	if err := h.authorize(ctx, "plan-promotion", platform.Read, from); err != nil {
		return api.Promotion{}, err
	}
	p, err := h.config.Control.Promote(ctx, from, to, time.Duration(in.HealthyForMS)*time.Millisecond)
	if err != nil {
		return api.Promotion{}, err
	}
	plan, err := h.shown(ctx, control.Proposal{Env: to, Bundle: p.From.Bundle}, p.Planned)
	if err != nil {
		return api.Promotion{}, err
	}
	return api.Promotion{
		From: api.Head{Env: in.From, Generation: p.From.Number, Current: true},
		Plan: plan, Diff: diffOf(p.From.Release, p.Record, p.Planned.Plan.Release, p.Proposed),
		Proof: api.PromotionProof{Completed: uint64(p.Proof.Completed), Newest: uint64(cmp.Or(p.Proof.Newest, p.Proof.Completed)), Size: uint64(p.Proof.Size),
			Since: p.Proof.Since, HealthyFor: p.Proof.For.Milliseconds()},
	}, nil
}

// promoted reads where a bundle is promoted from. Whether it runs healthy there tells of that environment, so that the caller has to have read on it.
func (h *Handler) promoted(ctx context.Context, p *api.PromotedFrom) (*state.Promoted, error) {
	if p == nil {
		return nil, nil
	}
	if err := h.authorize(ctx, "apply", platform.Read, spec.EnvName(p.From)); err != nil {
		return nil, err
	}
	return &state.Promoted{From: spec.EnvName(p.From), Generation: p.Generation, HealthyForMS: p.HealthyForMS}, nil
}

func promotedFrom(p *state.Promoted) *api.PromotedFrom {
	if p == nil {
		return nil
	}
	return &api.PromotedFrom{From: string(p.From), Generation: p.Generation, HealthyForMS: p.HealthyForMS}
}
