// Package attest has what the server says under the ledger's key: in-toto statements v1
// (https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md), each the payload of a DSSE envelope
// (https://github.com/secure-systems-lab/dsse) that an entry of the ledger has as its body.
//
// A statement is canonical JSON (RFC 8785), so that the same facts are the same bytes. Its predicate's type has a version: fields of
// one version keep their meaning, and a reader refuses those that it does not know.
package attest

import (
	"strings"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// Names that the formats give.
const (
	TypeEnvelope  = "application/vnd.dsse.envelope.v1+json" // media type of an envelope
	TypePayload   = "application/vnd.in-toto+json"          // of what is in it
	typeStatement = "https://in-toto.io/Statement/v1"
)

// MaxStatementBytes is how long a statement may be.
const MaxStatementBytes = 16 << 20

// Statement says something, the predicate, of subjects.
type Statement[P any] struct {
	Type          string    `json:"_type"`
	Subject       []Subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     P         `json:"predicate"`
}

// Subject is content that a statement is about. The digest is by algorithm, in hexadecimal digits.
type Subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// Of names content.
func Of(name string, d digest.Digest) Subject {
	return Subject{name, map[string]string{"sha256": d.Hex()}}
}

// New returns a statement.
func New[P any](predicateType string, p P, about ...Subject) Statement[P] {
	return Statement[P]{typeStatement, about, predicateType, p}
}

// Encode returns the statement's one spelling.
func (s Statement[P]) Encode() ([]byte, error) { return digest.Canonical(s) }

// Decode reads what Encode wrote, and nothing else. Its errors are of kind fault.Corrupt.
func Decode[P any](b []byte, predicateType string) (Statement[P], error) {
	var s Statement[P]
	if err := digest.DecodeExact(b, &s, MaxStatementBytes, func() ([]byte, error) { return s.Encode() }); err != nil {
		return s, fault.Errorf(fault.Corrupt, "reading a statement: %w", err)
	}
	if s.Type != typeStatement || s.PredicateType != predicateType {
		return s, fault.Errorf(fault.Corrupt, "reading a statement: it is a %s of type %s, not a %s of type %s", s.Type, s.PredicateType, typeStatement, predicateType)
	}
	return s, nil
}

// short is text for a statement: valid, and of no more bytes than that.
func short(text string, bytes int) string {
	if len(text) > bytes {
		text = text[:bytes] + " …"
	}
	return strings.ToValidUTF8(text, "")
}
