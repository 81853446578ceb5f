package handler

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// Times of an event stream.
const (
	heartbeatEvery = 15 * time.Second
	eventSpacing   = 25 * time.Millisecond // between two looks, so that a burst of changes is one look
)

type eventsInput struct {
	Env    string          `query:"env" maxLength:"63" doc:"Only what belongs to this environment."`
	Since  optional[int64] `query:"since" minimum:"0" doc:"Ledger index to begin with; absent: only what comes from now on."`
	LastID optional[int64] `header:"Last-Event-ID" minimum:"0" doc:"Index of the last entry that was received, as browsers send it when they connect again. It goes before since."`
}

// from returns the ledger index to begin with.
func (in *eventsInput) from(size int64) (int64, error) {
	switch {
	case in.LastID.Set:
		return min(in.LastID.Value+1, size), nil
	case !in.Since.Set:
		return size, nil
	case in.Since.Value > size:
		return 0, fault.WithHint(fault.Errorf(fault.Invalid, "events since %d: the ledger has %d entries", in.Since.Value, size),
			"is this the server that they came from?")
	}
	return in.Since.Value, nil
}

func (h *Handler) registerEvents() {
	op := huma.Operation{
		OperationID: "get-events", Method: http.MethodGet, Path: api.PathEvents, Tags: []string{tagEvents},
		Summary: "Follow what happens",
		Description: `Server-sent events without end (HTML standard, section 9.2):
"entry": a ledger entry; its id is the entry's index, so that the stream can be taken up again after it.
"instance": an instance as it is observed now: all of them to begin with, then each that changes. Phase "gone" is the last of one.
"heartbeat": the size of the ledger, to begin with and at least every 15 seconds.`,
		Responses: h.eventResponses(),
	}
	register(h, op, func(ctx context.Context, in *eventsInput) (*huma.StreamResponse, error) {
		next, err := in.from(h.config.Control.State().Size())
		if err != nil {
			return nil, err
		}
		return stream(api.TypeEvents, func(w io.Writer) error {
			ctx, closed := h.untilClosed(ctx)
			defer closed()
			ctx, cancel := h.whileAllowed(ctx, "get-events", platform.None, "")
			defer cancel()
			f := &feed{handler: h, w: w, env: spec.EnvName(in.Env), next: next, sent: map[instance.ID]api.Instance{}}
			return f.run(ctx)
		}), nil
	})
}

// eventResponses describes the stream: OpenAPI 3.1 has no words for its parts but the types of their data.
func (h *Handler) eventResponses() map[string]*huma.Response {
	schemas := h.api.OpenAPI().Components.Schemas
	return map[string]*huma.Response{"200": {
		Description: "A stream of events; the data of each is one of these types",
		Content: map[string]*huma.MediaType{api.TypeEvents: {Schema: &huma.Schema{OneOf: []*huma.Schema{
			schemas.Schema(reflect.TypeFor[api.Entry](), true, ""),
			schemas.Schema(reflect.TypeFor[api.Instance](), true, ""),
			schemas.Schema(reflect.TypeFor[api.Heartbeat](), true, ""),
		}}}},
	}}
}

// feed is one client's stream of events. It is level-triggered: a wake-up carries nothing, each turn looks at what is
// there and sends what the client does not have.
type feed struct {
	handler *Handler
	w       io.Writer
	env     spec.EnvName // "": all
	next    int64        // ledger index of the next entry to look at
	sent    map[instance.ID]api.Instance
}

func (f *feed) run(ctx context.Context) error {
	heartbeat := time.NewTicker(heartbeatEvery)
	defer heartbeat.Stop()
	if err := f.heartbeat(); err != nil {
		return err
	}
	for {
		st := f.handler.config.Control.State()
		entries, instances := st.Changed(), f.handler.config.Host.Changed()
		if err := f.turn(ctx, st); err != nil {
			return err
		}
		if !pause(ctx, eventSpacing) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-entries:
		case <-instances:
		case <-heartbeat.C:
			if err := f.heartbeat(); err != nil {
				return err
			}
		}
	}
}

// pause waits, and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (f *feed) heartbeat() error {
	return writeEvent(f.w, api.EventHeartbeat, "", api.Heartbeat{Size: uint64(f.handler.config.Control.State().Size()), At: time.Now().UTC()})
}

// turn sends what is new: entries first, since an instance's entry comes before anything can be seen of it.
func (f *feed) turn(ctx context.Context, st state.State) error {
	if err := f.sendEntries(ctx, st.Size()); err != nil {
		return err
	}
	return f.sendInstances(ctx, st)
}

func (f *feed) sendEntries(ctx context.Context, size int64) error {
	for e, err := range f.handler.config.Control.Entries(ctx, f.next, size) {
		if err != nil {
			return err
		}
		f.next = e.Index + 1
		if f.env != "" && e.Entry.Env != f.env || !f.handler.sees(ctx, e.Entry.Env) {
			continue
		}
		if err := writeEvent(f.w, api.EventEntry, strconv.FormatInt(e.Index, 10), entryOf(e)); err != nil {
			return err
		}
	}
	return nil
}

func (f *feed) sendInstances(ctx context.Context, st state.State) error {
	list, err := f.handler.config.Host.List(ctx)
	if err != nil {
		return fmt.Errorf("observing instances: %w", err)
	}
	now, seen, gone := time.Now(), observe(list), f.sent
	f.sent = make(map[instance.ID]api.Instance, len(gone))
	for e := range st.Environments() {
		if f.env != "" && e.Name != f.env || !f.handler.sees(ctx, e.Name) {
			continue
		}
		for id, i := range e.Instances {
			is, was := instanceOf(e, i, seen[id], now), gone[id]
			delete(gone, id)
			f.sent[id] = is
			if same(is, was) {
				continue
			}
			if err := writeEvent(f.w, api.EventInstance, "", is); err != nil {
				return err
			}
		}
	}
	for _, was := range gone {
		was.Phase, was.State, was.PID = "gone", "absent", 0
		if err := writeEvent(f.w, api.EventInstance, "", was); err != nil {
			return err
		}
	}
	return nil
}

// same reports whether nothing but the age differs.
func same(a, b api.Instance) bool {
	a.AgeSeconds, b.AgeSeconds = 0, 0
	return reflect.DeepEqual(a, b)
}
