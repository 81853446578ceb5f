package server

import (
	"context"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/state"
)

// volumesRetry is the pause after a deletion that failed.
const volumesRetry = 5 * time.Second

// destroyVolumes deletes the volumes of environments that were destroyed with them, once no instance is left, until ctx ends.
func (s *Server) destroyVolumes(ctx context.Context) error {
	for {
		now := s.control.State()
		changed := now.Changed()
		var retry <-chan time.Time
		for env := range now.Environments() {
			if !due(env) {
				continue
			}
			if err := s.destroyVolumesOf(ctx, env); err != nil {
				s.log.Error("deleting volumes", "environment", env.Name, "err", err)
				retry = time.After(volumesRetry)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-retry:
		}
	}
}

func due(env state.Environment) bool {
	return env.VolumesDue && env.Destroyed() && len(env.Instances) == 0 && len(deploy.Copies(env.Environment)) == 0
}

// destroyVolumesOf deletes, then records: a crash in between deletes nothing a second time.
func (s *Server) destroyVolumesOf(ctx context.Context, env state.Environment) error {
	if err := s.host.DestroyVolumes(ctx, string(env.Name)); err != nil {
		return err
	}
	return s.control.VolumesDestroyed(ctx, env.Name)
}
