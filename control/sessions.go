package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/recording"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// Recordings keeps what is typed and shown in sessions, apart from all that the registry serves.
type Recordings interface {
	// New begins a recording. With recipients it is encrypted to them before it reaches the disk.
	New(id state.SessionID, recipients []string) (Recording, error)
}

// Recording is one that is being written.
type Recording interface {
	io.Writer
	// Done completes it, durably, and returns its name, its size and its media type.
	Done() (digest.Digest, int64, string, error)
	// Discard deletes it.
	Discard() error
}

// Limits of sessions.
const (
	maxRecording  = 64 << 20
	sessionNotice = time.Minute // how long before a deadline it is announced
	maxReason     = 1000
	maxCommand    = 100 // arguments; they are in the entry
)

// Execution asks to run a command in an instance.
type Execution struct {
	Env       spec.EnvName
	Component spec.ComponentName
	Instance  instance.ID // "": one of the component's, which serves if one does
	Reason    string
	Session   runtime.Session
	Run       func(ctx context.Context, id instance.ID, s runtime.Session) (int, error) // runtime.Host's Exec
	Opened    func(Opened) error                                                        // called when the taint is recorded, before the command starts
	Stopped   <-chan struct{}                                                           // closed when the server stops; may be nil
}

// Opened tells of a session that is about to begin.
type Opened struct {
	Session   state.SessionID
	Instance  instance.ID
	Deadline  time.Time
	Encrypted bool
}

// Ended tells how a session ended.
type Ended struct {
	How      string // state.SessionExited …
	ExitCode int
}

// Exec opens a session: it records who, why and what, taints the instance, runs the command, and records the end with what was typed
// and shown. The instance is replaced afterwards. The error is of what kept the command from running.
func (s *Service) Exec(ctx context.Context, by Actor, x Execution) (Ended, error) {
	if err := x.Check(); err != nil {
		return Ended{}, err
	}
	if s.config.Recordings == nil {
		return Ended{}, fault.Errorf(fault.Unavailable, "this server keeps no recordings, so it opens no sessions")
	}
	s.sessions.Add(1)
	defer s.sessions.Done()
	id, err := s.random(8)
	if err != nil {
		return Ended{}, fmt.Errorf("opening a session: %w", err)
	}
	rules, _ := definition(s.State())
	kept, err := s.config.Recordings.New(state.SessionID(id), rules.Auditors)
	if err != nil {
		return Ended{}, fmt.Errorf("opening a session: beginning its recording: %w", err)
	}
	opened := Opened{Session: state.SessionID(id), Deadline: state.Millis(s.config.Now().Add(rules.Session(x.Env))), Encrypted: len(rules.Auditors) > 0}
	if opened.Instance, err = s.openSession(ctx, by, x, opened); err != nil {
		return Ended{}, errors.Join(fmt.Errorf("opening a session in %s/%s: %w", x.Env, x.Component, err), kept.Discard())
	}
	ended, failure := s.talk(ctx, x, opened, kept)
	return ended, errors.Join(failure, s.closeSession(context.WithoutCancel(ctx), by, x.Env, opened, ended, failure, kept))
}

// Check says what is wrong with what is asked, whoever asks.
func (x Execution) Check() error {
	switch {
	case strings.TrimSpace(x.Reason) == "":
		return fault.WithHint(fault.Errorf(fault.Invalid, "a session needs a reason"), "say why with --reason: the ledger keeps it")
	case len(x.Reason) > maxReason:
		return fault.Errorf(fault.Invalid, "a reason of %d bytes: at most %d", len(x.Reason), maxReason)
	case len(x.Session.Args) == 0 || len(x.Session.Args) > maxCommand || len(strings.Join(x.Session.Args, " ")) > 16<<10:
		return fault.Errorf(fault.Invalid, "want a command of 1 to %d arguments and at most 16 KiB", maxCommand)
	}
	return nil
}

