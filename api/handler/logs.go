package handler

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/sync/errgroup"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

type logsInput struct {
	Env       string `path:"env" maxLength:"63" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?$" example:"staging" doc:"Name of the environment."`
	Component string `path:"component" maxLength:"63" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?$" example:"web" doc:"Name of the component."`
	Instance  string `query:"instance" maxLength:"74" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?-[a-z2-7]{10}$" doc:"Only this instance, also one that is gone while its log is kept; lines come as they were written. Without it, each line comes after the id of its instance and a space."`
	Tail      int    `query:"tail" minimum:"-1" default:"-1" doc:"How many lines of each instance to begin with; -1: all."`
	Follow    bool   `query:"follow" doc:"Go on as lines come, also those of instances to come."`
}

func (h *Handler) registerLogs() {
	op := envOp("get-logs", http.MethodGet, api.PathLogs, "Read a component's log", "A stream of lines.", http.StatusNotFound)
	op.Responses = map[string]*huma.Response{"200": {
		Description: "Lines", Content: map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: huma.TypeString}}},
	}}
	register(h, op, func(ctx context.Context, in *logsInput) (*huma.StreamResponse, error) {
		if err := h.checkLogs(ctx, in); err != nil {
			return nil, err
		}
		return stream(api.TypeLog, func(w io.Writer) error {
			ctx, closed := h.untilClosed(ctx)
			defer closed()
			ctx, cancel := h.whileAllowed(ctx, "get-logs", platform.Logs, spec.EnvName(in.Env))
			defer cancel()
			if in.Instance != "" {
				return h.config.Host.Logs(ctx, instance.ID(in.Instance), w, in.Tail, in.Follow)
			}
			return h.componentLogs(ctx, in, w)
		}), nil
	})
}

// checkLogs says what is wrong with the question before the answer begins.
func (h *Handler) checkLogs(ctx context.Context, in *logsInput) error {
	e, err := h.config.Control.State().Environment(spec.EnvName(in.Env))
	if err != nil {
		return err
	}
	if in.Instance != "" {
		if ofComponent(in.Instance) != in.Component {
			return fault.Errorf(fault.Invalid, "%s is no instance of %s", in.Instance, in.Component)
		}
		if err := h.config.Host.Logs(ctx, instance.ID(in.Instance), io.Discard, 0, false); err != nil {
			return err
		}
		return h.ranIn(ctx, e, instance.ID(in.Instance))
	}
	_, wanted := e.Head.Digests[spec.ComponentName(in.Component)]
	if !wanted && len(instancesOf(e, in.Component)) == 0 {
		return fault.WithHint(fault.Errorf(fault.NotFound, "environment %s has no component %q", in.Env, in.Component), "invar status %s lists them", in.Env)
	}
	return nil
}

// ranIn says that an instance was none of the environment's: the gate asked for the permission there, and nowhere else. One
// that is gone is looked for in the ledger.
func (h *Handler) ranIn(ctx context.Context, e state.Environment, id instance.ID) error {
	if _, ok := e.Instances[id]; ok {
		return nil
	}
	was, err := h.config.Control.RanIn(ctx, e.Name, id)
	if err != nil || was {
		return err
	}
	return fault.Errorf(fault.NotFound, "log of instance %s: environment %s had none of that name", id, e.Name)
}

// ofComponent is the component in an instance's id: all but a hyphen and ten characters.
func ofComponent(id string) string { return id[:max(0, len(id)-11)] }

// instancesOf returns a component's instances, oldest first.
func instancesOf(e state.Environment, component string) []deploy.Instance {
	var out []deploy.Instance
	for _, i := range e.Instances {
		if string(i.Component) == component {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b deploy.Instance) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// componentLogs writes the logs of all of a component's instances, each line after its instance's id; with follow, side
// by side, and those of new instances as they come.
func (h *Handler) componentLogs(ctx context.Context, in *logsInput, w io.Writer) error {
	copies, ctx := errgroup.WithContext(ctx)
	if !in.Follow {
		copies.SetLimit(1) // one after the other
	}
	begun := map[instance.ID]bool{}
	for tail := in.Tail; ; tail = -1 { // all of those that come later
		changed := h.config.Host.Changed()
		ids, err := h.logged(ctx, in)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if !begun[id] {
				begun[id] = true
				copies.Go(func() error { return h.copyLog(ctx, id, w, tail, in.Follow) })
			}
		}
		if !in.Follow {
			return copies.Wait()
		}
		select {
		case <-ctx.Done():
			return copies.Wait()
		case <-changed:
		}
	}
}

// logged returns the component's instances that the host has, oldest first. An instance is in the ledger before the
// host has it.
func (h *Handler) logged(ctx context.Context, in *logsInput) ([]instance.ID, error) {
	e, err := h.config.Control.State().Environment(spec.EnvName(in.Env))
	if err != nil {
		return nil, err
	}
	list, err := h.config.Host.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("observing instances: %w", err)
	}
	seen := observe(list)
	var ids []instance.ID
	for _, i := range instancesOf(e, in.Component) {
		if _, ok := seen[i.ID]; ok {
			ids = append(ids, i.ID)
		}
	}
	return ids, nil
}

func (h *Handler) copyLog(ctx context.Context, id instance.ID, w io.Writer, tail int, follow bool) error {
	lines := &linePrefixer{w: w, prefix: string(id) + " "}
	err := h.config.Host.Logs(ctx, id, lines, tail, follow)
	if fault.KindOf(err) == fault.NotFound || ctx.Err() != nil {
		err = nil // it was removed in between, or nobody listens any more
	}
	if err != nil {
		return fmt.Errorf("reading the log of %s: %w", id, err)
	}
	return lines.Close()
}
