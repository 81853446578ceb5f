package mirror

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/invarhq/invar/fault"
)

const fetchWithin = time.Minute

// HTTP returns what reads a log over HTTP. where is unix://PATH or http(s)://HOST[:PORT], for an invar server; with a path, it is the
// prefix of any tiled log. The token, where there is one, goes to that host alone.
func HTTP(where, token string) (Fetch, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = atOnce
	prefix := where
	if path, ok := strings.CutPrefix(where, "unix://"); ok && path != "" {
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		prefix = "http://localhost"
	}
	u, err := url.Parse(prefix)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return nil, fault.WithHint(fault.Errorf(fault.Invalid, "%q is not the address of a log", where), "write unix://PATH, http(s)://HOST:PORT, or the URL that its tiles lie under")
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = "/ledger"
	}
	base := strings.TrimSuffix(u.String(), "/") + "/"
	client := &http.Client{Transport: transport, Timeout: fetchWithin,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return func(ctx context.Context, path string) ([]byte, error) {
		data, err := get(ctx, client, base+path, token)
		if err != nil {
			return nil, fmt.Errorf("reading %s of %s: %w", path, where, err)
		}
		return data, nil
	}, nil
}

func get(ctx context.Context, client *http.Client, target, token string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fault.As(fault.Unavailable, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxFetched+1))
	switch {
	case err != nil:
		return nil, fault.As(fault.Unavailable, err)
	case resp.StatusCode == http.StatusNotFound:
		return nil, fault.Errorf(fault.NotFound, "there is none")
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		return nil, fault.WithHint(fault.Errorf(fault.Denied, "%s", resp.Status), "set INVAR_TOKEN to a token of the server")
	case resp.StatusCode != http.StatusOK:
		return nil, fault.Errorf(fault.Unavailable, "%s", resp.Status)
	case len(data) > maxFetched:
		return nil, fault.Errorf(fault.Corrupt, "more than %d bytes", maxFetched)
	}
	return data, nil
}
