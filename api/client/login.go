package client

import (
	"context"
	"net/http"

	"github.com/invarhq/invar/api"
)

// LoginWays tells how one may log in. It needs no credentials.
func (c *Client) LoginWays(ctx context.Context) (api.LoginWays, error) {
	return call[api.LoginWays](ctx, c, http.MethodGet, api.PathLogin, nil, nil)
}

// LoginChallenge asks for a text that an SSH key has to sign. It needs no credentials.
func (c *Client) LoginChallenge(ctx context.Context) (api.LoginChallenge, error) {
	return call[api.LoginChallenge](ctx, c, http.MethodPost, api.PathLoginSSH, nil, nil)
}

// LogIn gives a signed challenge back. fault.Denied: it lets nobody in.
func (c *Client) LogIn(ctx context.Context, req api.LoginRequest) (api.Session, error) {
	return call[api.Session](ctx, c, http.MethodPost, api.PathLoginSession, nil, req)
}
