package handler

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"

	"github.com/coder/websocket"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/spec"
)

// stdinQueue is how many messages wait for a command that does not read; so long it is noticed when the client goes.
const stdinQueue = 128

// exec opens a session: see api.ExecPath. What is wrong with the question is answered before the upgrade.
func (h *Handler) exec(w http.ResponseWriter, r *http.Request) {
	env := spec.EnvName(r.PathValue("env"))
	err := h.authorize(r.Context(), "exec", platform.Exec, env)
	x := executionOf(r)
	if err == nil {
		err = x.Check()
	}
	if err != nil {
		writeProblem(w, h.problem(r.Context(), "exec", err).(*api.Problem))
		return
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(api.MaxExecMessage)
	ctx, cancel := h.whileAllowed(r.Context(), "exec", platform.Exec, env)
	defer cancel()
	h.converse(ctx, conn, x)
}

// executionOf reads what is asked for.
func executionOf(r *http.Request) control.Execution {
	q := r.URL.Query()
	number := func(name string) uint16 {
		n, _ := strconv.ParseUint(q.Get(name), 10, 16)
		return uint16(n)
	}
	x := control.Execution{
		Env: spec.EnvName(r.PathValue("env")), Component: spec.ComponentName(r.PathValue("component")), Instance: instance.ID(q.Get("instance")),
		Reason: q.Get("reason"),
		Session: runtime.Session{
			Args: q["command"], TTY: q.Get("tty") == "true", Size: runtime.Size{Rows: number("rows"), Cols: number("cols")},
		},
	}
	if term := q.Get("term"); x.Session.TTY && term != "" {
		x.Session.Env = []string{"TERM=" + term}
	}
	return x
}

// converse carries a session over the connection.
func (h *Handler) converse(ctx context.Context, conn *websocket.Conn, x control.Execution) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := &execWriter{ctx: ctx, conn: conn}
	stdin, typed := io.Pipe()
	defer stdin.Close()
	sizes := make(chan runtime.Size)
	go func() {
		defer cancel()
		readSession(ctx, conn, typed, sizes)
	}()
	x.Session.Stdin, x.Session.Resize = stdin, sizes
	x.Session.Stdout, x.Session.Stderr = out.stream(api.ExecStdout), out.stream(api.ExecStderr)
	x.Run, x.Stopped = h.config.Host.Exec, h.closing
	x.Opened = func(o control.Opened) error {
		return out.json(api.ExecOpened, api.ExecSession{ID: string(o.Session), Instance: string(o.Instance), Deadline: o.Deadline, Encrypted: o.Encrypted})
	}
	ended, err := h.config.Control.Exec(ctx, actorFrom(ctx), x)
	if err != nil {
		out.json(api.ExecError, h.problem(ctx, "exec", err))
	} else {
		out.json(api.ExecExit, api.ExecEnd{How: ended.How, ExitCode: ended.ExitCode})
	}
	conn.Close(websocket.StatusNormalClosure, "")
}

// readSession passes on what the client sends, until it is gone.
func readSession(ctx context.Context, conn *websocket.Conn, typed *io.PipeWriter, sizes chan<- runtime.Size) {
	queue := make(chan []byte, stdinQueue)
	var writing sync.WaitGroup
	defer writing.Wait()
	defer typed.CloseWithError(io.ErrUnexpectedEOF)
	open := true
	defer func() {
		if open {
			close(queue)
		}
	}()
	writing.Go(func() {
		for b := range queue {
			if _, err := typed.Write(b); err != nil {
				return
			}
		}
		typed.Close()
	})
	for {
		_, b, err := conn.Read(ctx)
		if err != nil || len(b) == 0 {
			return
		}
		switch kind, b := b[0], b[1:]; {
		case kind == api.ExecStdin && open:
			select {
			case queue <- b:
			case <-ctx.Done():
				return
			}
		case kind == api.ExecStdinEnd && open:
			open = false
			close(queue)
		case kind == api.ExecResize && len(b) == 4:
			select {
			case sizes <- runtime.Size{Rows: binary.BigEndian.Uint16(b), Cols: binary.BigEndian.Uint16(b[2:])}:
			case <-ctx.Done():
				return
			}
		}
	}
}

// execWriter writes messages, one at a time.
type execWriter struct {
	ctx  context.Context
	conn *websocket.Conn
	mu   sync.Mutex
}

func (w *execWriter) send(kind byte, b []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conn.Write(context.WithoutCancel(w.ctx), websocket.MessageBinary, append([]byte{kind}, b...))
}

func (w *execWriter) json(kind byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	return w.send(kind, b)
}

func (w *execWriter) stream(kind byte) io.Writer { return execStream{w, kind} }

type execStream struct {
	*execWriter
	kind byte
}

func (s execStream) Write(b []byte) (int, error) {
	if err := s.send(s.kind, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// recording serves what was typed and shown in a session.
func (h *Handler) recording(w http.ResponseWriter, r *http.Request) {
	err := error(fault.Errorf(fault.NotFound, "this server keeps no recordings"))
	var content io.ReadCloser
	if h.config.Recordings != nil {
		content, err = h.config.Recordings(digest.Digest(r.PathValue("digest")))
	}
	if err != nil {
		writeProblem(w, h.problem(r.Context(), "recording", err).(*api.Problem))
		return
	}
	defer content.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	if _, err := io.Copy(w, content); err != nil && !errors.Is(err, context.Canceled) {
		h.log.Warn("sending a recording", "error", err)
	}
}
