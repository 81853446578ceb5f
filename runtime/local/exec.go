package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/local/wire"
)

// Exec implements runtime.Host. The command is a child of the launcher, which ends it with the connection: so it does not outlive the server.
func (h *Host) Exec(ctx context.Context, id instance.ID, s runtime.Session) (int, error) {
	code, err := h.exec(ctx, id, s)
	if err != nil {
		return -1, unavailable(fmt.Errorf("running %q in instance %s: %w", s.Args, id, err))
	}
	return code, nil
}

func (h *Host) exec(ctx context.Context, id instance.ID, s runtime.Session) (int, error) {
	if len(s.Args) == 0 || s.Args[0] == "" {
		return 0, fault.Errorf(fault.Invalid, "no command")
	}
	i := h.find(id)
	if i == nil {
		return 0, fault.Errorf(fault.NotFound, "it is not on this host")
	}
	if i.spec.Isolation != "" {
		return 0, fault.Errorf(fault.Invalid, "an instance with isolation = %q can have no sessions", i.spec.Isolation)
	}
	if h.freezer(id).frozen() {
		return 0, fault.Errorf(fault.Conflict, "it is frozen: what differs in it is being kept as evidence")
	}
	n, err := h.launcher.dialSoon(ctx)
	if err != nil {
		return 0, err
	}
	defer n.Close()
	stop := context.AfterFunc(ctx, func() { n.Close() })
	defer stop()
	defer context.AfterFunc(h.closing, func() { n.Close() })()
	_, response, err := n.ask(ctx, wire.Request{Op: wire.OpSession, ID: string(id), Session: &wire.Session{
		Args: s.Args, Env: s.Env, TTY: s.TTY, Rows: s.Size.Rows, Cols: s.Size.Cols,
	}})
	if err != nil {
		return 0, err
	}
	if err := response.Err(); err != nil {
		if errors.Is(err, fault.Invalid) {
			err = fault.WithHint(err, "name a program that the image has; an image of one static program has no shell")
		}
		return 0, err
	}
	return n.talk(ctx, s)
}

// talk carries a session until it ends.
func (n *conn) talk(ctx context.Context, s runtime.Session) (int, error) {
	done := make(chan struct{})
	defer close(done)
	var send sync.Mutex
	write := func(f wire.Frame) error {
		send.Lock()
		defer send.Unlock()
		return wire.WriteFrame(n, f)
	}
	go func() { // it ends with the input, or at its first byte after the session
		if s.Stdin != nil {
			copyStdin(s.Stdin, write)
		}
		write(wire.Frame{Kind: wire.StdinEnd})
	}()
	go func() {
		for {
			select {
			case size, ok := <-s.Resize:
				if !ok || write(wire.ResizeFrame(size.Rows, size.Cols)) != nil {
					return
				}
			case <-done:
				return
			}
		}
	}()
	for {
		f, err := wire.ReadFrame(n.r)
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case err != nil:
			return 0, fault.As(fault.Unavailable, fmt.Errorf("%w: %w", errBroken, err))
		case f.Kind == wire.Exit:
			return f.Code(), nil
		case f.Kind == wire.Stdout && s.Stdout != nil:
			_, err = s.Stdout.Write(f.Data)
		case f.Kind == wire.Stderr && s.Stderr != nil:
			_, err = s.Stderr.Write(f.Data)
		}
		if err != nil {
			return 0, fmt.Errorf("passing its output on: %w", err)
		}
	}
}

func copyStdin(from io.Reader, write func(wire.Frame) error) {
	buf := make([]byte, wire.MaxFrame)
	for {
		n, err := from.Read(buf)
		if n > 0 && write(wire.Frame{Kind: wire.Stdin, Data: buf[:n]}) != nil || err != nil {
			return
		}
	}
}
