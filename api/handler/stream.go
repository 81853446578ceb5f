package handler

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// writeWait is how long a client of a stream may take to accept what is written to it.
const writeWait = 30 * time.Second

// stream answers with what write writes, flushing every write, until it returns or the client goes.
// An error of write after the first byte can't be told to the client any more but by breaking off.
func stream(contentType string, write func(w io.Writer) error) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		_, w := humago.Unwrap(hc)
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("X-Accel-Buffering", "no") // a proxy in front must not hold the stream back
		f := &flushWriter{w: w, rc: http.NewResponseController(w)}
		defer f.rc.SetWriteDeadline(time.Time{}) // else it would hit the connection's next answer
		if err := f.begin(); err != nil {
			return
		}
		if err := write(f); err != nil && hc.Context().Err() == nil {
			panic(http.ErrAbortHandler) // the documented way to break an answer off
		}
	}}
}

// flushWriter sends each write at once. It may be used by several goroutines.
type flushWriter struct {
	mu sync.Mutex // guards what follows
	w  http.ResponseWriter
	rc *http.ResponseController
}

// begin sends the header, so that the client knows that it is connected.
func (f *flushWriter) begin() error {
	f.w.WriteHeader(http.StatusOK)
	return f.rc.Flush()
}

func (f *flushWriter) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.rc.SetWriteDeadline(time.Now().Add(writeWait)); err != nil {
		return 0, fmt.Errorf("setting a deadline: %w", err)
	}
	n, err := f.w.Write(b)
	if err != nil {
		return n, err
	}
	return n, f.rc.Flush()
}

// writeEvent writes a message of an event stream (HTML standard, section 9.2.6). An id of "" is left out.
func writeEvent(w io.Writer, name, id string, data any) error {
	encoded, err := json.Marshal(data) // has no line breaks
	if err != nil {
		return fmt.Errorf("encoding event %s: %w", name, err)
	}
	var b bytes.Buffer
	if id != "" {
		fmt.Fprintf(&b, "id: %s\n", id)
	}
	fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", name, encoded)
	_, err = w.Write(b.Bytes())
	return err
}

// linePrefixer writes whole lines to w, each after the prefix. Close writes a last line without its end.
type linePrefixer struct {
	w      io.Writer
	prefix string
	rest   []byte // of the last, unfinished line
}

// maxLineBytes is where a line without end is cut.
const maxLineBytes = 64 << 10

func (p *linePrefixer) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	var out []byte
	for {
		i := bytes.IndexByte(p.rest, '\n')
		if i < 0 && len(p.rest) < maxLineBytes {
			break
		}
		if i < 0 {
			i = len(p.rest) - 1
		}
		out = append(out, p.prefix...)
		out = append(out, bytes.TrimSuffix(p.rest[:i+1], []byte("\n"))...)
		out = append(out, '\n')
		p.rest = p.rest[i+1:]
	}
	if len(out) > 0 {
		if _, err := p.w.Write(out); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func (p *linePrefixer) Close() error {
	if len(p.rest) == 0 {
		return nil
	}
	_, err := p.Write([]byte("\n"))
	return err
}
