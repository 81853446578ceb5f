package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/fault"
)

// How a lost stream is taken up again.
const (
	silence       = 40 * time.Second // without even a heartbeat the stream is taken for dead
	firstPause    = 100 * time.Millisecond
	longestPause  = 2 * time.Second
	giveUpAfter   = 30 * time.Second // without a server
	maxEventBytes = 4 << 20
)

// EventsQuery says which events are wanted.
type EventsQuery struct {
	Env   string  // "": all
	Since *uint64 // ledger index to begin with; nil: only what comes from now on
}

// Events yields ledger entries and observed changes of instances as they happen, until ctx ends or the
// loop breaks. Entries come in the ledger's order, each once: a stream that breaks, as when the server is restarted, is
// taken up again after the last entry. When that fails for 30 seconds, or for good, the error is yielded last.
func (c *Client) Events(ctx context.Context, q EventsQuery) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		s := stream{client: c, query: q, yield: yield}
		if err := s.run(ctx); err != nil && !s.stopped {
			yield(api.Event{}, err)
		}
	}
}

// stream is one run of Events.
type stream struct {
	client  *Client
	query   EventsQuery
	yield   func(api.Event, error) bool
	stopped bool // the consumer has had enough
	met     bool // the server has answered before
	got     bool // something came since the last connection
}

func (s *stream) run(ctx context.Context) error {
	pause, lost := firstPause, time.Time{}
	for {
		s.got = false
		err := s.once(ctx)
		switch {
		case s.stopped:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case fault.KindOf(err) != fault.Unavailable || !s.met:
			return err
		case s.got || lost.IsZero():
			pause, lost = firstPause, time.Now()
		case time.Since(lost) > giveUpAfter:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, longestPause)
	}
}

// once connects and yields events until the stream breaks, which is fault.Unavailable.
func (s *stream) once(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dead := fault.Errorf(fault.Unavailable, "the server has been silent for %s", silence)
	watchdog := time.AfterFunc(silence, func() { cancel(dead) })
	defer watchdog.Stop()

	query := url.Values{}
	if s.query.Env != "" {
		query.Set("env", s.query.Env)
	}
	if s.query.Since != nil {
		query.Set("since", strconv.FormatUint(*s.query.Since, 10))
	}
	resp, err := s.client.send(ctx, http.MethodGet, api.PathEvents, query, nil)
	if err != nil {
		return cause(ctx, err)
	}
	defer resp.Body.Close()
	s.met = true
	for frame, err := range frames(resp.Body) {
		if err != nil {
			return cause(ctx, fault.As(fault.Unavailable, fmt.Errorf("reading events: %w", err)))
		}
		watchdog.Reset(silence)
		s.got = true
		if err := s.deliver(frame); err != nil || s.stopped {
			return err
		}
	}
	return fault.Errorf(fault.Unavailable, "the server ended the stream of events")
}

// cause is why ctx ended when it was the watchdog, else err.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}

// deliver yields what a frame holds, and remembers where to go on.
func (s *stream) deliver(f frame) error {
	e, err := f.event()
	if err != nil {
		return err
	}
	switch {
	case e.Entry != nil:
		if s.query.Since != nil && e.Entry.Index < *s.query.Since {
			return nil // had it already
		}
		s.query.Since = new(e.Entry.Index + 1)
	case e.Heartbeat != nil && s.query.Since == nil:
		s.query.Since = new(e.Heartbeat.Size)
	case e == api.Event{}:
		return nil
	}
	s.stopped = !s.yield(e, nil)
	return nil
}

// frame is one message of an event stream (HTML standard, section 9.2.6).
type frame struct {
	name string
	data []byte
}

// event decodes the frame. An event of a name that this client doesn't know is empty.
func (f frame) event() (api.Event, error) {
	var e api.Event
	var into any
	switch f.name {
	case api.EventEntry:
		e.Entry = new(api.Entry)
		into = e.Entry
	case api.EventInstance:
		e.Instance = new(api.Instance)
		into = e.Instance
	case api.EventHeartbeat:
		e.Heartbeat = new(api.Heartbeat)
		into = e.Heartbeat
	default:
		return e, nil
	}
	if err := json.Unmarshal(f.data, into); err != nil {
		return api.Event{}, fault.Errorf(fault.Invalid, "understanding an event %q: %w", f.name, err)
	}
	return e, nil
}

// frames reads an event stream. Comments, ids and retry times are skipped: entries carry their index.
func frames(r io.Reader) iter.Seq2[frame, error] {
	return func(yield func(frame, error) bool) {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxEventBytes)
		var f frame
		for lines.Scan() {
			if line := lines.Text(); line != "" {
				f.add(line)
				continue
			}
			if len(f.data) > 0 && !yield(f, nil) {
				return
			}
			f = frame{}
		}
		if err := lines.Err(); err != nil {
			yield(frame{}, err)
		}
	}
}

func (f *frame) add(line string) {
	field, value, _ := strings.Cut(line, ":")
	value = strings.TrimPrefix(value, " ")
	switch field {
	case "event":
		f.name = value
	case "data":
		if len(f.data) > 0 {
			f.data = append(f.data, '\n')
		}
		f.data = append(f.data, value...)
	}
}
