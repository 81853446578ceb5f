package handler

import (
	"context"
	"net/http"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/spec"
)

func (h *Handler) registerMeasure() {
	register(h, envOp("verify", http.MethodPost, api.PathMeasure, "Measure what runs",
		"Reads again what every instance runs on, from the first byte to the last, and compares it with the release, and all else that can be told of it from outside as well. Nothing is taken from what was asked for. The ledger gets an entry of it, with a signed statement as body, also when nothing could be measured.",
		http.StatusNotFound, http.StatusConflict),
		func(ctx context.Context, in *envInput) (*body[api.Measured], error) {
			return answerWith(h.measure(ctx, spec.EnvName(in.Env)))
		})
}

func (h *Handler) measure(ctx context.Context, name spec.EnvName) (api.Measured, error) {
	v, err := h.config.Control.Verify(ctx, actorFrom(ctx), name)
	if err != nil {
		return api.Measured{}, err
	}
	return measuredView(v), nil
}

func measuredView(v control.Verified) api.Measured {
	out := api.Measured{
		OK: v.Result == attest.AsReleased, Env: string(v.Env), Result: v.Result, Generation: v.Generation, Release: v.Release, From: v.From, To: v.To,
		Detail: v.Detail, Instances: []api.MeasuredInstance{}, Entry: uint64(v.Entry), Statement: v.Statement, Envelope: string(v.Envelope),
	}
	for _, i := range v.Instances {
		m := api.MeasuredInstance{ID: string(i.ID), Component: string(i.Component), Digest: i.Digest, State: i.State, OK: i.OK(), Expected: i.Expected,
			Found: i.Found, More: i.More, Detail: i.Detail}
		for _, f := range i.Findings {
			m.Findings = append(m.Findings, api.Finding(f))
		}
		out.Instances = append(out.Instances, m)
	}
	return out
}
