// Package sshkey checks signatures that people make with the SSH keys they have: for logging in, and for
// decisions that the ledger keeps.
//
// The format is OpenSSH's SSHSIG (PROTOCOL.sshsig in its sources): what is signed is the text SSHSIG, a
// namespace, and the SHA-512 (or SHA-256) of the message. So a signature made here for one purpose can't be
// taken for one made for another, nor for a login to an SSH server. Anybody can check one with OpenSSH alone:
//
//	ssh-keygen -Y verify -f allowed_signers -I alice -n invar-approval@v1 -s statement.sig < statement
//
// Keys and algorithms are those that are strong today: Ed25519, ECDSA on the NIST curves, RSA from 2048 bits with SHA-2, and
// the two kinds of FIDO security keys (sk-), whose signatures also tell whether a person touched the key, and whether the key
// made sure which person. DSA, SHA-1 and certificates are refused.
//
// Every text has one spelling: what is parsed and printed again gives the same bytes.
// The package only checks; package signer signs.
package sshkey

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/invarhq/invar/fault"
)

// Limits of what is parsed.
const (
	maxKeyBytes = 8 << 10 // of a line; an RSA key of 16384 bits has 2.8 KiB
	minRSABits  = 2048
)

// keyTypes are the kinds of keys that are taken.
var keyTypes = []string{
	ssh.KeyAlgoED25519,
	ssh.KeyAlgoSKED25519,
	ssh.KeyAlgoECDSA256,
	ssh.KeyAlgoECDSA384,
	ssh.KeyAlgoECDSA521,
	ssh.KeyAlgoSKECDSA256,
	ssh.KeyAlgoRSA,
}

// PublicKey is a key that is taken. Keys are equal (==) when they are the same key; the zero value is no key.
type PublicKey struct {
	wire string // RFC 4253, section 6.6; checked, and in its one encoding
}

// ParsePublicKey reads a key as a line of authorized_keys or of a file *.pub has it: type, key in base64, and maybe a
// comment, which is dropped. Options are refused: they would promise what is not done here.
func ParsePublicKey(line string) (PublicKey, error) {
	if len(line) > maxKeyBytes {
		return PublicKey{}, fault.Errorf(fault.Invalid, "SSH key: larger than %d bytes", maxKeyBytes)
	}
	fields := strings.Fields(line)
	if len(fields) < 2 || strings.ContainsAny(strings.Trim(line, "\r\n"), "\r\n") {
		return PublicKey{}, fault.WithHint(fault.Errorf(fault.Invalid, "SSH key %.40q: not one line of type and key", line),
			"write it as in a file *.pub, such as: ssh-ed25519 AAAAC3… alice@bank")
	}
	if !knownType(fields[0]) {
		return PublicKey{}, typeError(fields[0])
	}
	wire, err := base64.StdEncoding.Strict().DecodeString(fields[1])
	if err != nil {
		return PublicKey{}, fault.Errorf(fault.Invalid, "SSH key %s %.20s…: not base64: %w", fields[0], fields[1], err)
	}
	k, err := parseWire(wire)
	if err != nil {
		return PublicKey{}, err
	}
	if k.Type() != fields[0] {
		return PublicKey{}, fault.Errorf(fault.Invalid, "SSH key: it says %s, and is %s", fields[0], k.Type())
	}
	return k, nil
}

// FromSSH returns the key of package ssh as one of ours.
func FromSSH(key ssh.PublicKey) (PublicKey, error) { return parseWire(key.Marshal()) }

func parseWire(wire []byte) (PublicKey, error) {
	key, err := ssh.ParsePublicKey(wire)
	if err != nil {
		return PublicKey{}, fault.Errorf(fault.Invalid, "SSH key: %w", err)
	}
	if !knownType(key.Type()) {
		return PublicKey{}, typeError(key.Type())
	}
	if crypto, ok := key.(ssh.CryptoPublicKey); ok {
		if r, ok := crypto.CryptoPublicKey().(*rsa.PublicKey); ok && r.N.BitLen() < minRSABits {
			return PublicKey{}, fault.WithHint(fault.Errorf(fault.Invalid, "SSH key: RSA of %d bits is too weak", r.N.BitLen()),
				"make a better one: ssh-keygen -t ed25519")
		}
	}
	if !bytes.Equal(key.Marshal(), wire) {
		return PublicKey{}, fault.Errorf(fault.Invalid, "SSH key: not in its one encoding")
	}
	return PublicKey{string(wire)}, nil
}

func knownType(name string) bool { return slices.Contains(keyTypes, name) }

// typeError says why keys of a type are refused.
func typeError(name string) error {
	switch {
	case strings.Contains(name, "-cert-v"):
		return fault.WithHint(fault.Errorf(fault.Invalid, "SSH key: %.60s is a certificate, and certificates are not taken", name),
			"use the key itself: the line in the file *.pub without -cert in its name")
	case name == "ssh-dss":
		return fault.WithHint(fault.Errorf(fault.Invalid, "SSH key: DSA is too weak"), "make a better one: ssh-keygen -t ed25519")
	}
	return fault.WithHint(fault.Errorf(fault.Invalid, "SSH key: type %.60q is not taken", name),
		"a line begins with the type, one of: %s", strings.Join(keyTypes, ", "))
}

// Type returns the kind of the key, such as ssh-ed25519.
func (k PublicKey) Type() string { return k.ssh().Type() }

// Fingerprint returns the key's name as ssh-keygen -l and ssh-add -l print it: SHA256:…
func (k PublicKey) Fingerprint() string { return ssh.FingerprintSHA256(k.ssh()) }

// SecurityKey reports whether the key is in a FIDO security key.
func (k PublicKey) SecurityKey() bool {
	return k.Type() == ssh.KeyAlgoSKED25519 || k.Type() == ssh.KeyAlgoSKECDSA256
}

// IsZero reports whether k is no key.
func (k PublicKey) IsZero() bool { return k.wire == "" }

// String returns the line that ParsePublicKey reads, without comment.
func (k PublicKey) String() string {
	if k.IsZero() {
		return ""
	}
	return k.Type() + " " + base64.StdEncoding.EncodeToString([]byte(k.wire))
}

// MarshalText is String.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText is ParsePublicKey, without a comment.
func (k *PublicKey) UnmarshalText(text []byte) error {
	got, err := ParsePublicKey(string(text))
	if err != nil {
		return err
	}
	if got.String() != string(text) {
		return fault.Errorf(fault.Invalid, "SSH key: more than type and key")
	}
	*k = got
	return nil
}

// ssh returns the key as package ssh has it. The bytes were checked when k was made.
func (k PublicKey) ssh() ssh.PublicKey {
	key, err := ssh.ParsePublicKey([]byte(k.wire))
	if err != nil {
		panic("sshkey: use of the zero PublicKey")
	}
	return key
}
