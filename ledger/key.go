package ledger

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/fault"
)

// GenerateKey returns a new Ed25519 key for a log with this origin: the secret key, one line of text
// that must be kept private, and the verifier key (vkey), one line that auditors are given.
func GenerateKey(origin string) (skey, vkey string, err error) {
	skey, vkey, err = note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return "", "", fmt.Errorf("generating a key for %s: %w", origin, err)
	}
	if _, err := note.NewVerifier(vkey); err != nil {
		return "", "", fault.Errorf(fault.Invalid, "origin %q: want text without spaces or plus signs", origin)
	}
	return skey, vkey, nil
}

// ParseKey returns the signer that GenerateKey encoded as skey, and its verifier.
func ParseKey(skey string) (note.Signer, note.Verifier, error) {
	signer, err := note.NewSigner(skey)
	if err != nil {
		return nil, nil, fault.Errorf(fault.Invalid, "parsing a ledger key: %v", err)
	}
	vkey, err := VerifierKey(skey)
	if err != nil {
		return nil, nil, err
	}
	verifier, err := ParseVerifierKey(vkey)
	if err != nil {
		return nil, nil, err
	}
	return signer, verifier, nil
}

// ParseVerifierKey returns the verifier with this vkey.
func ParseVerifierKey(vkey string) (note.Verifier, error) {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "parsing the verifier key %q: %v", vkey, err)
	}
	return v, nil
}

// VerifierKey returns the vkey that belongs to skey.
func VerifierKey(skey string) (string, error) {
	name, key, err := PrivateKey(skey)
	if err != nil {
		return "", err
	}
	return note.NewEd25519VerifierKey(name, key.Public().(ed25519.PublicKey))
}

// PrivateKey returns the origin and the Ed25519 key of skey, to sign what is no note.
func PrivateKey(skey string) (origin string, key ed25519.PrivateKey, err error) {
	f := strings.SplitN(skey, "+", 5) // PRIVATE, KEY, name, hash, data
	if len(f) != 5 {
		return "", nil, fault.Errorf(fault.Invalid, "parsing a ledger key: want PRIVATE+KEY+name+hash+data")
	}
	seed, err := base64.StdEncoding.DecodeString(f[4])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return "", nil, fault.Errorf(fault.Invalid, "parsing a ledger key: want %d bytes of base64 data", 1+ed25519.SeedSize)
	}
	return f[2], ed25519.NewKeyFromSeed(seed[1:]), nil
}

// PublicKey returns the origin and the Ed25519 key of vkey, to verify what is no note.
func PublicKey(vkey string) (origin string, key ed25519.PublicKey, err error) {
	v, err := ParseVerifierKey(vkey)
	if err != nil {
		return "", nil, err
	}
	f := strings.SplitN(strings.TrimSpace(vkey), "+", 3) // name, hash, data
	data, err := base64.StdEncoding.DecodeString(f[len(f)-1])
	const algEd25519 = 1 // of signed notes
	if err != nil || len(data) != 1+ed25519.PublicKeySize || data[0] != algEd25519 {
		return "", nil, fault.Errorf(fault.Invalid, "parsing the verifier key %q: want an Ed25519 key", vkey)
	}
	return v.Name(), data[1:], nil
}
