package control_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/recording"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/state"
)

// tapes are recordings in memory.
type tapes struct{ bytes.Buffer }

func (t *tapes) New(state.SessionID, []string) (control.Recording, error) { return t, nil }
func (t *tapes) Discard() error                                           { return nil }
func (t *tapes) Done() (digest.Digest, int64, string, error) {
	return digest.Of(t.Bytes()), int64(t.Len()), recording.Type, nil
}

// manned is a desk with one instance of web in prod, whose sessions are recorded.
func manned(t *testing.T) (*desk, *tapes) {
	d, kept := newDesk(t), &tapes{}
	d.config.Recordings = kept
	d.crash()
	d.apply("prod", shop("1"))
	if err := d.record("prod", d.create("prod", "web-aaaaaaaaaa")); err != nil {
		t.Fatal(err)
	}
	return d, kept
}

func (d *desk) visit(run func(ctx context.Context, id instance.ID, s runtime.Session) (int, error)) control.Execution {
	return control.Execution{
		Env: "prod", Component: "web", Reason: "look at the cache", Run: run, Opened: func(control.Opened) error { return nil },
		Session: runtime.Session{Args: []string{"sh"}, Stdin: strings.NewReader("typed\r"), Stdout: io.Discard, Stderr: io.Discard},
	}
}

func TestSessionIsRecordedAndTaintsBeforeItStarts(t *testing.T) {
	d, kept := manned(t)
	size := d.State().Size()
	x := d.visit(func(_ context.Context, id instance.ID, s runtime.Session) (int, error) {
		if got := d.kinds(size); len(got) != 2 || got[0] != state.KindSessionStart || got[1] != state.Kind(deploy.Tainted) {
			t.Errorf("before it starts the ledger has %v", got)
		}
		io.ReadAll(s.Stdin)
		io.WriteString(s.Stdout, "shown")
		return 3, nil
	})
	ended, err := d.Exec(t.Context(), alice, x)
	if err != nil || ended.How != state.SessionExited || ended.ExitCode != 3 {
		t.Fatalf("%+v, %v", ended, err)
	}
	if text := kept.String(); !strings.Contains(text, `"i","typed`) || !strings.Contains(text, `"o","shown"`) {
		t.Errorf("recorded %s", text)
	}
	taint := d.env("prod").Instances["web-aaaaaaaaaa"].Taints[0]
	if !taint.Over || taint.Until.After(time.Now().Add(time.Minute)) || !strings.Contains(taint.Cause, "look at the cache") {
		t.Errorf("taint %+v", taint)
	}
	d.audit()
}

func TestSessionWithoutReasonIsRefused(t *testing.T) {
	d, _ := manned(t)
	size := d.State().Size()
	x := d.visit(nil)
	x.Reason = " "
	if _, err := d.Exec(t.Context(), alice, x); !errors.Is(err, fault.Invalid) || d.State().Size() != size {
		t.Errorf("%v, and %d new entries", err, d.State().Size()-size)
	}
}

func TestSessionThatTheServerDiedOverIsLostAndItsInstanceReplaced(t *testing.T) {
	d, _ := manned(t)
	x := d.visit(func(ctx context.Context, _ instance.ID, _ runtime.Session) (int, error) {
		d.disk.Crash()
		return 0, nil
	})
	if _, err := d.Exec(t.Context(), alice, x); err == nil {
		t.Fatal("the end was recorded by a dead server")
	}
	size := d.State().Size()
	d.crash()
	taint := d.env("prod").Instances["web-aaaaaaaaaa"].Taints[0]
	if !taint.Over || taint.Until.After(time.Now().Add(time.Minute)) {
		t.Errorf("taint %+v", taint)
	}
	ends := 0
	for _, k := range d.kinds(size) {
		if k == state.KindSessionEnd {
			ends++
		}
	}
	if ends != 1 {
		t.Errorf("entries %v", d.kinds(size))
	}
	d.crash()
	if got := d.env("prod").Instances["web-aaaaaaaaaa"].Taints; len(got) != 1 {
		t.Errorf("ended twice: %+v", got)
	}
}
