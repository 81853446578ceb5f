package control

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// Caller is who asks for something, as the gate let him in.
type Caller struct {
	Actor Actor
	token *state.Token // when he came by one, which may be good for less than its principal may
	owner bool         // the machine's owner, while no definition is in force
	ends  time.Time    // when the credential does; zero: it does not by itself
}

// ExpiresAt returns when the caller has to prove anew who he is; zero when he need not.
func (c Caller) ExpiresAt() time.Time { return c.ends }

// Identify returns the caller that an identity is in the platform's definition in force. It fails with fault.Denied.
func (s *Service) Identify(id identity.Identity) (Caller, error) {
	by := Actor{Kind: state.ActorKind(id.Method), Name: id.Name, Auth: id.Evidence()}
	rules, ok := s.State().Platform()
	if !ok && id.Method == identity.Local && s.owns(id.Name) { // before the first definition: the server's own machine
		return Caller{Actor: by, owner: true}, nil
	}
	who, ok := rules.Identify(id)
	if !ok {
		return Caller{Actor: by}, fault.WithHint(fault.Errorf(fault.Denied, "%s is no principal of the platform's definition", by),
			"have an administrator add it: invar init --platform")
	}
	by.Principal = who
	return Caller{Actor: by, ends: id.ExpiresAt}, nil
}

func (s *Service) owns(user string) bool { return user == "root" || user == s.config.User }

// IdentifyToken returns the caller that the holder of a secret is. It fails with fault.Denied. The secret is looked up by
// its digest, so that the time it takes tells nothing about secrets that are valid.
func (s *Service) IdentifyToken(secret string) (Caller, error) {
	now := s.State()
	t, err := now.TokenOf(digest.Of([]byte(secret)))
	refused := fault.WithHint(fault.Errorf(fault.Denied, "the token is not valid"), "make one on the server's machine: invar token create NAME")
	if err != nil || !t.Valid(s.config.Now()) || !strings.HasPrefix(secret, tokenPrefix) {
		return Caller{}, refused
	}
	by := Actor{Kind: state.ActorToken, Name: t.Name, Principal: t.Principal, Auth: "token " + string(t.ID)}
	rules, ok := now.Platform()
	if !ok {
		return Caller{Actor: by, token: &t, owner: t.Principal == "", ends: t.ExpiresAt}, nil
	}
	if who, ok := rules.Principal(t.Principal); !ok || who.Disabled {
		return Caller{}, fault.WithHint(fault.Errorf(fault.Denied, "the token is not valid any more: the platform's definition has no principal %q", t.Principal),
			"make a new one: invar token create NAME")
	}
	return Caller{Actor: by, token: &t, ends: t.ExpiresAt}, nil
}

// Allows reports whether the caller has the permission in the environment now, "" for what belongs to none. The one
// question that the gate asks.
func (s *Service) Allows(c Caller, p platform.Permission, env spec.EnvName) bool {
	if c.token != nil && !c.token.Covers(p, env) {
		return false
	}
	if c.owner {
		return true
	}
	rules, ok := s.State().Platform()
	return ok && rules.Allows(c.Actor.Principal, p, env, s.config.Now())
}

// Times and sizes of what is remembered of refusals.
const (
	refusalWindow = time.Minute
	maxRefusals   = 1000 // kinds of refusals at a time; more are counted as one
)

// refusals counts equal refusals, so that a flood of them does not become a flood of entries.
type refusals struct {
	mu   sync.Mutex
	seen map[refusal]*repeated
}

// refusal is what makes refusals equal.
type refusal struct {
	by        Actor
	env       spec.EnvName
	operation string
	source    string
}

// repeated is when one was last recorded, and how many came since.
type repeated struct {
	last time.Time
	data state.AccessDenied
	more int
}

// Refused records that the gate refused a request. Equal ones within a minute are counted, and recorded together when it
// is over. An entry that can't be written is logged: the refusal stands.
func (s *Service) Refused(ctx context.Context, by Actor, env spec.EnvName, d state.AccessDenied) {
	at := s.config.Now()
	same := by
	same.Auth = "" // differs with each token of an OpenID provider
	key := refusal{same, env, d.Operation, d.Source}
	s.refusals.mu.Lock()
	if s.refusals.seen == nil {
		s.refusals.seen = map[refusal]*repeated{}
	}
	if _, ok := s.refusals.seen[key]; !ok && len(s.refusals.seen) >= maxRefusals {
		key = refusal{operation: "several"}
		by, env, d = Actor{Kind: state.ActorUnknown, Name: "several"}, "", state.AccessDenied{Operation: "several", Cause: "too many different refusals within a minute to name each"}
	}
	if was, ok := s.refusals.seen[key]; ok {
		was.more++
		s.refusals.mu.Unlock()
		return
	}
	s.refusals.seen[key] = &repeated{last: at, data: d}
	s.refusals.mu.Unlock()
	s.recordRefusal(ctx, by, env, d)
}

func (s *Service) recordRefusal(ctx context.Context, by Actor, env spec.EnvName, d state.AccessDenied) {
	_, err := s.append(ctx, func(state.State) ([]state.Entry, error) {
		e := s.entry(by, env, d)
		e.Outcome = "denied"
		return []state.Entry{e}, nil
	})
	if err != nil {
		s.config.Log.ErrorContext(ctx, "recording a refusal", "operation", d.Operation, "actor", by.String(), "error", err)
	}
}

// flushRefusals records the counts of those whose minute is over.
func (s *Service) flushRefusals(ctx context.Context, at time.Time) {
	type due struct {
		refusal
		data state.AccessDenied
	}
	var over []due
	s.refusals.mu.Lock()
	for key, was := range s.refusals.seen {
		if at.Sub(was.last) < refusalWindow {
			continue
		}
		delete(s.refusals.seen, key)
		if was.more > 0 {
			was.data.Repeated = was.more
			over = append(over, due{key, was.data})
		}
	}
	s.refusals.mu.Unlock()
	for _, d := range over {
		if d.by == (Actor{}) {
			d.by = Actor{Kind: state.ActorUnknown, Name: "several"}
		}
		s.recordRefusal(ctx, d.by, d.env, d.data)
	}
}
