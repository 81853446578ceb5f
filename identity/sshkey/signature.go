package sshkey

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/invarhq/invar/fault"
)

// Armor of a signature, as ssh-keygen writes it.
const (
	armorBegin   = "-----BEGIN SSH SIGNATURE-----\n"
	armorEnd     = "-----END SSH SIGNATURE-----\n"
	armorColumns = 70

	maxSignatureBytes = 32 << 10
)

// Flags in the signature of a security key (WebAuthn, "authenticator data").
const (
	flagUserPresent  = 0x01
	flagUserVerified = 0x04
)

// Signature is one in the format SSHSIG. That it was parsed says that it is well formed; Verify says whether it is true.
type Signature struct {
	wire string
	key  PublicKey
	sig  *sshsig.Signature // never changed
}

// ParseSignature reads the text that ssh-keygen -Y sign writes.
func ParseSignature(armored string) (Signature, error) {
	if len(armored) > maxSignatureBytes {
		return Signature{}, fault.Errorf(fault.Invalid, "SSH signature: larger than %d bytes", maxSignatureBytes)
	}
	body, begins := strings.CutPrefix(armored, armorBegin)
	body, ends := strings.CutSuffix(body, armorEnd)
	if !begins || !ends {
		return Signature{}, fault.WithHint(fault.Errorf(fault.Invalid, "SSH signature: it does not begin and end as one"),
			"give it as ssh-keygen -Y sign writes it, from -----BEGIN SSH SIGNATURE----- on, with its last line break")
	}
	wire, err := base64.StdEncoding.Strict().DecodeString(strings.ReplaceAll(body, "\n", ""))
	if err != nil {
		return Signature{}, fault.Errorf(fault.Invalid, "SSH signature: %w", err)
	}
	s, err := parseSignatureWire(wire)
	if err != nil {
		return Signature{}, err
	}
	if s.String() != armored {
		return Signature{}, fault.Errorf(fault.Invalid, "SSH signature: not written as ssh-keygen writes it, in lines of %d characters", armorColumns)
	}
	return s, nil
}

// FromSSHSIG returns a signature of package sshsig as one of ours.
func FromSSHSIG(sig *sshsig.Signature) (Signature, error) { return parseSignatureWire(sig.Marshal()) }

func parseSignatureWire(wire []byte) (Signature, error) {
	sig, err := sshsig.ParseSignature(wire)
	if err != nil {
		return Signature{}, fault.Errorf(fault.Invalid, "SSH signature: %w", err)
	}
	if !bytes.Equal(sig.Marshal(), wire) {
		return Signature{}, fault.Errorf(fault.Invalid, "SSH signature: not in its one encoding")
	}
	key, err := FromSSH(sig.PublicKey)
	if err != nil {
		return Signature{}, fmt.Errorf("SSH signature: %w", err)
	}
	if sig.Namespace == "" {
		return Signature{}, fault.Errorf(fault.Invalid, "SSH signature: it has no namespace")
	}
	if err := checkFormat(key, sig.Signature); err != nil {
		return Signature{}, err
	}
	return Signature{wire: string(wire), key: key, sig: sig}, nil
}

// checkFormat refuses a signature of another algorithm than its key's, and bytes after it.
func checkFormat(key PublicKey, sig *ssh.Signature) error {
	formats := []string{key.Type()}
	if key.Type() == ssh.KeyAlgoRSA {
		formats = []string{ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512} // and not ssh-rsa, which is SHA-1
	}
	if !slices.Contains(formats, sig.Format) {
		return fault.Errorf(fault.Invalid, "SSH signature: algorithm %.60q is not taken for a key of type %s", sig.Format, key.Type())
	}
	if !key.SecurityKey() && len(sig.Rest) > 0 {
		return fault.Errorf(fault.Invalid, "SSH signature: %d bytes too many", len(sig.Rest))
	}
	if key.SecurityKey() {
		if _, err := securityFields(sig.Rest); err != nil {
			return err
		}
	}
	return nil
}

// Key returns the key that the signature says it was made with.
func (s Signature) Key() PublicKey { return s.key }

// Namespace returns the purpose that the signature says it was made for.
func (s Signature) Namespace() string { return s.sig.Namespace }