// openSession records that a session begins and that it taints, in one write.
func (s *Service) openSession(ctx context.Context, by Actor, x Execution, o Opened) (instance.ID, error) {
	var id instance.ID
	_, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		env, err := now.Environment(x.Env)
		if err != nil {
			return nil, err
		}
		i, err := chooseInstance(env, x)
		if err != nil {
			return nil, err
		}
		id = i.ID
		start := s.entry(by, x.Env, state.SessionStart{
			Session: o.Session, Instance: i.ID, Component: i.Component, Command: x.Session.Args, TTY: x.Session.TTY, Deadline: o.Deadline.UnixMilli(),
		})
		start.Subject, start.Reason = []state.Subject{{Name: string(i.ID), Digest: i.Digest}}, x.Reason
		taint := s.sessionTaint(by, env, o, i.ID, o.Deadline, fmt.Sprintf("a session of %s: %s", by.Who(), x.Reason))
		taint.Time = start.Time
		return []state.Entry{start, taint}, nil
	})
	return id, err
}

// sessionTaint is the entry that taints an instance until a time.
func (s *Service) sessionTaint(by Actor, env state.Environment, o Opened, id instance.ID, until time.Time, cause string) state.Entry {
	step := deploy.Step{Kind: deploy.Tainted, ID: id, By: deploy.BySession(string(o.Session)), Cause: cause, Until: until.UnixMilli()}
	e := s.entry(by, env.Name, state.Step{Step: step})
	e.Subject = subjects(env, step)
	return e
}

// chooseInstance returns the instance that was named, or one of the component's: one that serves before others, the youngest.
func chooseInstance(env state.Environment, x Execution) (deploy.Instance, error) {
	var all []deploy.Instance
	for _, i := range env.Instances {
		if i.Component == x.Component && i.Live() && (x.Instance == "" || x.Instance == i.ID) {
			all = append(all, i)
		}
	}
	if len(all) == 0 {
		what := cmp.Or(string(x.Instance), "instance")
		return deploy.Instance{}, fault.WithHint(fault.Errorf(fault.NotFound, "component %q of environment %s has no live %s", x.Component, x.Env, what),
			"invar status %s lists them", x.Env)
	}
	rank := func(i deploy.Instance) int {
		if env.Serving(i) {
			return 0
		}
		return 1
	}
	slices.SortFunc(all, func(a, b deploy.Instance) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return all[0], nil
}

// talk runs the command, and records what goes in and out, until it ends or must.
func (s *Service) talk(ctx context.Context, x Execution, o Opened, kept Recording) (Ended, error) {
	ctx, cancel := context.WithDeadline(ctx, o.Deadline)
	defer cancel()
	size := x.Session.Size
	tape, err := recording.New(kept, int(cmp.Or(size.Cols, 80)), int(cmp.Or(size.Rows, 24)), s.config.Now(), maxRecording)
	if err == nil {
		err = x.Opened(o)
	}
	if err != nil {
		return Ended{How: state.SessionClosed, ExitCode: -1}, err
	}
	t := &taped{Recorder: tape, now: s.config.Now, stop: cancel}
	session, said := t.wrap(x.Session)
	defer said()
	notice := time.AfterFunc(time.Until(o.Deadline)-sessionNotice, func() {
		fmt.Fprintf(session.Stderr, "\r\ninvar: this session ends in %v at the latest\r\n", time.Until(o.Deadline).Round(time.Second))
	})
	defer notice.Stop()
	stopped := false
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-x.Stopped:
			stopped = true
			cancel()
		case <-ctx.Done():
		}
	}()
	code, err := x.Run(ctx, o.Instance, session)
	deadline := errors.Is(ctx.Err(), context.DeadlineExceeded)
	gone := ctx.Err() != nil
	cancel()
	<-watched
	full := tape.End(s.config.Now())
	switch {
	case full != nil:
		return Ended{state.SessionFull, -1}, fmt.Errorf("the session was ended: %w", full)
	case deadline:
		return Ended{state.SessionDeadline, -1}, nil
	case stopped:
		return Ended{state.SessionStopped, -1}, nil
	case gone:
		return Ended{state.SessionClosed, -1}, nil
	case err != nil:
		return Ended{state.SessionRefused, -1}, err
	}
	return Ended{state.SessionExited, code}, nil
}

