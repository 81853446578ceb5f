package control

import (
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/spec"
)

// Rollouts is what the ledger says of the environments, as package reconcile reads it.
type Rollouts struct{ service *Service }

// Rollouts returns the rollouts of all environments.
func (s *Service) Rollouts() Rollouts { return Rollouts{s} }

// Environment returns one environment, false when there is none of that name.
func (r Rollouts) Environment(name spec.EnvName) (deploy.Environment, bool) {
	e, err := r.service.State().Environment(name)
	return e.Environment, err == nil
}

// Environments returns all of them.
func (r Rollouts) Environments() map[spec.EnvName]deploy.Environment {
	out := map[spec.EnvName]deploy.Environment{}
	for e := range r.service.State().Environments() {
		out[e.Name] = e.Environment
	}
	return out
}

// Changed returns a channel that is closed at the first change after the call.
func (r Rollouts) Changed() <-chan struct{} { return r.service.State().Changed() }
