package oidctest

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// store is zitadel's storage in memory, with clients, users, claims and keys of ours.
type store struct {
	*storage.Storage

	mu       sync.Mutex
	key      signingKey
	audience string
	claims   map[string]any // of the next workload token
}

func newStore() *store {
	clients := map[string]*storage.Client{ClientID: storage.NativeClient(ClientID, "http://127.0.0.1/callback")}
	s := &store{Storage: storage.NewStorageWithClients(users{}, clients)}
	s.rotate()
	return s
}

func (s *store) rotate() {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err) // there is no randomness
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key = signingKey{rand.Text(), private}
}

func (s *store) current() signingKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.key
}

func (s *store) setWorkload(audience string, claims map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.audience, s.claims = audience, maps.Clone(claims)
}

// signingKey is both halves of a key, as op wants them.
type signingKey struct {
	id      string
	private *rsa.PrivateKey
}

func (k signingKey) ID() string                                  { return k.id }
func (k signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k signingKey) Key() any                                    { return k.private }

type publicKey struct{ signingKey }

func (k publicKey) Algorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                           { return &k.private.PublicKey }

func (s *store) SigningKey(context.Context) (op.SigningKey, error) { return s.current(), nil }
func (s *store) KeySet(context.Context) ([]op.Key, error) {
	return []op.Key{publicKey{s.current()}}, nil
}

// client is a client of the storage with what it leaves fixed.
type client struct {
	*storage.Client
	id     string
	grants []oidc.GrantType
}

func (c client) GetID() string                        { return c.id }
func (c client) GrantTypes() []oidc.GrantType         { return c.grants }
func (c client) AccessTokenType() op.AccessTokenType  { return op.AccessTokenTypeJWT }
func (c client) IDTokenLifetime() time.Duration       { return lifetime }
func (c client) IDTokenUserinfoClaimsAssertion() bool { return true }

func (s *store) GetClientByClientID(ctx context.Context, id string) (op.Client, error) {
	if id == CI {
		return client{storage.WebClient(CI, ciSecret), CI, []oidc.GrantType{oidc.GrantTypeClientCredentials}}, nil
	}
	if id != ClientID {
		return nil, fmt.Errorf("client %q is not known", id)
	}
	return client{storage.NativeClient(ClientID, "http://127.0.0.1/callback"), ClientID,
		[]oidc.GrantType{oidc.GrantTypeCode, oidc.GrantTypeRefreshToken, oidc.GrantTypeDeviceCode}}, nil
}

func (s *store) ClientCredentials(ctx context.Context, id, secret string) (op.Client, error) {
	if id != CI || secret != ciSecret {
		return nil, errors.New("wrong client or secret")
	}
	return s.GetClientByClientID(ctx, id)
}

func (s *store) ClientCredentialsTokenRequest(_ context.Context, id string, scopes []string) (op.TokenRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &oidc.JWTTokenRequest{Subject: id, Audience: []string{s.audience}, Scopes: scopes}, nil
}

func (s *store) GetPrivateClaimsFromScopes(_ context.Context, _, id string, _ []string) (map[string]any, error) {
	if id != CI {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.claims, nil
}

// CreateAccessAndRefreshTokens remembers whose client a device is: the storage forgets it, and then revokes nothing.
func (s *store) CreateAccessAndRefreshTokens(ctx context.Context, req op.TokenRequest, current string) (string, string, time.Time, error) {
	if d, ok := req.(*op.DeviceAuthorizationState); ok {
		req = &storage.RefreshTokenRequest{RefreshToken: &storage.RefreshToken{
			ApplicationID: d.ClientID, UserID: d.Subject, Audience: d.Audience, Scopes: d.Scopes, AuthTime: d.AuthTime, AMR: d.AMR,
		}}
	}
	return s.Storage.CreateAccessAndRefreshTokens(ctx, req, current)
}

func (s *store) SetUserinfoFromRequest(ctx context.Context, info *oidc.UserInfo, token op.IDTokenRequest, scopes []string) error {
	if err := s.Storage.SetUserinfoFromRequest(ctx, info, token, scopes); err != nil {
		return err
	}
	info.AppendClaims("groups", groups[token.GetSubject()])
	return nil
}

// users are those of groups, by their names.
type users struct{}

func (users) ExampleClientID() string { return CI }

func (users) GetUserByID(id string) *storage.User {
	if groups[id] == nil {
		return nil
	}
	return &storage.User{ID: id, Username: id, Password: password, Email: id + "@bank.example", EmailVerified: true}
}

func (u users) GetUserByUsername(name string) *storage.User { return u.GetUserByID(name) }
