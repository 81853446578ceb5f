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
	f := strings.SplitN(skey, "+", 5) // PRIVATE, KEY, name, hash, data
	if len(f) != 5 {
		return "", fault.Errorf(fault.Invalid, "parsing a ledger key: want PRIVATE+KEY+name+hash+data")
	}
	seed, err := base64.StdEncoding.DecodeString(f[4])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return "", fault.Errorf(fault.Invalid, "parsing a ledger key: want %d bytes of base64 data", 1+ed25519.SeedSize)
	}
	public := ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey)
	return note.NewEd25519VerifierKey(f[2], public)
}
