package state

import (
	"errors"

	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

// The kinds of entries about sessions.
const (
	KindSessionStart Kind = "session.start"
	KindSessionEnd   Kind = "session.end"
)

// SessionID names a session: random characters of a-z2-7.
type SessionID string

// SessionStart says that somebody is about to run a command in an instance. The taint follows in the same write.
type SessionStart struct {
	Session   SessionID          `json:"session"`
	Instance  instance.ID        `json:"instance"`
	Component spec.ComponentName `json:"component"`
	Command   []string           `json:"command"`
	TTY       bool               `json:"tty,omitempty"`
	Deadline  int64              `json:"deadline_ms"` // it ends then at the latest
}

// SessionEnd says that a session is over. The entry's body is the recording, unless that was lost.
type SessionEnd struct {
	Session   SessionID   `json:"session"`
	Instance  instance.ID `json:"instance"`
	How       string      `json:"how"`                 // SessionExited …
	ExitCode  int         `json:"exit_code,omitempty"` // 128+n: killed by signal n; -1: not known
	Encrypted bool        `json:"encrypted,omitempty"` // the recording, to the auditors
	Detail    string      `json:"detail,omitempty"`
}

// How sessions end.
const (
	SessionExited   = "exited"   // the command ended
	SessionRefused  = "refused"  // the command could not be started
	SessionClosed   = "closed"   // whoever opened it went away
	SessionDeadline = "deadline" // its time was over
	SessionFull     = "full"     // its recording could not go on
	SessionStopped  = "stopped"  // the server stopped
	SessionLost     = "lost"     // the server went away over it: what was recorded is not kept
)

func (SessionStart) EntryKind() Kind { return KindSessionStart }
func (SessionEnd) EntryKind() Kind   { return KindSessionEnd }

func (s SessionStart) check(e Entry) error {
	if e.Reason == "" || s.Session == "" || s.Instance == "" || len(s.Command) == 0 || s.Deadline <= 0 {
		return errors.New("want a reason, a session, an instance, a command and a deadline")
	}
	return errors.Join(somewhere(e), spec.CheckName(string(s.Component)))
}

func (s SessionEnd) check(e Entry) error {
	if s.Session == "" || s.Instance == "" || s.How == "" {
		return errors.New("want a session, an instance, and how it ended")
	}
	return somewhere(e)
}
