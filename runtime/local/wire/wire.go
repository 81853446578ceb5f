// Package wire is the protocol between a host (package local) and its launcher (cmd/invar-launcher).
//
// The launcher listens on a unix stream socket in a directory that only its user can enter, and serves only peers of its own user ID
// (SO_PEERCRED). A message is one JSON object on one line of at most MaxMessage bytes; unknown fields are errors, so that a newer
// peer is noticed and not half understood. A client sends a Request and reads one Response, then may send the next;
// several connections work in parallel. After OpWatch the launcher sends Responses for ever: first one with every
// instance, then one with each instance that changed.
//
// Every operation can be repeated: to start what runs or to remove what is absent succeeds.
//
//	→ {"v":1,"op":"start","id":"web-abcdefghij"}
//	← {"v":1,"instances":[{"id":"web-abcdefghij","state":"running","pid":4711,…}]}
package wire

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/invarhq/invar/fault"
)

// Version is the protocol's. A launcher refuses requests of another version, so the host replaces it (instances run on).
const Version = 1

// MaxMessage is the longest message in bytes, its newline included.
const MaxMessage = 8 << 20

// Op is what a request asks for.
type Op string

// The operations, with the fields of Request that they read.
const (
	OpHello   Op = "hello"   // who answers: Response.Hello
	OpCreate  Op = "create"  // ID, Create: a process that waits. Conflict when the ID exists
	OpStart   Op = "start"   // ID: the process becomes the component's
	OpSignal  Op = "signal"  // ID, Signal: to the first process; SIGKILL to all
	OpRemove  Op = "remove"  // ID: kill, and forget
	OpList    Op = "list"    // Response.Instances: all
	OpExec    Op = "exec"    // ID, Exec: run a command in the instance and wait for it
	OpWatch   Op = "watch"   // see the package comment
	OpSession Op = "session" // ID, Session: run a command with its input and output on this connection; see FrameKind
	OpQuit    Op = "quit"    // the launcher ends; instances run on
)

// Request asks the launcher for one thing.
type Request struct {
	Version int      `json:"v"`
	Op      Op       `json:"op"`
	ID      string   `json:"id,omitempty"`
	Create  *Create  `json:"create,omitempty"`
	Signal  int      `json:"signal,omitempty"`
	Exec    *Exec    `json:"exec,omitempty"`
	Session *Session `json:"session,omitempty"`
}

// Create says what to make. The instance's directory (with its FIFOs "stdout" and "stderr") exists already.
type Create struct {
	Attempt string          `json:"attempt"`           // told in each Status: a creation that is repeated after a crash is not taken for the first one
	Runtime string          `json:"runtime,omitempty"` // path of an OCI runtime's command; "": libcontainer
	OCI     json.RawMessage `json:"oci"`               // the OCI runtime configuration
	Log     Log             `json:"log"`
}

// Log says where the output goes: Dir/current.log and, older, Dir/1.log to Dir/<Files-1>.log, in the format of Line.
type Log struct {
	Dir      string `json:"dir"`
	MaxBytes int64  `json:"max_bytes"` // of one file
	Files    int    `json:"files"`     // at most, the current one included
}

// Exec is a command to run in an instance, as the instance's user.
type Exec struct {
	Args    []string      `json:"args"`
	Timeout time.Duration `json:"timeout"`
}

// Session is a command that somebody talks to, run in an instance as the instance's user. It ends with the connection.
type Session struct {
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"` // beside the instance's
	TTY  bool     `json:"tty,omitempty"` // on a terminal of its own
	Rows uint16   `json:"rows,omitempty"`
	Cols uint16   `json:"cols,omitempty"`
}

// Response answers one request.
type Response struct {
	Version   int         `json:"v"`
	Error     *Error      `json:"error,omitempty"`
	Hello     *Hello      `json:"hello,omitempty"`
	Instances []Status    `json:"instances,omitempty"`
	Exec      *ExecResult `json:"exec,omitempty"`
}

