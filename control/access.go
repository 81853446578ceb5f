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
	key   string       // the SSH key that he has just proven to hold; "": he came otherwise
	ends  time.Time    // when the credential does; zero: it does not by itself
}

// ExpiresAt returns when the caller has to prove anew who he is; zero when he need not.
func (c Caller) ExpiresAt() time.Time { return c.ends }

// Identify returns the caller that an identity is in the platform's definition in force. It fails with fault.Denied.
func (s *Service) Identify(id identity.Identity) (Caller, error) {
	by := Actor{Kind: state.ActorKind(id.Method), Name: id.Name, Auth: id.Evidence()}
	rules, ok := s.index(s.State())
	if !ok && id.Method == identity.Local && s.owns(id.Name) { // before the first definition: the server's own machine
		return Caller{Actor: by, owner: true}, nil
	}
	var who platform.PrincipalName
	if ok {
		who, ok = rules.Identify(id)
	}
	if !ok {
		return Caller{Actor: by}, fault.WithHint(fault.Errorf(fault.Denied, "%s is no principal of the platform's definition", by),
			"have an administrator add it: invar init --platform")
	}
	by.Principal = who
	return Caller{Actor: by, key: id.Key, ends: id.ExpiresAt}, nil
}

func (s *Service) owns(user string) bool { return user == "root" || user == s.config.User }

// IdentifyToken returns the caller that the holder of a secret is. It fails with fault.Denied, and then still names the token
// if there was one. The secret is looked up by its digest, so that the time it takes tells nothing about secrets that are valid.
func (s *Service) IdentifyToken(secret string) (Caller, error) {
	now := s.State()
	t, err := now.TokenOf(digest.Of([]byte(secret)))
	refused := fault.WithHint(fault.Errorf(fault.Denied, "the token is not valid"), "make one on the server's machine: invar token create NAME")
	if err != nil || !strings.HasPrefix(secret, tokenPrefix) {
		return Caller{}, refused
	}
	by := Actor{Kind: state.ActorToken, Name: t.Name, Principal: t.Principal, Auth: "token " + string(t.ID)}
	if !t.Valid(s.config.Now()) {
		return Caller{Actor: by}, refused
	}
	rules, ok := now.Platform()
	if !ok {
		return Caller{Actor: by, token: &t, owner: t.Principal == "", ends: t.ExpiresAt}, nil
	}
	switch who, ok := rules.Principal(t.Principal); {
	case !ok || who.Disabled:
		return Caller{Actor: by}, fault.WithHint(fault.Errorf(fault.Denied, "the token is not valid any more: the platform's definition has no principal %q", t.Principal),
			"make a new one: invar token create NAME")
	case t.Key != "" && !who.HasKey(t.Key):
		return Caller{Actor: by}, fault.WithHint(fault.Errorf(fault.Denied, "the session is over: principal %s has the SSH key that opened it no more", t.Principal),
			"log in with another: invar login")
	}
	return Caller{Actor: by, token: &t, ends: t.ExpiresAt}, nil
}

// Allows reports whether the caller has the permission in the environment now, "" for what belongs to none. The one
// question that the gate asks.
//
// It is asked again while a stream lasts: whose credential has ended or was revoked since may nothing any more, nor does
// the machine's owner once there is a definition.
func (s *Service) Allows(c Caller, p platform.Permission, env spec.EnvName) bool {
	now, at := s.State(), s.config.Now()
	if !c.ends.IsZero() && !at.Before(c.ends) {
		return false
	}
	if c.token != nil {
		t, err := now.Token(c.token.ID)
		if err != nil || !t.Valid(at) || !t.Covers(p, env) {
			return false
		}
	}
	index, ok := s.index(now)
	if !ok {
		return c.owner
	}
	if c.token != nil && c.token.Key != "" && !index.HasKey(c.Actor.Principal, c.token.Key) {
		return false
	}
	return index.Allows(c.Actor.Principal, p, env, at)
}

// compiledRules is the index of a definition, by the release that the definition is of.
type compiledRules struct {
	release digest.Digest
	index   *platform.Index
}

// index returns the definition in force, compiled; false when there is none. The release names the definition: a new one has
// another digest, and so another index.
func (s *Service) index(now state.State) (*platform.Index, bool) {
	rules, release := definition(now)
	if release == "" {
		return nil, false
	}
	if have := s.rules.Load(); have != nil && have.release == release {
		return have.index, true
	}
	made := &compiledRules{release, rules.Index()}
	s.rules.Store(made)
	return made.index, true
}

// Limited reports whether the caller came by a token that is good for less than its principal may.
func (c Caller) Limited() bool {
	return c.token != nil && len(c.token.Permissions)+len(c.token.Environments) > 0
}

// Token returns the name of the token that the caller came by, "" when it was none.
func (c Caller) Token() state.TokenID {
	if c.token == nil {
		return ""
	}
	return c.token.ID
}

// Times and sizes of what is remembered of refusals.
const (
	refusalWindow = time.Minute
	maxRefusals   = 10_000 // kinds of refusals at a time; more are counted as one
	maxRefusalsOf = 200    // of one actor: more of his are counted as one, and hide nobody else's
)

// refusals counts equal refusals, so that a flood of them does not become a flood of entries.
type refusals struct {
	mu   sync.Mutex
	seen map[refusal]*repeated
	of   map[Actor]int // how many of them each actor has
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

// several is the actor of refusals that are too many to name who.
var several = Actor{Kind: state.ActorUnknown, Name: "several"}

// Refused records that the gate refused a request. Equal ones within a minute are counted, and recorded together when it
// is over. An entry that can't be written is logged: the refusal stands.
func (s *Service) Refused(ctx context.Context, by Actor, env spec.EnvName, d state.AccessDenied) {
	at := s.config.Now()
	env, by.Name, d.Cause = spec.EnvName(fits(string(env))), fits(by.Name), fits(d.Cause) // what is asked for is anybody's text
	same := by
	same.Auth = "" // differs with each token of an OpenID provider
	key := refusal{same, env, d.Operation, d.Source}
	s.refusals.mu.Lock()
	if s.refusals.seen == nil {
		s.refusals.seen, s.refusals.of = map[refusal]*repeated{}, map[Actor]int{}
	}
	if _, ok := s.refusals.seen[key]; !ok && (s.refusals.of[same] >= maxRefusalsOf || len(s.refusals.seen) >= maxRefusals) {
		if len(s.refusals.seen) >= maxRefusals {
			by, same, d.Source = several, several, ""
		}
		d = state.AccessDenied{Operation: "several", Source: d.Source, Cause: "too many different refusals within a minute to name each"}
		key, env = refusal{same, "", d.Operation, d.Source}, ""
	}
	if was, ok := s.refusals.seen[key]; ok {
		was.more++
		s.refusals.mu.Unlock()
		return
	}
	s.refusals.seen[key] = &repeated{last: at, data: d}
	s.refusals.of[same]++
	s.refusals.mu.Unlock()
	s.recordRefusal(ctx, by, env, d)
}

// maxDenied bounds each text of a refusal.
const maxDenied = 1000

// fits returns text as an entry can carry it.
func fits(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxDenied)], "\uFFFD")
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

// flushRefusals records the counts of those that were last recorded a minute before at, or earlier.
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
		if s.refusals.of[key.by]--; s.refusals.of[key.by] == 0 {
			delete(s.refusals.of, key.by)
		}
		if was.more > 0 {
			was.data.Repeated = was.more
			over = append(over, due{key, was.data})
		}
	}
	s.refusals.mu.Unlock()
	for _, d := range over {
		s.recordRefusal(ctx, d.by, d.env, d.data)
	}
}