// closeSession records the end, with the recording, and lets the instance be replaced.
func (s *Service) closeSession(ctx context.Context, by Actor, name spec.EnvName, o Opened, ended Ended, failure error, kept Recording) error {
	end := state.SessionEnd{Session: o.Session, Instance: o.Instance, How: ended.How, ExitCode: ended.ExitCode, Encrypted: o.Encrypted}
	if failure != nil {
		end.Detail = failure.Error()[:min(len(failure.Error()), 500)]
	}
	var body *state.Body
	d, size, kind, err := kept.Done()
	if err == nil {
		body = &state.Body{Digest: d, Size: size, Type: kind}
	} else {
		end.Detail = strings.TrimPrefix(end.Detail+"; keeping the recording: "+err.Error(), "; ")
	}
	_, failed := s.append(ctx, func(now state.State) ([]state.Entry, error) { return s.sessionEnd(now, by, name, o, end, body) })
	return errors.Join(err, failed)
}

// sessionEnd returns the entries of an end. The instance may be gone already.
func (s *Service) sessionEnd(now state.State, by Actor, name spec.EnvName, o Opened, end state.SessionEnd, body *state.Body) ([]state.Entry, error) {
	env, err := now.Environment(name)
	if err != nil {
		return nil, err
	}
	e := s.entry(by, name, end)
	e.Body, e.Outcome, e.Subject = body, end.How, []state.Subject{{Name: string(o.Instance)}}
	if _, ok := env.Instances[o.Instance]; !ok {
		return []state.Entry{e}, nil
	}
	taint := s.sessionTaint(by, env, o, o.Instance, e.Time, "its session is over: "+end.How)
	taint.Time = e.Time
	return []state.Entry{e, taint}, nil
}

// endLost records the end of sessions that were open when an earlier server went away. Their commands ended with it.
func (s *Service) endLost(ctx context.Context) error {
	_, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		var out []state.Entry
		for env := range now.Environments() {
			for _, i := range env.Instances {
				for _, t := range i.Taints {
					id, ok := strings.CutPrefix(t.By, deploy.BySession(""))
					if !ok || t.Over {
						continue
					}
					o := Opened{Session: state.SessionID(id), Instance: i.ID}
					entries, err := s.sessionEnd(now, operator, env.Name, o, state.SessionEnd{Session: o.Session, Instance: i.ID, How: state.SessionLost, ExitCode: -1}, nil)
					if err != nil {
						return nil, err
					}
					out = append(out, entries...)
				}
			}
		}
		return out, nil
	})
	if err != nil {
		return fmt.Errorf("ending lost sessions: %w", err)
	}
	return nil
}

// taped records a session. When that fails, the session ends: nothing happens in one that is not recorded.
type taped struct {
	*recording.Recorder
	now  func() time.Time
	stop context.CancelFunc
}

// wrap returns the session with its streams recorded, and what ends the passing on of sizes.
func (t *taped) wrap(s runtime.Session) (runtime.Session, func()) {
	s.Stdout, s.Stderr = tapedWriter{t, s.Stdout, &sync.Mutex{}}, tapedWriter{t, s.Stderr, &sync.Mutex{}}
	if s.Stdin != nil {
		s.Stdin = tapedReader{t, s.Stdin}
	}
	sizes, done := make(chan runtime.Size), make(chan struct{})
	if from := s.Resize; from != nil {
		go func() {
			for {
				select {
				case size, ok := <-from:
					if !ok {
						return
					}
					t.note(t.Resize(t.now(), int(size.Cols), int(size.Rows)))
					select {
					case sizes <- size:
					case <-done:
						return
					}
				case <-done:
					return
				}
			}
		}()
	}
	s.Resize = sizes
	return s, func() { close(done) }
}

func (t *taped) note(err error) error {
	if err != nil {
		t.stop()
	}
	return err
}

type tapedWriter struct {
	*taped
	to io.Writer
	mu *sync.Mutex
}

func (w tapedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.note(w.Output(w.now(), b)); err != nil {
		return 0, err
	}
	if w.to == nil {
		return len(b), nil
	}
	return w.to.Write(b)
}

type tapedReader struct {
	*taped
	from io.Reader
}

func (r tapedReader) Read(b []byte) (int, error) {
	n, err := r.from.Read(b)
	if n > 0 {
		if failed := r.note(r.Input(r.now(), b[:n])); failed != nil {
			return 0, failed
		}
	}
	return n, err
}
