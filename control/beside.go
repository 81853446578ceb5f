package control

import (
	"context"
	"fmt"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/state"
)

// Beside is what the ledger has of the machine beside the instances, as package reconcile writes and reads it.
type Beside struct{ service *Service }

// Beside returns it.
func (s *Service) Beside() Beside { return Beside{s} }

// Open returns what is odd and not over.
func (b Beside) Open() []drift.Open { return b.service.State().Host().Open }

// Odd records oddities with one response.
func (b Beside) Odd(ctx context.Context, found []drift.Oddity) error {
	d := state.HostDrift{Response: found[0].Response, Cause: drift.Cause(found)}
	for _, o := range found {
		d.Findings = append(d.Findings, o.Finding)
	}
	return b.append(ctx, d, d.Cause)
}

// Over records that open ones are over.
func (b Beside) Over(ctx context.Context, over []drift.Open, how string) error {
	d := state.HostResolved{How: how, Since: over[0].Since}
	for _, o := range over {
		d.Keys = append(d.Keys, o.Finding.Key())
		if o.Since.Before(d.Since) {
			d.Since = o.Since
		}
	}
	return b.append(ctx, d, how)
}

func (b Beside) append(ctx context.Context, d state.Data, outcome string) error {
	_, err := b.service.append(ctx, func(state.State) ([]state.Entry, error) {
		e := b.service.entry(operator, "", d)
		e.Outcome = outcome
		return []state.Entry{e}, nil
	})
	if err != nil {
		return fmt.Errorf("recording what is beside the instances: %w", err)
	}
	return nil
}
