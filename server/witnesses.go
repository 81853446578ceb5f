package server

import (
	"context"
	"sync"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/ledger/witness"
	"github.com/invarhq/invar/ledger/witness/collect"
	"github.com/invarhq/invar/state"
)

// finishWithin bounds how long a server that ends waits for witnesses to cosign its last entry.
const finishWithin = 2 * time.Second

// openWitnesses takes up what witnesses cosigned.
func (s *Server) openWitnesses(ctx context.Context) (err error) {
	s.collect, err = collect.Open(ctx, collect.Config{
		Log: s.control.Ledger(), Verifier: s.data.key.verifier, Policy: s.witnessPolicy, File: s.data.path(cosignedFile), Logger: s.log,
		Alarmed: s.alarms.note,
	})
	return err
}

// witnessPolicy is who watches the ledger now: the witnesses of the platform's definition in force and those of the command line. What
// makes a quorum is for the definition to say; where it asks for none, for the command line.
func (s *Server) witnessPolicy() witness.Policy {
	var own witness.Policy
	if s.config.Witnesses != nil {
		own = s.config.Witnesses()
	}
	rules, ok := s.control.State().Platform()
	if !ok || len(rules.Witnesses) == 0 {
		return own
	}
	var defined []witness.Witness
	for _, w := range rules.Witnesses {
		v, err := witness.ParseVerifier(w.VKey)
		if err != nil { // a definition is checked before it is in force
			s.log.Error("a witness of the platform's definition has no key that can be read", "witness", w.Name, "err", err)
			continue
		}
		defined = append(defined, witness.Witness{Name: w.Name, Verifier: v, URL: w.URL})
	}
	if rules.Quorum == 0 {
		return own.With(defined...)
	}
	policy, err := witness.NewPolicy(rules.Quorum, defined...)
	if err != nil {
		s.log.Error("the witnesses of the platform's definition can't be asked", "err", err)
		return own.With(defined...)
	}
	return policy.With(own.Witnesses()...)
}

// alarms are those of witnesses that the ledger does not have yet.
type alarms struct {
	mu     sync.Mutex
	due    []alarm
	signal chan struct{}
}

type alarm struct {
	witness string
	collect.Alarm
}

func (a *alarms) note(witness string, found collect.Alarm) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.due = append(a.due, alarm{witness, found})
	select {
	case a.signal <- struct{}{}:
	default:
	}
}

func (a *alarms) take() []alarm {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.due
	a.due = nil
	return out
}

// recordAlarms has the ledger know of alarms, until ctx ends.
func (s *Server) recordAlarms(ctx context.Context) error {
	for {
		for _, a := range s.alarms.take() {
			d := state.WitnessAlarm{Witness: a.witness, Alarm: string(a.Kind), Size: a.Size, Cause: a.Cause}
			if err := s.control.WitnessAlarm(ctx, d, a.Evidence); err != nil && ctx.Err() == nil {
				s.log.Error("recording an alarm of a witness", "witness", a.witness, "kind", a.Kind, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.alarms.signal:
		}
	}
}

// finishWitnesses has the ledger's last entry cosigned.
func (s *Server) finishWitnesses() {
	ctx, cancel := context.WithTimeout(context.Background(), finishWithin)
	defer cancel()
	s.collect.Finish(ctx)
}

// witnesses tells how the ledger stands with its witnesses.
func (s *Server) witnesses() api.Witnesses {
	st := s.collect.Status()
	out := api.Witnesses{
		Policy: st.Policy.String(), Size: uint64(st.Size), QuorumSize: uint64(st.UpTo), Cosigned: string(st.Quorum), Raised: st.Raised,
		Witnesses: []api.Witness{}, Alarms: alarmsOf(st.Alarms),
	}
	for _, p := range st.Witnesses {
		w := api.Witness{Name: p.Name, VKey: p.Verifier.String(), URL: p.URL, Size: uint64(p.Cosigned), Alarms: alarmsOf(p.Alarms)}
		if !p.Time.IsZero() {
			w.Time = &p.Time
		}
		if p.Err != nil {
			w.Error = p.Err.Error()
		}
		out.Witnesses = append(out.Witnesses, w)
	}
	return out
}

func alarmsOf(alarms []collect.Alarm) []api.WitnessAlarm {
	out := []api.WitnessAlarm{}
	for _, a := range alarms {
		out = append(out, api.WitnessAlarm{Kind: string(a.Kind), Since: a.Since, Cause: a.Cause})
	}
	return out
}
