// Package witness decides when a witness cosigns a log's checkpoint, and what a set of cosignatures is worth.
//
// A log that signs two histories can show each of them to half of its readers: every proof still verifies. A witness
// is somebody else, who remembers the newest checkpoint of the log and cosigns another one only when it is proven to
// begin with the tree that is remembered. Who asks for a quorum of witnesses is sure to see the history that they see.
//
// # Formats
//
// The request and its answers are https://c2sp.org/tlog-witness, the cosignature is cosignature/v1 of
// https://c2sp.org/tlog-cosignature, and the rule for a quorum is https://c2sp.org/tlog-policy. Witnesses made here sign
// with Ed25519; those of others may also sign with ML-DSA-44.
//
//	key, err := witness.ParseKey(skey)
//	d := witness.Decide(log, key.Verifier(), seen, request) // pure: what to remember and what to answer
//	line := key.Cosign(d.Text, now)                         // once d.Next is durable
//
//	policy, err := witness.NewPolicy(2, w1, w2, w3)
//	result, err := witness.Check(checkpoint, logVerifier, policy)
package witness

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
)

// Algorithms of keys, the first byte of their material (https://c2sp.org/signed-note).
const (
	algCosignature = 4 // Ed25519, cosignature/v1
	algMLDSA44     = 6
)

// Verifier verifies the cosignatures of one witness.
type Verifier struct {
	note.Verifier
	vkey     string
	material string // of the key: two verifiers with the same are one witness under two names
}

