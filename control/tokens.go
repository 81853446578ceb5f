package control

import (
	"context"
	"encoding/base32"
	"fmt"
	"io"
	"strings"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/state"
)

// tokenPrefix lets scanners of leaked secrets know one when they see it.
const tokenPrefix = "invar_"

var tokenText = base32.StdEncoding.WithPadding(base32.NoPadding)

// CreateToken makes a token, whose holder acts as token:NAME. The secret is returned this once: only its digest is kept.
func (s *Service) CreateToken(ctx context.Context, by Actor, name string) (t state.Token, secret string, err error) {
	id, err := s.random(10)
	if err != nil {
		return state.Token{}, "", fmt.Errorf("creating token %q: %w", name, err)
	}
	text, err := s.random(32)
	if err != nil {
		return state.Token{}, "", fmt.Errorf("creating token %q: %w", name, err)
	}
	secret = tokenPrefix + text
	data := state.TokenCreate{Token: state.TokenID(id), Name: name, Secret: digest.Of([]byte(secret))}
	if _, err = s.append(ctx, func(state.State) ([]state.Entry, error) {
		e := s.entry(by, "", data)
		e.Subject = []state.Subject{{Name: name}}
		t = state.Token{ID: data.Token, Name: name, Secret: data.Secret, Actor: by, CreatedAt: e.Time}
		return []state.Entry{e}, nil
	}); err != nil {
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

// VerifyToken returns the actor that the holder of the secret is. It fails with fault.Denied. The secret is looked up by
// its digest, so that the time it takes tells nothing about secrets that are valid.
func (s *Service) VerifyToken(secret string) (Actor, error) {
	t, err := s.State().TokenOf(digest.Of([]byte(secret)))
	if err != nil || !t.Valid(s.config.Now()) || !strings.HasPrefix(secret, tokenPrefix) {
		return Actor{}, fault.WithHint(fault.Errorf(fault.Denied, "the token is not valid"), "make one on the server's machine: invar token create NAME")
	}
	return Actor{Kind: state.ActorToken, Name: t.Name}, nil
}

// random returns n random bytes as text of a-z2-7.
func (s *Service) random(n int) (string, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(s.config.Random, b); err != nil {
		return "", fmt.Errorf("reading random bytes: %w", err)
	}
	return strings.ToLower(tokenText.EncodeToString(b)), nil
}
