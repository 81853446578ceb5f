package control

import (
	"context"
	"encoding/base32"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/state"
)

// tokenPrefix lets scanners of leaked secrets know one when they see it.
const tokenPrefix = "invar_"

var tokenText = base32.StdEncoding.WithPadding(base32.NoPadding)

// Scope is what a token is good for, beside what its principal may. The zero value is all of that, for good.
type Scope struct {
	Permissions  []platform.Permission
	Environments []platform.Pattern
	Lifetime     time.Duration // 0: it does not end
	Session      bool          // it comes of a login
}

// CreateToken makes a token, whose holder acts for the caller's principal as token:NAME. The secret is returned this once:
// only its digest is kept. Whoever came by a limited token can make none.
func (s *Service) CreateToken(ctx context.Context, by Caller, name string, scope Scope) (t state.Token, secret string, err error) {
	if t := by.token; t != nil && (len(t.Permissions)+len(t.Environments) > 0 || !t.ExpiresAt.IsZero() && !t.Session) {
		return state.Token{}, "", fault.Errorf(fault.Denied, "creating token %q: a limited token can't make others", name)
	}
	for _, p := range scope.Permissions {
		if p != platform.Anything && !slices.Contains(platform.Permissions(), p) {
			return state.Token{}, "", fault.WithHint(fault.Errorf(fault.Invalid, "creating token %q: there is no permission %q", name, p), "they are %s", platform.Permissions())
		}
	}
	id, err := s.random(10)
	if err != nil {
		return state.Token{}, "", fmt.Errorf("creating token %q: %w", name, err)
	}
	text, err := s.random(32)
	if err != nil {
		return state.Token{}, "", fmt.Errorf("creating token %q: %w", name, err)
	}
	secret = tokenPrefix + text
	data := state.TokenCreate{Token: state.TokenID(id), Name: name, Secret: digest.Of([]byte(secret)), Principal: by.Actor.Principal,
		Permissions: scope.Permissions, Environments: scope.Environments, Session: scope.Session}
	if scope.Session {
		data.Key = by.key
	}
	if scope.Lifetime > 0 {
		data.ExpiresAt = state.Millis(s.config.Now().Add(scope.Lifetime))
	}
	if _, err = s.append(ctx, func(state.State) ([]state.Entry, error) {
		e := s.entry(by.Actor, "", data)
		e.Subject = []state.Subject{{Name: name}}
		return []state.Entry{e}, nil
	}); err == nil {
		t, err = s.State().Token(data.Token)
	}
	if err != nil {
		return state.Token{}, "", fmt.Errorf("creating token %q: %w", name, err)
	}
	return t, secret, nil
}

// RevokeToken makes a token invalid for good. It fails with fault.NotFound, and with fault.Conflict when it is revoked already.
func (s *Service) RevokeToken(ctx context.Context, by Actor, id state.TokenID) error {
	_, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		t, err := now.Token(id)
		if err != nil {
			return nil, err
		}
		e := s.entry(by, "", state.TokenRevoke{Token: id})
		e.Subject = []state.Subject{{Name: t.Name}}
		return []state.Entry{e}, nil
	})
	if err != nil {
		return fmt.Errorf("revoking token %s: %w", id, err)
	}
	return nil
}

// random returns n random bytes as text of a-z2-7.
func (s *Service) random(n int) (string, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(s.config.Random, b); err != nil {
		return "", fmt.Errorf("reading random bytes: %w", err)
	}
	return strings.ToLower(tokenText.EncodeToString(b)), nil
}