// ParseVerifier returns the verifier with this vkey, of type 4 (Ed25519) or 6 (ML-DSA-44). There is one spelling.
func ParseVerifier(vkey string) (Verifier, error) {
	bad := func(why string) (Verifier, error) {
		return Verifier{}, fault.WithHint(fault.Errorf(fault.Invalid, "parsing the witness key %q: %s", vkey, why),
			"a witness prints its verifier key when it starts: NAME+HASH+KEY")
	}
	f := strings.SplitN(vkey, "+", 3)
	if len(f) != 3 || !validName(f[0]) {
		return bad("want NAME+HASH+KEY")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(f[2])
	if err != nil || len(raw) == 0 || base64.StdEncoding.EncodeToString(raw) != f[2] {
		return bad("the key is not in base64")
	}
	if raw[0] != algCosignature && raw[0] != algMLDSA44 {
		return bad(fmt.Sprintf("type %d is not that of a witness", raw[0]))
	}
	v, err := formats.NewVerifierForCosignatureV1(vkey)
	if err != nil {
		return bad(err.Error())
	}
	if f[1] != fmt.Sprintf("%08x", v.KeyHash()) {
		return bad("the hash does not belong to name and key")
	}
	return Verifier{v, vkey, string(raw)}, nil
}

// String returns the vkey.
func (v Verifier) String() string { return v.vkey }

// Key is what a witness signs with.
type Key struct {
	secret   ed25519.PrivateKey
	verifier Verifier
}

// GenerateKey returns a new key for a witness of this name: the secret key, one line of text that must be kept private.
func GenerateKey(name string) (skey string, err error) {
	if !validName(name) {
		return "", fault.Errorf(fault.Invalid, "name of a witness %q: want text without spaces or plus signs", name)
	}
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	return "PRIVATE+KEY+" + encodeKey(name, keyHash(name, public), seed), nil
}

// ParseKey returns the key that GenerateKey encoded.
func ParseKey(skey string) (Key, error) {
	bad := fault.Errorf(fault.Invalid, "parsing the key of a witness: want PRIVATE+KEY+NAME+HASH+KEY")
	rest, ok := strings.CutPrefix(skey, "PRIVATE+KEY+")
	f := strings.SplitN(rest, "+", 3)
	if !ok || len(f) != 3 || !validName(f[0]) {
		return Key{}, bad
	}
	raw, err := base64.StdEncoding.DecodeString(f[2])
	if err != nil || len(raw) != 1+ed25519.SeedSize || raw[0] != algCosignature {
		return Key{}, bad
	}
	secret := ed25519.NewKeyFromSeed(raw[1:])
	public := secret.Public().(ed25519.PublicKey)
	hash := keyHash(f[0], public)
	if rest != encodeKey(f[0], hash, raw[1:]) {
		return Key{}, bad
	}
	v, err := ParseVerifier(encodeKey(f[0], hash, public))
	if err != nil {
		return Key{}, err
	}
	return Key{secret, v}, nil
}

// Verifier verifies what the key signs.
func (k Key) Verifier() Verifier { return k.verifier }

// Cosign returns the signature line of a note with this text: as of now, no larger tree of its log is known.
func (k Key) Cosign(text string, now time.Time) []byte {
	seconds := uint64(now.Unix())
	signature := ed25519.Sign(k.secret, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", seconds, text))
	raw := binary.BigEndian.AppendUint32(nil, k.verifier.KeyHash())
	raw = binary.BigEndian.AppendUint64(raw, seconds)
	raw = append(raw, signature...)
	return fmt.Appendf(nil, "— %s %s\n", k.verifier.Name(), base64.StdEncoding.EncodeToString(raw))
}

func encodeKey(name string, hash uint32, material []byte) string {
	raw := append([]byte{algCosignature}, material...)
	return fmt.Sprintf("%s+%08x+%s", name, hash, base64.StdEncoding.EncodeToString(raw))
}

func keyHash(name string, public ed25519.PublicKey) uint32 {
	h := sha256.New()
	h.Write([]byte(name + "\n\x04"))
	h.Write(public)
	return binary.BigEndian.Uint32(h.Sum(nil))
}

func validName(name string) bool {
	return name != "" && utf8.ValidString(name) && !strings.ContainsRune(name, '+') && strings.IndexFunc(name, unicode.IsSpace) < 0
}

// Cosignature is one that a checkpoint has, verified.
type Cosignature struct {
	Witness Verifier
	Time    time.Time // when, by the witness's clock
	line    []byte    // of the note
}

// Result is what a checkpoint's cosignatures are worth.
type Result struct {
	Checkpoint ledger.Checkpoint
	By         []Cosignature // in the order of the note, of witnesses that the policy knows
	Quorum     bool
}

// Check checks the log's signature on a checkpoint, and its cosignatures against a policy. Those of witnesses that the
// policy does not know are ignored. Its errors are of kind fault.Corrupt: not signed by the log, or a signature that is
// none of the witness that it names. Too few cosignatures are no error: see Result.Quorum.
func Check(signed []byte, log note.Verifier, p Policy) (Result, error) {
	c, err := ledger.ParseCheckpoint(signed, log)
	if err != nil {
		return Result{}, err
	}
	by, err := cosignatures(signed, p.verifiers()...)
	if err != nil {
		return Result{}, fmt.Errorf("checking the cosignatures at size %d: %w", c.Size, err)
	}
	has := make(map[string]bool)
	for _, s := range by {
		has[s.Witness.vkey] = true
	}
	return Result{Checkpoint: c, By: by, Quorum: p.met(has)}, nil
}

// Vouched returns the newest of these checkpoints of a log that has the quorum; its Quorum is false when none has. It fails with
// fault.Corrupt when the quorum does not hold for all size entries of the log. A policy that asks for none is content.
func Vouched(size int64, log note.Verifier, p Policy, checkpoints ...[]byte) (newest Result, err error) {
	if !p.Asks() {
		return newest, nil
	}
	for _, signed := range checkpoints {
		r, err := Check(signed, log, p)
		if err != nil {
			return newest, err
		}
		if r.Quorum && (!newest.Quorum || r.Checkpoint.Size > newest.Checkpoint.Size) {
			newest = r
		}
	}
	switch {
	case newest.Quorum && newest.Checkpoint.Size >= size:
		return newest, nil
	case newest.Quorum:
		return newest, fault.Errorf(fault.Corrupt, "the newest checkpoint, of %d entries, lacks the quorum of witnesses: it holds up to %d", size, newest.Checkpoint.Size)
	}
	return newest, fault.Errorf(fault.Corrupt, "the newest checkpoint, of %d entries, lacks the quorum of witnesses, and no other that is here has it", size)
}

// cosignatures returns those that a note has of these witnesses.
func cosignatures(signed []byte, witnesses ...Verifier) ([]Cosignature, error) {
	list := make([]note.Verifier, len(witnesses))
	for i, w := range witnesses {
		list[i] = w.Verifier
	}
	n, err := note.Open(signed, note.VerifierList(list...))
	if _, none := errors.AsType[*note.UnverifiedNoteError](err); none {
		return nil, nil
	}
	if err != nil {
		return nil, fault.As(fault.Corrupt, err)
	}
	var out []Cosignature
	for _, sig := range n.Sigs {
		at, err := formats.CoSigV1Timestamp(sig)
		if err != nil {
			return nil, fault.Errorf(fault.Corrupt, "cosignature of %s: %w", sig.Name, err)
		}
		for _, w := range witnesses {
			if w.Name() == sig.Name && w.KeyHash() == sig.Hash {
				out = append(out, Cosignature{w, at.UTC(), fmt.Appendf(nil, "— %s %s\n", sig.Name, sig.Base64)})
			}
		}
	}
	return out, nil
}

// Answered returns the cosignature that a witness answered with on a checkpoint. What others may have signed is ignored.
// Its errors are of kind fault.Corrupt.
func Answered(checkpoint, answer []byte, w Verifier) (Cosignature, error) {
	if !bytes.HasPrefix(answer, []byte("— ")) || !bytes.HasSuffix(answer, []byte("\n")) {
		return Cosignature{}, fault.Errorf(fault.Corrupt, "the answer of %s has no signature lines", w.Name())
	}
	text, _, _ := bytes.Cut(checkpoint, []byte("\n\n"))
	by, err := cosignatures(fmt.Appendf(nil, "%s\n\n%s", text, answer), w)
	if err != nil {
		return Cosignature{}, fmt.Errorf("checking the answer of %s: %w", w.Name(), err)
	}
	if len(by) == 0 {
		return Cosignature{}, fault.Errorf(fault.Corrupt, "the answer of %s has no cosignature of its key", w.Name())
	}
	return by[0], nil
}

// With returns the checkpoint with these cosignatures after the signatures that it has.
func With(checkpoint []byte, by ...Cosignature) []byte {
	out := bytes.Clone(checkpoint)
	for _, c := range by {
		out = append(out, c.line...)
	}
	return out
}
