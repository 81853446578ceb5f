// Package state gives the ledger's entries their meaning: what an entry is, and what all of them
// together say.
//
// # Entries
//
// A leaf of the ledger is the canonical JSON (RFC 8785) of an Entry, at most 65,535 bytes. It has exactly
// one spelling: Decode re-encodes what it read and refuses anything that differs, unknown fields included. A
// field's name and meaning never change; an unset field adds no bytes; times are UTC with at most milliseconds;
// there are no floats. V says which rules an entry follows. docs/ledger.md lists every kind and its fields:
//
//	{"actor":{"kind":"local","name":"alice"},"data":{"generation":3,"release":"sha256:…",…},"env":"prod",
//	 "id":"01936f2e-…","kind":"change.apply","reason":"less logging","time":"2026-11-22T23:05:00.125Z","v":1}
//
// Content that is large, or that a law may have erased, is a blob that Body names by digest.
//
// # State
//
// State is the fold of the entries: State.Apply is the only way that it changes. It is a value: Apply returns a
// new one and leaves the old as it was. An entry that does not follow from the state is refused and changes
// nothing. Live holds the newest one and tells watchers of changes.
package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
)

// Limits of an entry.
const (
	MaxEntryBytes  = 65535 // what an entry bundle of C2SP tlog-tiles can carry
	MaxReasonBytes = 4096
)

// EntryID names an entry: a UUID of version 7 in lower case. The ledger's index says where it is.
type EntryID string

// Entry is a record in the ledger.
type Entry struct {
	ID      EntryID
	Time    time.Time // by the server's clock, UTC, whole milliseconds
	Actor   Actor
	Env     spec.EnvName // "" for what belongs to no environment
	Subject []Subject    // what it is about
	Reason  string       // why, in the actor's words
	Outcome string       // how it ended, where that is known when it is written
	Body    *Body        // content that it refers to
	Data    Data         // what is particular to its kind
	Sigs    []Signature  // over statements about it; none of the kinds so far has any
}

// Kind is the entry's kind: that of its data.
func (e Entry) Kind() Kind { return e.Data.EntryKind() }

// Actor is who did it.
type Actor struct {
	Kind ActorKind `json:"kind"`
	Name string    `json:"name"`

	// Principal is who that is in the platform's definition; unset for invar itself, and for whoever is nobody there.
	Principal platform.PrincipalName `json:"principal,omitempty"`
	Auth      string                 `json:"auth,omitempty"` // facts of the authentication, one line: issuer, key, token
}

// ActorKind says how the server knew the actor.
type ActorKind string

// The kinds of actors.
const (
	ActorLocal   ActorKind = "local"   // a user of the machine, by the peer credentials of the unix socket
	ActorToken   ActorKind = "token"   // the holder of a token
	ActorSSH     ActorKind = "ssh"     // the holder of an SSH key
	ActorOIDC    ActorKind = "oidc"    // somebody whom an OpenID provider vouches for
	ActorUnknown ActorKind = "unknown" // nobody that was let in; the name is where the request came from
	ActorSystem  ActorKind = "system"  // invar itself, carrying out what a head asks for
)

// String returns the actor as people see it: "local:alice".
func (a Actor) String() string { return string(a.Kind) + ":" + a.Name }

// Who is the actor for people: the principal where there is one.
func (a Actor) Who() string {
	if a.Principal != "" {
		return string(a.Principal)
	}
	return a.String()
}

// Subject is a thing that an entry is about.
type Subject struct {
	Name   string        `json:"name"`
	Digest digest.Digest `json:"digest,omitempty"`
}

// Body is content that an entry refers to.
type Body struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"` // bytes
	Type   string        `json:"type"` // media type
}

// Signature is a signature over a statement about the entry.
type Signature struct {
	Format    string `json:"format"`    // "sshsig"
	Namespace string `json:"namespace"` // says what signing it means: "invar-approval@v1"
	KeyID     string `json:"key_id"`
	Sig       []byte `json:"sig"`
}

// Data is what is particular to a kind of entries. Only this package has implementations.
type Data interface {
	EntryKind() Kind
	check(e Entry) error // what must hold of the entry by itself
}

// wire is an entry as it is spelled.
type wire struct {
	V       int             `json:"v"`
	Kind    Kind            `json:"kind"`
	ID      EntryID         `json:"id"`
	Time    time.Time       `json:"time"`
	Actor   Actor           `json:"actor"`
	Env     spec.EnvName    `json:"env,omitempty"`
	Subject []Subject       `json:"subject,omitempty"`
	Reason  string          `json:"reason,omitempty"`
	Outcome string          `json:"outcome,omitempty"`
	Body    *Body           `json:"body,omitempty"`
	Data    json.RawMessage `json:"data,omitempty"`
	Sigs    []Signature     `json:"sigs,omitempty"`
}

