package server

import (
	"context"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image/root"
	"github.com/invarhq/invar/reconcile"
	"github.com/invarhq/invar/state"
)

// measure compares what an environment runs with its release.
func (s *Server) measure(ctx context.Context, now func() (state.Environment, error)) ([]attest.Instance, error) {
	return reconcile.Measure(ctx, s.host, func() (deploy.Environment, error) {
		env, err := now()
		return env.Environment, err
	})
}

// restoreRoot makes a root again from the image of a component that runs on it: the host has set one aside that had changed.
func (s *Server) restoreRoot(ctx context.Context, want digest.Digest) error {
	for env := range s.control.State().Environments() {
		for _, c := range env.Components {
			if c.Root != want {
				continue
			}
			built, _, err := root.Build(ctx, s.content, s.data.path(rootsDir), c.Image)
			if err != nil {
				return err
			}
			if built.Root != want {
				return fault.Errorf(fault.Corrupt, "image %s gives root %s, not %s", c.Image, built.Root, want)
			}
			return nil
		}
	}
	return fault.Errorf(fault.NotFound, "no component runs on root %s", want)
}
