package change

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity/sshkey"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
)

// Meaning is what a signature says. Each is signed in a namespace of its own, so that a signature over one can't be
// taken for another, and a key can be limited to some (allowed_signers, ssh-keygen(1)).
type Meaning string

// The meanings.
const (
	Approval  Meaning = "approval"  // the signer has seen the plan, and agrees that it is carried out
	Rejection Meaning = "rejection" // the signer has seen the plan, and does not agree
	Review    Meaning = "review"    // the signer has looked at what was done in an emergency
	Erasure   Meaning = "erasure"   // the signer agrees that the content is erased for good
)

// Namespace is the one that the meaning is signed in (PROTOCOL.sshsig).
func (m Meaning) Namespace() string { return "invar-" + string(m) + "@v1" }

// Statement is what a person signs: all that the decision is about, so that the signature can't be moved to another
// change, log or time. It is signed as canonical JSON (RFC 8785) without a line feed; there is one spelling.
//
// "ssh-keygen -Y verify -n invar-approval@v1" checks such a signature without invar.
type Statement struct {
	V          int                    `json:"v"`   // 1
	Log        string                 `json:"log"` // the ledger's origin
	Meaning    Meaning                `json:"meaning"`
	Env        spec.EnvName           `json:"env,omitempty"`
	Change     int                    `json:"change,omitempty"`     // its number
	Request    string                 `json:"request,omitempty"`    // ID of the entry that proposed it
	Generation int                    `json:"generation,omitempty"` // of a review
	Plan       digest.Digest          `json:"plan,omitempty"`
	Release    digest.Digest          `json:"release,omitempty"` // unset: of a destroy
	Subject    digest.Digest          `json:"subject,omitempty"` // of an erasure: the content
	Verdict    string                 `json:"verdict,omitempty"` // of a review
	Reason     string                 `json:"reason,omitempty"`
	Signer     platform.PrincipalName `json:"signer"`
	SignedAt   time.Time              `json:"signed_at"` // by the signer's clock, UTC, whole milliseconds
}

// MaxStatementBytes is the longest statement.
const MaxStatementBytes = 16 << 10

// Encode returns what is signed.
func (s Statement) Encode() ([]byte, error) {
	b, err := digest.Canonical(s)
	if err == nil && len(b) > MaxStatementBytes {
		err = fault.Errorf(fault.Invalid, "%d bytes, %d are allowed", len(b), MaxStatementBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("encoding a statement: %w", err)
	}
	return b, nil
}

// DecodeStatement reads what Encode wrote, and nothing else. Its errors are of kind fault.Invalid.
func DecodeStatement(b []byte) (Statement, error) {
	var s Statement
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	err := dec.Decode(&s)
	if err == nil && dec.More() {
		err = io.ErrUnexpectedEOF
	}
	if err != nil || s.V != 1 {
		return Statement{}, fault.Errorf(fault.Invalid, "reading a statement: version %d: %v", s.V, err)
	}
	if at := s.SignedAt; at.Location() != time.UTC || !at.Equal(at.Truncate(time.Millisecond)) {
		return Statement{}, fault.Errorf(fault.Invalid, "reading a statement: signed at %s: want UTC and whole milliseconds", at.Format(time.RFC3339Nano))
	}
	again, err := s.Encode()
	if err != nil || !bytes.Equal(again, b) {
		return Statement{}, fault.Errorf(fault.Invalid, "reading a statement: it is not in canonical form")
	}
	return s, nil
}

// MaxSkew is by how much a signer's clock may differ from the ledger's.
const MaxSkew = 2 * time.Minute

// CheckSigned checks a signed statement against the one that is expected: every field but SignedAt must be equal. The signature must be
// in the namespace of the meaning and by one of the keys, which are those that the signer had when the entry was written.
// The time of signing must lie between after (when what it is about came to be) and before (when the entry was written),
// give or take MaxSkew. It returns what the signature tells of the key. Its errors are of kind fault.Denied.
func CheckSigned(text, armored []byte, want Statement, keys []string, after, before time.Time) (sshkey.Facts, error) {
	got, err := DecodeStatement(text)
	if err != nil {
		return sshkey.Facts{}, fault.As(fault.Denied, err)
	}
	at := got.SignedAt
	want.SignedAt = at
	expected, err := want.Encode()
	switch {
	case err != nil:
		return sshkey.Facts{}, err
	case !bytes.Equal(text, expected):
		return sshkey.Facts{}, fault.Errorf(fault.Denied, "the signed statement is about something else: it says %s, not %s", text, expected)
	case at.Before(after.Add(-MaxSkew)):
		return sshkey.Facts{}, fault.Errorf(fault.Denied, "it was signed at %s, before %s, when what it is about came to be", at.Format(time.RFC3339), after.Format(time.RFC3339))
	case at.After(before.Add(MaxSkew)):
		return sshkey.Facts{}, fault.Errorf(fault.Denied, "it was signed at %s, in the future of %s", at.Format(time.RFC3339), before.Format(time.RFC3339))
	}
	return checkSignature(text, armored, want, keys)
}

func checkSignature(text, armored []byte, want Statement, keys []string) (sshkey.Facts, error) {
	sig, err := sshkey.ParseSignature(string(armored))
	if err != nil {
		return sshkey.Facts{}, fault.As(fault.Denied, err)
	}
	for _, line := range keys {
		key, err := sshkey.ParsePublicKey(line)
		if err != nil || key != sig.Key() {
			continue
		}
		facts, err := sig.Verify(key, want.Meaning.Namespace(), text)
		if err != nil {
			return sshkey.Facts{}, fault.As(fault.Denied, err)
		}
		return facts, nil
	}
	return sshkey.Facts{}, fault.WithHint(fault.Errorf(fault.Denied, "the signature is by key %s, which is none of %s's", sig.Key().Fingerprint(), want.Signer),
		"sign with a key that the platform's definition gives %s", want.Signer)
}