// Error is a failure with its kind, which crosses the socket.
type Error struct {
	Kind    fault.Kind `json:"kind,omitempty"`
	Message string     `json:"message"`
}

// Hello says which launcher answers.
type Hello struct {
	PID   int    `json:"pid"`
	Build string `json:"build"` // what the host passed with -build: the digest of the launcher's file
}

// State is where an instance's process stands.
type State string

// The states. Gone is only ever sent to watchers.
const (
	Created State = "created"
	Running State = "running"
	Exited  State = "exited"
	Gone    State = "gone"
)

// Status is what the launcher knows of an instance.
type Status struct {
	ID        string    `json:"id"`
	Attempt   string    `json:"attempt"`
	Told      string    `json:"told,omitempty"` // Told of the OCI configuration that its creator sent
	State     State     `json:"state"`
	PID       int       `json:"pid,omitempty"` // while created or running
	StartedAt time.Time `json:"started_at,omitzero"`
	ExitedAt  time.Time `json:"exited_at,omitzero"`
	ExitCode  int       `json:"exit_code,omitempty"` // -1: not known; 128+n: by signal n
	OOM       bool      `json:"oom,omitempty"`

	Strangers []Stranger `json:"strangers,omitempty"` // at most MaxStrangers
}

// MaxStrangers is how many are remembered of one instance: what they did is done after the first.
const MaxStrangers = 8

// Stranger is a process that had the launcher run a command in an instance (OpExec, OpSession), and did not watch the launcher, as its host does.
type Stranger struct {
	PID     int       `json:"pid"`
	Command string    `json:"command"` // its own, cut
	Asked   string    `json:"asked"`   // the command that it had run, cut
	At      time.Time `json:"at"`
}

// Told names an OCI configuration as it was sent: its SHA-256, in hexadecimal.
func Told(oci []byte) string {
	sum := sha256.Sum256(oci)
	return hex.EncodeToString(sum[:])
}

// ExecResult is how a command ended.
type ExecResult struct {
	ExitCode int    `json:"exit_code"`
	TimedOut bool   `json:"timed_out,omitempty"`
	Output   string `json:"output,omitempty"` // the first bytes of both streams
}

// ErrorOf returns err as it crosses the socket; nil for nil.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	return &Error{Kind: fault.KindOf(err), Message: err.Error()}
}

// Err returns the failure that r tells, with its kind, or nil.
func (r Response) Err() error {
	if r.Error == nil {
		return nil
	}
	err := errors.New(r.Error.Message)
	if r.Error.Kind == "" {
		return err
	}
	return fault.As(r.Error.Kind, err)
}

// Write writes one message.
func Write[M Request | Response](w io.Writer, m M) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	if len(b) >= MaxMessage {
		return fault.Errorf(fault.Invalid, "a message of %d bytes is too long: at most %d", len(b), MaxMessage)
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// NewReader returns a reader for Read.
func NewReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, 64<<10) }

// Read reads one message. Its errors are io.EOF before the first byte, else of kind fault.Invalid or the reader's.
func Read[M Request | Response](r *bufio.Reader) (M, error) {
	var m M
	line, err := readLine(r)
	if err != nil {
		return m, err
	}
	return Decode[M](line)
}

func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > MaxMessage:
			return nil, fault.Errorf(fault.Invalid, "a message is longer than %d bytes", MaxMessage)
		case err == nil:
			return line, nil
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// Decode decodes one message strictly: unknown fields, another version and trailing data are errors.
func Decode[M Request | Response](line []byte) (M, error) {
	var m, zero M
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return zero, fault.As(fault.Invalid, fmt.Errorf("decoding a message: %w", err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return zero, fault.Errorf(fault.Invalid, "decoding a message: data after its end")
	}
	version := 0
	switch m := any(m).(type) {
	case Request:
		version = m.Version
	case Response:
		version = m.Version
	}
	if version != Version {
		return zero, fault.Errorf(fault.Invalid, "a message of protocol version %d: want %d", version, Version)
	}
	return m, nil
}
