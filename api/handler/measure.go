package handler

import (
	"context"
	"net/http"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

func (h *Handler) registerMeasure() {
	register(h, envOp("verify", http.MethodPost, api.PathMeasure, "Measure what runs",
		"Reads again what every instance runs on, from the first byte to the last, and compares it with the release, and all else that can be told of it from outside as well. Nothing is taken from what was asked for. The ledger gets an entry of it.", http.StatusNotFound),
		func(ctx context.Context, in *envInput) (*body[api.Measured], error) {
			return answerWith(h.measure(ctx, spec.EnvName(in.Env)))
		})
}

func (h *Handler) measure(ctx context.Context, name spec.EnvName) (api.Measured, error) {
	env, err := h.config.Control.State().Environment(name)
	if err != nil {
		return api.Measured{}, err
	}
	seen, err := h.config.Host.List(ctx)
	if err != nil {
		return api.Measured{}, err
	}
	out := api.Measured{OK: true, Env: string(name), Instances: []api.MeasuredInstance{}}
	known := map[digest.Digest]runtime.Measurement{} // by root: its instances share the mount
	for _, o := range seen {
		if o.Identity.Env != name || o.State == instance.Exited {
			continue
		}
		m := h.measureInstance(ctx, env, o, known)
		out.OK = out.OK && m.OK
		out.Instances = append(out.Instances, m)
	}
	return out, h.config.Control.RecordVerify(ctx, actorFrom(ctx), name, verified(out))
}

// verified is what the ledger keeps of a measurement.
func verified(m api.Measured) state.Verify {
	v := state.Verify{Instances: len(m.Instances)}
	for _, i := range m.Instances {
		switch {
		case i.OK:
		case len(v.Differ) < state.MaxDiffer:
			v.Differ = append(v.Differ, instance.ID(i.ID))
		default:
			v.More++
		}
	}
	return v
}

func (h *Handler) measureInstance(ctx context.Context, env state.Environment, o instance.Observation, known map[digest.Digest]runtime.Measurement) api.MeasuredInstance {
	id := o.Identity
	m := api.MeasuredInstance{ID: string(id.ID), Component: string(id.Component)}
	component, ok := env.Components[id.Digest]
	if _, recorded := env.Instances[id.ID]; !ok || !recorded {
		m.Detail = "the ledger does not know it"
		return m
	}
	m.Expected = component.Root
	found, ok := known[component.Root]
	if !ok {
		var err error
		if found, err = h.config.Host.Measure(ctx, id.ID); err != nil {
			m.Detail = err.Error()
			return m
		}
		known[component.Root] = found
	}
	m.Found = found.Root
	if h.config.Inspect != nil && o.State == instance.Running {
		differs, err := h.config.Inspect(ctx, o.Identity, component)
		if err != nil {
			m.Detail = err.Error()
			return m
		}
		for _, f := range differs {
			m.Findings = append(m.Findings, api.Finding{Kind: f.Kind, Field: f.Field, Expected: f.Expected, Found: f.Found, Controls: f.Controls})
		}
	}
	m.OK = m.Found == m.Expected && len(m.Findings) == 0
	return m
}