// Encode returns the one spelling of the entry. Its errors are of kind fault.Invalid.
func Encode(e Entry) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, fault.As(fault.Invalid, fmt.Errorf("encoding an entry: %w", err))
	}
	b, err := e.spell()
	if err != nil {
		return nil, fmt.Errorf("encoding entry %s: %w", e.ID, err)
	}
	if len(b) > MaxEntryBytes {
		return nil, fault.Errorf(fault.Invalid, "encoding entry %s: %d bytes, %d are allowed", e.ID, len(b), MaxEntryBytes)
	}
	return b, nil
}

func (e Entry) spell() ([]byte, error) {
	data, err := json.Marshal(e.Data)
	if err != nil {
		return nil, err
	}
	if string(data) == "{}" {
		data = nil
	}
	return digest.Canonical(wire{1, e.Kind(), e.ID, e.Time, e.Actor, e.Env, e.Subject, e.Reason, e.Outcome, e.Body, data, e.Sigs})
}

// Decode reads what Encode wrote, and nothing else. Its errors are of kind fault.Corrupt.
func Decode(b []byte) (Entry, error) {
	e, err := decode(b)
	if err != nil {
		return Entry{}, fault.As(fault.Corrupt, fmt.Errorf("decoding an entry: %w", err))
	}
	return e, nil
}

func decode(b []byte) (Entry, error) {
	if len(b) > MaxEntryBytes {
		return Entry{}, fmt.Errorf("%d bytes, %d are allowed", len(b), MaxEntryBytes)
	}
	var w wire
	if err := strict(b, &w); err != nil {
		return Entry{}, err
	}
	if w.V != 1 {
		return Entry{}, fault.WithHint(fmt.Errorf("version %d is not known", w.V), "a newer invar wrote it: use that one")
	}
	data, err := decodeData(w.Kind, w.Data)
	if err != nil {
		return Entry{}, fmt.Errorf("data of %s: %w", w.Kind, err)
	}
	e := Entry{w.ID, w.Time, w.Actor, w.Env, w.Subject, w.Reason, w.Outcome, w.Body, data, w.Sigs}
	if err := e.check(); err != nil {
		return Entry{}, err
	}
	again, err := e.spell()
	if err != nil {
		return Entry{}, err
	}
	if !bytes.Equal(b, again) {
		return Entry{}, errors.New("not in canonical form")
	}
	return e, nil
}

// strict decodes one JSON value and refuses unknown fields and what follows.
func strict(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("more than one JSON value")
	}
	return nil
}

// check says whether the entry is sound by itself. What it needs of the state is for Apply to say.
func (e Entry) check() error {
	if e.Data == nil {
		return errors.New("no data")
	}
	if err := e.checkHeader(); err != nil {
		return err
	}
	if e.Body != nil {
		if err := e.Body.check(); err != nil {
			return fmt.Errorf("body: %w", err)
		}
	}
	for _, s := range e.Subject {
		if err := optional(s.Digest); err != nil || s.Name == "" {
			return fmt.Errorf("subject %q: %w", s.Name, errors.Join(err, errors.New("want a name, and a digest or none")))
		}
	}
	if err := e.Data.check(e); err != nil {
		return fmt.Errorf("%s: %w", e.Kind(), err)
	}
	return nil
}

func (e Entry) checkHeader() error {
	id, err := uuid.Parse(string(e.ID))
	if err != nil || id.Version() != 7 || id.String() != string(e.ID) {
		return fmt.Errorf("id %q: want a UUID of version 7 in lower case", e.ID)
	}
	if e.Time.Location() != time.UTC || !e.Time.Equal(e.Time.Truncate(time.Millisecond)) || e.Time.Year() < 1970 || e.Time.Year() > 9999 {
		return fmt.Errorf("time %s: want UTC and whole milliseconds", e.Time)
	}
	switch e.Actor.Kind {
	case ActorLocal, ActorToken, ActorSSH, ActorOIDC, ActorUnknown, ActorSystem:
	default:
		return fmt.Errorf("actor kind %q is not known", e.Actor.Kind)
	}
	if e.Actor.Name == "" || !utf8.ValidString(e.Actor.Name) {
		return fmt.Errorf("actor %q: want a name in UTF-8", e.Actor.Name)
	}
	if e.Actor.Principal != "" {
		if err := spec.CheckName(string(e.Actor.Principal)); err != nil {
			return err
		}
	}
	if !utf8.ValidString(e.Actor.Auth) || len(e.Actor.Auth) > MaxReasonBytes {
		return fmt.Errorf("authentication of actor %q: want UTF-8 of at most %d bytes", e.Actor.Name, MaxReasonBytes)
	}
	if len(e.Reason) > MaxReasonBytes || !utf8.ValidString(e.Reason) || !utf8.ValidString(e.Outcome) {
		return fmt.Errorf("reason or outcome: want UTF-8 and a reason of at most %d bytes", MaxReasonBytes)
	}
	return nil
}

func (b Body) check() error {
	if b.Size < 0 || b.Type == "" {
		return errors.New("want a size and a media type")
	}
	return required(b.Digest)
}

func required(ds ...digest.Digest) error {
	for _, d := range ds {
		if _, err := digest.Parse(string(d)); err != nil {
			return err
		}
	}
	return nil
}

func optional(d digest.Digest) error {
	if d == "" {
		return nil
	}
	return required(d)
}