// String returns the text that ParseSignature reads and ssh-keygen writes.
func (s Signature) String() string {
	var b strings.Builder
	b.WriteString(armorBegin)
	text := base64.StdEncoding.EncodeToString([]byte(s.wire))
	for line := range slices.Chunk([]byte(text), armorColumns) {
		b.Write(line)
		b.WriteByte('\n')
	}
	b.WriteString(armorEnd)
	return b.String()
}

// Facts are what a true signature tells beside that it is one.
type Facts struct {
	Fingerprint string // of the key
	Algorithm   string // of the signature, such as ssh-ed25519 or rsa-sha2-512
	Hash        string // of the message: sha512 or sha256

	// Of a security key only. Every signature of one that is taken was made with a touch (UserPresent).
	SecurityKey  bool
	Application  string // that the key was made for, such as ssh:
	UserPresent  bool   // somebody touched the key
	UserVerified bool   // the key made sure who: by PIN, fingerprint or the like
	Counter      uint32 // of signatures, where the key counts
}

// Verify checks that s is a signature over the message, made with the key, for the namespace. Its errors are
// fault.Denied, each with its reason.
func (s Signature) Verify(key PublicKey, namespace string, message []byte) (Facts, error) {
	switch {
	case key.IsZero() || s.sig == nil:
		return Facts{}, fault.Errorf(fault.Denied, "SSH signature: there is no key, or no signature")
	case s.key != key:
		return Facts{}, fault.Errorf(fault.Denied, "SSH signature: made with key %s, not with %s", s.key.Fingerprint(), key.Fingerprint())
	case s.sig.Namespace != namespace:
		return Facts{}, fault.Errorf(fault.Denied, "SSH signature: made for namespace %.60q, not for %q", s.sig.Namespace, namespace)
	}
	if err := sshsig.Verify(bytes.NewReader(message), s.sig, key.ssh(), s.sig.HashAlgorithm, namespace); err != nil {
		return Facts{}, fault.WithHint(fault.Errorf(fault.Denied, "SSH signature: not over this message, or not touched: %w", err),
			"sign exactly the bytes that are checked; a security key must be touched")
	}
	return s.facts(), nil
}

// Verify parses a signature and checks it: see ParseSignature and Signature.Verify.
func Verify(key PublicKey, namespace string, message []byte, armored string) (Facts, error) {
	s, err := ParseSignature(armored)
	if err != nil {
		return Facts{}, err
	}
	return s.Verify(key, namespace, message)
}

func (s Signature) facts() Facts {
	f := Facts{Fingerprint: s.key.Fingerprint(), Algorithm: s.sig.Signature.Format, Hash: s.sig.HashAlgorithm.String()}
	if !s.key.SecurityKey() {
		return f
	}
	fields, err := securityFields(s.sig.Signature.Rest)
	if err != nil {
		panic("sshkey: a verified signature is malformed: " + err.Error())
	}
	f.SecurityKey = true
	f.Application = application(s.key)
	f.UserPresent = fields.Flags&flagUserPresent != 0
	f.UserVerified = fields.Flags&flagUserVerified != 0
	f.Counter = fields.Counter
	return f
}

// skFields follow the signature of a security key (PROTOCOL.u2f in OpenSSH's sources).
type skFields struct {
	Flags   byte
	Counter uint32
}

func securityFields(rest []byte) (skFields, error) {
	var f skFields
	if err := ssh.Unmarshal(rest, &f); err != nil {
		return skFields{}, fault.Errorf(fault.Invalid, "SSH signature: of a security key, without its flags and counter: %w", err)
	}
	return f, nil
}

// application returns what a security key was made for: the last string of its public key.
func application(key PublicKey) string {
	if key.Type() == ssh.KeyAlgoSKED25519 {
		var k struct{ Type, Key, Application string }
		if err := ssh.Unmarshal([]byte(key.wire), &k); err != nil {
			panic("sshkey: a checked key is malformed: " + err.Error())
		}
		return k.Application
	}
	var k struct{ Type, Curve, Key, Application string }
	if err := ssh.Unmarshal([]byte(key.wire), &k); err != nil {
		panic("sshkey: a checked key is malformed: " + err.Error())
	}
	return k.Application
}
