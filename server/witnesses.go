package server

import (
	"context"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/ledger/witness"
	"github.com/invarhq/invar/ledger/witness/collect"
)

// finishWithin bounds how long a server that ends waits for witnesses to cosign its last entry.
const finishWithin = 2 * time.Second

// openWitnesses takes up what witnesses cosigned.
func (s *Server) openWitnesses(ctx context.Context) (err error) {
	policy := s.config.Witnesses
	if policy == nil {
		policy = func() witness.Policy { return witness.Policy{} }
	}
	s.collect, err = collect.Open(ctx, collect.Config{
		Log: s.control.Ledger(), Verifier: s.data.key.verifier, Policy: policy, File: s.data.path(cosignedFile), Logger: s.log,
	})
	return err
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
