package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
)

// Client talks to a gateway's control socket. Its errors are fault.Unavailable when there is no gateway.
type Client struct {
	dial func(ctx context.Context) (*net.UnixConn, error)
	http *http.Client
}

// Dial returns a client for the socket at path. It connects when it is used, each time to the gateway that is then the newest.
func Dial(path string) *Client {
	return newClient(func(ctx context.Context) (*net.UnixConn, error) { return dialUnix(ctx, path) })
}

// dialGateway returns a client of the process whose number a function tells, and of no other that listens in its place. 0 is whoever
// is at the control path.
func dialGateway(cfg Config, pid func() int) *Client {
	return newClient(func(ctx context.Context) (*net.UnixConn, error) {
		want := pid()
		if want == 0 {
			return dialUnix(ctx, cfg.controlPath())
		}
		conn, err := dialUnix(ctx, socketOf(cfg, want))
		if err != nil {
			return nil, err
		}
		cred, err := peer(conn)
		if err == nil && int(cred.Pid) != want {
			err = fmt.Errorf("the gateway's control socket is %s's", nameOf(int(cred.Pid)))
		}
		if err != nil {
			conn.Close()
			return nil, err
		}
		return conn, nil
	})
}

func dialUnix(ctx context.Context, path string) (*net.UnixConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

func newClient(dial func(ctx context.Context) (*net.UnixConn, error)) *Client {
	// A kept connection would lead to a gateway that has handed over.
	return &Client{dial: dial, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }, DisableKeepAlives: true,
	}}}
}

// whose returns the process that answers.
func (c *Client) whose(ctx context.Context) (pid int, err error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return 0, fault.As(fault.Unavailable, fmt.Errorf("asking the gateway: %w", err))
	}
	defer conn.Close()
	cred, err := peer(conn)
	return int(cred.Pid), err
}

// Apply puts a table in force. When it returns, new requests follow it. A table that is not sound is refused with
// fault.Invalid, one with a lower serial than that in force with fault.Conflict; the old one stays then.
func (c *Client) Apply(ctx context.Context, t gateway.Table) error {
	sealed, err := t.Seal()
	if err != nil {
		return err
	}
	return c.Replace(ctx, sealed, "")
}

// Replace is Apply of a table in place of the one that over names, whatever the serials are. Another one in force is fault.Conflict. Over
// "" is any that is not newer.
func (c *Client) Replace(ctx context.Context, t gateway.Sealed, over digest.Digest) error {
	path := "/v1/table"
	if over != "" {
		path += "?" + url.Values{overParameter: {string(over)}}.Encode()
	}
	return c.call(ctx, http.MethodPut, path, t.Bytes, nil)
}

// Status asks the gateway about itself.
func (c *Client) Status(ctx context.Context) (gateway.Status, error) {
	var s gateway.Status
	return s, c.call(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// Drain tells the gateway that another process has its listeners: it ends when its last connection does.
func (c *Client) Drain(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/drain", nil, nil)
}

// releaseQUIC tells the gateway to stop serving HTTP/3, ahead of a handover. It returns when nothing reads from the socket any more.
func (c *Client) releaseQUIC(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/release-quic", nil, nil)
}

func (c *Client) call(ctx context.Context, method, path string, body []byte, into any) error {
	r, err := http.NewRequestWithContext(ctx, method, "http://gateway"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return fault.As(fault.Unavailable, fmt.Errorf("asking the gateway: %w", err))
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return fault.As(fault.Unavailable, fmt.Errorf("asking the gateway: %w", err))
	}
	if resp.StatusCode != http.StatusOK {
		return refusal(resp.StatusCode, string(raw))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(raw, into)
}

func refusal(status int, text string) error {
	err := fmt.Errorf("gateway: %s", strings.TrimSpace(text))
	for kind, s := range statuses {
		if s == status {
			return fault.As(kind, err)
		}
	}
	return err
}

// watch returns a body that ends when the gateway does.
func (c *Client) watch(ctx context.Context) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://gateway/v1/watch", nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, fault.As(fault.Unavailable, fmt.Errorf("watching the gateway: %w", err))
	}
	return resp.Body, nil
}

// listeners returns duplicates of the gateway's listening sockets but those held, and the names of all of them.
func (c *Client) listeners(ctx context.Context, held []string) (map[string]*os.File, []string, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, nil, fault.As(fault.Unavailable, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := askListeners(conn, held); err != nil {
		return nil, nil, err
	}
	_, fresh, all, err := receiveListeners(conn)
	return fresh, all, err
}
