// Package client talks to an invar server: over its unix socket ("unix:///var/lib/invar/invar.sock") or
// over TCP ("https://invar.example.com:7373", with a token).
//
// Errors have the kind (package fault) and the hint that the server gave. A server that isn't there is
// fault.Unavailable; a server of another API level is fault.Invalid, and the hint says which side to upgrade.
// Fields that a newer server adds to its answers are ignored.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/fault"
)

// Limits of one exchange.
const (
	maxAnswerBytes = 256 << 20 // of a JSON answer; beyond it the server is not to be trusted
	maxErrorBytes  = 1 << 20
	maxHeaderWait  = 2 * time.Minute // from the request to the first byte of its answer
	dialTimeout    = 10 * time.Second
)

// Options of a client. The zero value is usable.
type Options struct {
	Token   string // for TCP; not needed on the unix socket
	Version string // of this program, told to the server

	// Credentials, if set, tells the token of each request in place of Token: one that is renewed meanwhile. "" is none.
	Credentials func(context.Context) (string, error)
}

// Client is a connection to one server. Its methods may be called concurrently.
type Client struct {
	where   string // as given, for messages
	base    *url.URL
	version string
	http    *http.Client
}

// New returns a client for the server at where: unix://PATH, http://HOST[:PORT] or https://HOST[:PORT].
// It does not connect yet.
func New(where string, opts Options) (*Client, error) {
	credentials := opts.Credentials
	if credentials == nil {
		credentials = func(context.Context) (string, error) { return opts.Token, nil }
	}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: maxHeaderWait,
		IdleConnTimeout:       time.Minute,
		MaxIdleConnsPerHost:   16,
		ForceAttemptHTTP2:     true,
	}
	base, err := baseOf(where, transport)
	if err != nil {
		return nil, err
	}
	return &Client{
		where:   where,
		base:    base,
		version: opts.Version,
		http: &http.Client{
			Transport: &signed{next: transport, host: base.Host, credentials: credentials, version: opts.Version},
			CheckRedirect: func(*http.Request, []*http.Request) error {
				return http.ErrUseLastResponse // the API never redirects; a token must not travel on
			},
		},
	}, nil
}

// baseOf reads where, and makes transport dial the socket when it is one.
func baseOf(where string, transport *http.Transport) (*url.URL, error) {
	if path, ok := strings.CutPrefix(where, "unix://"); ok && path != "" {
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", path)
		}
		return &url.URL{Scheme: "http", Host: "localhost"}, nil
	}
	u, err := url.Parse(where)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return nil, fault.WithHint(fault.Errorf(fault.Invalid, "server %q: not an address of a server", where),
			"write unix://PATH, http://HOST:PORT or https://HOST:PORT")
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// signed adds to every request to its host who asks and in which version.
type signed struct {
	next          http.RoundTripper
	host, version string
	credentials   func(context.Context) (string, error)
}

func (s *signed) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if r.URL.Host == s.host && r.Header.Get("Authorization") == "" {
		token, err := s.credentials(r.Context())
		if err != nil {
			if r.Body != nil {
				r.Body.Close()
			}
			return nil, &credentialError{err}
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
	}
	r.Header.Set(api.HeaderVersion, s.version)
	r.Header.Set(api.HeaderLevel, strconv.Itoa(api.Level))
	return s.next.RoundTrip(r)
}

// credentialError is why there is no token to show.
type credentialError struct{ error }

func (e *credentialError) Unwrap() error { return e.error }

// Base returns where the server's paths begin. Use it with Transport only: the host of a unix socket is made up.
func (c *Client) Base() *url.URL { u := *c.base; return &u }

// Transport returns what carries requests to the server, with the caller's credentials. Image clients
// push to the registry under /v2/ through it.
func (c *Client) Transport() http.RoundTripper { return c.http.Transport }

// Close closes idle connections.
func (c *Client) Close() { c.http.Transport.(*signed).next.(*http.Transport).CloseIdleConnections() }

// call exchanges JSON. A nil in sends no body.
func call[T any](ctx context.Context, c *Client, method, path string, query url.Values, in any) (T, error) {
	var out T
	resp, err := c.send(ctx, method, path, query, in)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	if err != nil {
		return out, fault.As(fault.Unavailable, fmt.Errorf("reading the answer of %s %s: %w", method, path, err))
	}
	if len(body) > maxAnswerBytes {
		return out, fault.Errorf(fault.Invalid, "the answer of %s %s is larger than %d bytes", method, path, maxAnswerBytes)
	}
	if resp.StatusCode == http.StatusNoContent {
		return out, nil
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return out, fault.WithHint(fault.Errorf(fault.Invalid, "understanding the answer of %s %s: %w", method, path, err),
			"the server runs invar %s, the client %s", resp.Header.Get(api.HeaderVersion), c.version)
	}
	return out, nil
}

// send sends a request and returns its answer when its status says that it was done. The caller closes the body.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, in any) (*http.Response, error) {
	req, err := c.request(ctx, method, path, query, in)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreached(ctx, err)
	}
	if err := c.check(resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

func (c *Client) request(ctx context.Context, method, path string, query url.Values, in any) (*http.Request, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encoding %s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	target := c.base.String() + path // path is escaped already
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", api.TypeJSON)
	}
	return req, nil
}

// check turns an answer that says no into its error, and refuses what doesn't come from an invar server.
func (c *Client) check(resp *http.Response) error {
	if resp.Header.Get(api.HeaderLevel) == "" {
		return fault.WithHint(fault.Errorf(fault.Invalid, "%s answered with status %d, and not as an invar server does", c.where, resp.StatusCode),
			"check --server or INVAR_SERVER")
	}
	level, err := api.ParseLevel(resp.Header.Get(api.HeaderLevel))
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes)) // what is cut off still has a status
		return api.DecodeProblem(resp.StatusCode, resp.Header.Get("Content-Type"), body).Err()
	}
	if level < api.MinLevel {
		version := resp.Header.Get(api.HeaderVersion)
		return fault.WithHint(fault.Errorf(fault.Invalid, "the server (invar %s) speaks API level %d, the client (invar %s) only from %d on: the client is newer than the server",
			version, level, c.version, api.MinLevel), "upgrade the server to invar %s, or use the client of invar %s", c.version, version)
	}
	return nil
}

// unreached gives an error of the transport its kind, and says what to do.
func (c *Client) unreached(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if e, ok := errors.AsType[*credentialError](err); ok {
		return e.error
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err // the URL of a socket is made up: don't show it
	}
	err = fmt.Errorf("reaching the server at %s: %w", c.where, err)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fault.WithHint(fault.As(fault.Unavailable, err), "start one: invar server")
	case errors.Is(err, fs.ErrPermission):
		return fault.WithHint(fault.As(fault.Denied, err), "run as root, or as the user that the server runs as")
	}
	return fault.As(fault.Unavailable, err)
}
