package ledger

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"

	formats "github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/fault"
)

// Checkpoint says what a log held when it had Size entries. Its text is three lines: the origin, the
// size in decimal, the root hash in base64 (https://c2sp.org/tlog-checkpoint, without extension lines).
type Checkpoint struct {
	Origin string
	Size   int64
	Root   tlog.Hash
}

// text returns the text that is signed.
func (c Checkpoint) text() []byte {
	return formats.Checkpoint{Origin: c.Origin, Size: uint64(c.Size), Hash: c.Root[:]}.Marshal()
}

// Sign returns the checkpoint as a signed note.
func (c Checkpoint) Sign(signer note.Signer) ([]byte, error) {
	signed, err := note.Sign(&note.Note{Text: string(c.text())}, signer)
	if err != nil {
		return nil, fmt.Errorf("signing the checkpoint of %s at size %d: %w", c.Origin, c.Size, err)
	}
	return signed, nil
}

// ParseCheckpoint returns the checkpoint in a signed note after checking the log's signature on it. The
// text has exactly one spelling. Signatures of others (witnesses) may follow the log's.
// Its errors are of kind fault.Corrupt.
func ParseCheckpoint(signed []byte, v note.Verifier) (Checkpoint, error) {
	c, _, err := openCheckpoint(signed, v)
	return c, err
}

// parseOwnCheckpoint is ParseCheckpoint for what a log stored itself: every byte of it is
// accounted for, so it may hold no signature but the log's.
func parseOwnCheckpoint(signed []byte, v note.Verifier) (Checkpoint, error) {
	c, n, err := openCheckpoint(signed, v)
	if err != nil {
		return Checkpoint{}, err
	}
	sig := n.Sigs[0]
	own := fmt.Sprintf("%s\n— %s %s\n", n.Text, sig.Name, sig.Base64)
	if !bytes.Equal(signed, []byte(own)) {
		return Checkpoint{}, fault.Errorf(fault.Corrupt, "checkpoint at size %d: more than the log's own signature", c.Size)
	}
	return c, nil
}

func openCheckpoint(signed []byte, v note.Verifier) (Checkpoint, *note.Note, error) {
	n, err := note.Open(signed, note.VerifierList(v))
	if unverified, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
		return Checkpoint{}, nil, fault.WithHint(
			fault.Errorf(fault.Corrupt, "checkpoint %q: not signed by %s+%08x", firstLine(unverified.Note.Text), v.Name(), v.KeyHash()),
			"Use the verifier key that belongs to this ledger.")
	}
	if err != nil {
		return Checkpoint{}, nil, fault.Errorf(fault.Corrupt, "checkpoint: %w", err)
	}
	c, err := parseText(n.Text)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	for _, sig := range n.Sigs {
		if err := canonicalBase64(sig.Base64); err != nil {
			return Checkpoint{}, nil, fault.Errorf(fault.Corrupt, "checkpoint at size %d: signature: %w", c.Size, err)
		}
	}
	return c, n, nil
}

// parseText accepts what Checkpoint.text returns and nothing else.
func parseText(text string) (Checkpoint, error) {
	var f formats.Checkpoint
	if _, err := f.Unmarshal([]byte(text)); err != nil {
		return Checkpoint{}, fault.Errorf(fault.Corrupt, "checkpoint %q: %w", firstLine(text), err)
	}
	if len(f.Hash) != tlog.HashSize || int64(f.Size) < 0 {
		return Checkpoint{}, fault.Errorf(fault.Corrupt, "checkpoint %q: size or root hash out of range", firstLine(text))
	}
	c := Checkpoint{Origin: f.Origin, Size: int64(f.Size), Root: tlog.Hash(f.Hash)}
	if string(c.text()) != text {
		return Checkpoint{}, fault.Errorf(fault.Corrupt, "checkpoint %q: not in canonical form", firstLine(text))
	}
	return c, nil
}

// canonicalBase64 refuses the spellings that decoders accept beside the one that encoders write.
func canonicalBase64(s string) error {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err == nil && base64.StdEncoding.EncodeToString(b) != s {
		err = errors.New("not in canonical form")
	}
	return err
}

func firstLine(text string) string {
	line, _, _ := bytes.Cut([]byte(text), []byte("\n"))
	return string(line)
}
