package client

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"github.com/coder/websocket"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/fault"
)

// ExecQuery says what to run, and where.
type ExecQuery struct {
	Env, Component, Instance string // Instance "": any
	Reason                   string
	Command                  []string
	TTY                      bool
	Term                     string
	Size                     TerminalSize
	Resize                   <-chan TerminalSize
	Stdin                    io.Reader
	Stdout, Stderr           io.Writer
	Opened                   func(api.ExecSession) // called before the command begins
}

// TerminalSize is a terminal's.
type TerminalSize struct{ Rows, Cols uint16 }

// Exec runs a command in an instance, and returns how it ended. The session ends with ctx.
func (c *Client) Exec(ctx context.Context, x ExecQuery) (api.ExecEnd, error) {
	q := url.Values{"reason": {x.Reason}, "command": x.Command}
	if x.Instance != "" {
		q.Set("instance", x.Instance)
	}
	if x.TTY {
		q.Set("tty", "true")
		q.Set("term", x.Term)
		q.Set("rows", strconv.Itoa(int(x.Size.Rows)))
		q.Set("cols", strconv.Itoa(int(x.Size.Cols)))
	}
	target := c.base.String() + api.ExecPath(x.Env, x.Component) + "?" + q.Encode()
	conn, resp, err := websocket.Dial(ctx, target, &websocket.DialOptions{HTTPClient: c.http})
	if err != nil {
		if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
			if said := c.check(resp); said != nil {
				return api.ExecEnd{}, said
			}
		}
		return api.ExecEnd{}, c.unreached(ctx, err)
	}
	defer conn.CloseNow()
	conn.SetReadLimit(1 << 20)
	s := &execSession{ctx: ctx, conn: conn}
	if x.Stdin != nil {
		go s.sendInput(x.Stdin)
	} else {
		s.send(api.ExecStdinEnd, nil)
	}
	done := make(chan struct{})
	defer close(done)
	go s.sendSizes(x.Resize, done)
	return s.receive(x)
}

type execSession struct {
	ctx  context.Context // of the one call that this lives for
	conn *websocket.Conn
	mu   sync.Mutex
}

func (s *execSession) send(kind byte, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.Write(s.ctx, websocket.MessageBinary, append([]byte{kind}, b...))
}

func (s *execSession) sendInput(from io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && s.send(api.ExecStdin, buf[:n]) != nil {
			return
		}
		if err != nil {
			s.send(api.ExecStdinEnd, nil)
			return
		}
	}
}

func (s *execSession) sendSizes(sizes <-chan TerminalSize, done <-chan struct{}) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			s.send(api.ExecResize, binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, size.Rows), size.Cols))
		case <-done:
			return
		}
	}
}

// receive passes on what the server sends, until the end.
func (s *execSession) receive(x ExecQuery) (api.ExecEnd, error) {
	var end api.ExecEnd
	for {
		_, b, err := s.conn.Read(s.ctx)
		if err != nil || len(b) == 0 {
			return end, fault.As(fault.Unavailable, fmt.Errorf("the session broke off: %w", errors.Join(s.ctx.Err(), err)))
		}
		switch kind, b := b[0], b[1:]; kind {
		case api.ExecOpened:
			var o api.ExecSession
			if err = json.Unmarshal(b, &o); err == nil && x.Opened != nil {
				x.Opened(o)
			}
		case api.ExecStdout:
			_, err = x.Stdout.Write(b)
		case api.ExecStderr:
			_, err = x.Stderr.Write(b)
		case api.ExecExit:
			return end, json.Unmarshal(b, &end)
		case api.ExecError:
			var p api.Problem
			if err := json.Unmarshal(b, &p); err != nil {
				return end, fmt.Errorf("reading why the session failed: %w", err)
			}
			return end, p.Err()
		}
		if err != nil {
			return end, fmt.Errorf("passing the session's output on: %w", err)
		}
	}
}

// Recording writes the recording of a session to w: asciicast v2, or that encrypted by age.
func (c *Client) Recording(ctx context.Context, digest string, w io.Writer) error {
	resp, err := c.send(ctx, http.MethodGet, api.RecordingPath(digest), nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fault.As(fault.Unavailable, fmt.Errorf("reading the recording: %w", err))
	}
	return nil
}
