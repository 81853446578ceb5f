package sbom

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/json"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/invarhq/invar/fault"
)

// Media types, of content and of the artifacts that hold it.
const (
	TypeSBOM      = "application/vnd.cyclonedx+json"
	TypeStatement = "application/vnd.in-toto+json"
	TypeEnvelope  = "application/vnd.dsse.envelope.v1+json"
)

// edKey is an Ed25519 key as dsse wants it.
type edKey struct {
	private ed25519.PrivateKey // nil: verifies only
	public  ed25519.PublicKey
}

func (k edKey) Sign(_ context.Context, data []byte) ([]byte, error) {
	return ed25519.Sign(k.private, data), nil
}
func (k edKey) KeyID() (string, error)   { return dsse.SHA256KeyID(k.public) }
func (k edKey) Public() crypto.PublicKey { return k.public }
func (k edKey) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(k.public, data, sig) {
		return fault.Errorf(fault.Corrupt, "the signature is not the key's")
	}
	return nil
}

// Sign puts a statement into a DSSE envelope. The key's identifier is its SSH fingerprint. What is signed begins with "DSSEv1", so
// it can't be taken for anything else that the key signs: a note ends with a line feed, and a statement does not.
func Sign(statement []byte, key ed25519.PrivateKey) ([]byte, error) {
	s, err := dsse.NewEnvelopeSigner(edKey{key, key.Public().(ed25519.PublicKey)})
	if err != nil {
		return nil, err
	}
	e, err := s.SignPayload(context.Background(), TypeStatement, statement) // the context goes to edKey.Sign
	if err != nil {
		return nil, err
	}
	return json.Marshal(e)
}

// Verify returns the statement of an envelope that the key signed. It fails with fault.Invalid for what is no envelope of a
// statement, and fault.Corrupt when the key did not sign it.
func Verify(envelope []byte, key ed25519.PublicKey) ([]byte, error) {
	var e dsse.Envelope
	dec := json.NewDecoder(bytes.NewReader(envelope))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return nil, fault.Errorf(fault.Invalid, "reading a DSSE envelope: %w", err)
	}
	if e.PayloadType != TypeStatement {
		return nil, fault.Errorf(fault.Invalid, "reading a DSSE envelope: its payload is %q", e.PayloadType)
	}
	v, err := dsse.NewEnvelopeVerifier(edKey{public: key})
	if err != nil {
		return nil, err
	}
	_, payload, err := v.VerifyAndDecode(context.Background(), &e)
	if err != nil {
		return nil, fault.Errorf(fault.Corrupt, "verifying a DSSE envelope: %w", err)
	}
	return payload, nil
}
