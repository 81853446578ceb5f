package witness

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	formats "github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/fault"
)

// MaxRequestBytes is the largest request: 63 hashes, and a checkpoint with many signatures.
const MaxRequestBytes = 256 << 10

const maxProofHashes = 63

// Request asks a witness to cosign a checkpoint.
type Request struct {
	Old        int64          // size of the tree that the witness is thought to remember
	Proof      tlog.TreeProof // that the new tree begins with it
	Checkpoint []byte         // the new one, signed by its log
}

// ParseRequest reads the body of add-checkpoint. There is one spelling. Its errors are of kind fault.Invalid.
func ParseRequest(body []byte) (Request, error) {
	head, signed, ok := strings.Cut(string(body), "\n\n")
	if !ok || len(body) > MaxRequestBytes {
		return Request{}, fault.Errorf(fault.Invalid, "want an old size, a proof, an empty line and a checkpoint")
	}
	lines := strings.Split(head, "\n")
	size, ok := strings.CutPrefix(lines[0], "old ")
	if !ok {
		return Request{}, fault.Errorf(fault.Invalid, "the first line is not an old size")
	}
	old, err := parseSize(size)
	if err != nil {
		return Request{}, err
	}
	if len(lines)-1 > maxProofHashes {
		return Request{}, fault.Errorf(fault.Invalid, "a proof of %d hashes: at most %d", len(lines)-1, maxProofHashes)
	}
	r := Request{Old: old, Checkpoint: []byte(signed)}
	for _, line := range lines[1:] {
		h, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(h) != tlog.HashSize || base64.StdEncoding.EncodeToString(h) != line {
			return Request{}, fault.Errorf(fault.Invalid, "%q is not a hash", line)
		}
		r.Proof = append(r.Proof, tlog.Hash(h))
	}
	return r, nil
}

// Marshal returns the body that ParseRequest reads.
func (r Request) Marshal() []byte {
	b := fmt.Appendf(nil, "old %d\n", r.Old)
	for _, h := range r.Proof {
		b = fmt.Appendf(b, "%s\n", h)
	}
	b = append(b, '\n')
	return append(b, r.Checkpoint...)
}

// Origin returns the name of the log that the checkpoint claims to be of.
func (r Request) Origin() string {
	line, _, _ := bytes.Cut(r.Checkpoint, []byte("\n"))
	return string(line)
}

// ParseConflict reads the body of an answer Conflict: the size that the witness remembers.
func ParseConflict(body []byte) (int64, error) {
	size, ok := strings.CutSuffix(string(body), "\n")
	if !ok {
		return 0, fault.Errorf(fault.Invalid, "%q is not a size", body)
	}
	return parseSize(size)
}

func parseSize(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, fault.Errorf(fault.Invalid, "%q is not a size", s)
	}
	return n, nil
}

// Seen is what a witness remembers of a log: the newest checkpoint that it cosigned. The zero Seen is of a log that it
// never cosigned.
type Seen struct {
	Size int64
	Root tlog.Hash
	Note []byte // as the log signed it, with no other signature
}

// root returns the root of the tree that is remembered.
func (s Seen) root() tlog.Hash {
	if s.Note == nil {
		empty, _ := tlog.TreeHash(0, nil)
		return empty
	}
	return s.Root
}

// Recall returns what a witness remembers whose newest checkpoint of the log is this. Its errors are of kind fault.Corrupt.
func Recall(l Log, signed []byte) (Seen, error) {
	s, _, err := open(l, signed)
	if err == nil && !bytes.Equal(s.Note, signed) {
		err = errors.New("more than the log's own signature")
	}
	if err != nil {
		return Seen{}, fault.Errorf(fault.Corrupt, "remembered checkpoint of %s: %w", l.Name(), err)
	}
	return s, nil
}

// Verdict is the answer of a witness.
type Verdict int

// The verdicts, with their statuses in HTTP.
const (
	Cosign        Verdict = 200 // remember Decision.Next, then cosign Decision.Text
	Malformed     Verdict = 400 // not a request
	BadSignature  Verdict = 403 // not signed by the log
	UnknownOrigin Verdict = 404 // of a log that the witness is not for
	Conflict      Verdict = 409 // decided on another size than is remembered, or another root of that size
	BadProof      Verdict = 422 // not proven to begin with the tree that is remembered
	Forgotten     Verdict = 500 // the witness itself cosigned what it does not remember
)

// Doubt is why a checkpoint with a valid signature of its log was refused for good.
type Doubt string

// The doubts.
const (
	// Fork: the log signed two trees of one size. The two checkpoints alone prove it, to anybody.
	Fork Doubt = "fork"
	// Unproven: the proof that came with the checkpoint does not hold. Either the log was rewritten, or whoever sent
	// it made up the proof: the log has to show one that holds.
	Unproven Doubt = "unproven"
	// Lost: the witness's own cosignature is on a checkpoint after the newest that it remembers. Its memory was set
	// back, or its key is used elsewhere; it can't be relied on any more.
	Lost Doubt = "lost"
)

// Evidence is what an inconsistency shows itself by.
type Evidence struct {
	Doubt     Doubt
	Held      []byte // the checkpoint that the witness remembers; empty when it has none
	Submitted []byte // the one that does not go with it, with its signatures that were verified
}

// Decision is what a witness does about a request.
type Decision struct {
	Verdict  Verdict
	Next     Seen      // for Cosign: what to remember, durably, before the answer leaves
	Text     string    // for Cosign: of the note to be cosigned
	Size     int64     // for Conflict: what is remembered
	Evidence *Evidence // what to keep and raise an alarm about, or nil
	Err      error     // why, when it is not Cosign
}

func refuse(v Verdict, format string, args ...any) Decision {
	return Decision{Verdict: v, Err: fmt.Errorf(format, args...)}
}

// Decide decides about a request to cosign a checkpoint of the log: https://c2sp.org/tlog-witness, add-checkpoint. It is pure:
// the caller holds on to seen until Decision.Next is durable. Own verifies what the witness itself signs.
func Decide(l Log, own Verifier, seen Seen, r Request) Decision {
	if r.Origin() != l.Name() {
		return refuse(UnknownOrigin, "the log %q is not one that this witness is for", r.Origin())
	}
	next, text, err := open(l, r.Checkpoint)
	switch {
	case fault.KindOf(err) == fault.Denied:
		return refuse(BadSignature, "%w", err)
	case err != nil:
		return refuse(Malformed, "%w", err)
	case r.Old > next.Size:
		return refuse(Malformed, "the old size %d is larger than that of the checkpoint, %d", r.Old, next.Size)
	}
	if d, doubtful := doubt(own, seen, next, r.Checkpoint); doubtful {
		return d
	}
	if r.Old != seen.Size {
		d := refuse(Conflict, "the newest checkpoint that was cosigned has size %d, not %d", seen.Size, r.Old)
		d.Size = seen.Size
		return d
	}
	if err := follows(seen, next, r.Proof); err != nil {
		d := refuse(BadProof, "the tree of %d entries is not proven to begin with that of %d: %w", next.Size, seen.Size, err)
		if seen.Size > 0 && next.Size > seen.Size {
			d.Evidence = &Evidence{Unproven, seen.Note, next.Note}
		}
		return d
	}
	return Decision{Verdict: Cosign, Next: next, Text: text}
}

// doubt finds what can't be true whatever proof there is.
func doubt(own Verifier, seen, next Seen, submitted []byte) (Decision, bool) {
	forked := next.Size == seen.Size && next.Root != seen.root()
	if next.Size > seen.Size || forked {
		if mine, err := cosignatures(submitted, own); err == nil && len(mine) > 0 {
			d := refuse(Forgotten, "this witness cosigned a checkpoint of size %d, and remembers size %d: its memory was set back", next.Size, seen.Size)
			d.Evidence = &Evidence{Lost, seen.Note, With(next.Note, mine...)}
			return d, true
		}
	}
	if !forked {
		return Decision{}, false
	}
	d := refuse(Conflict, "the log has signed two trees of %d entries", next.Size)
	d.Size = seen.Size
	d.Evidence = &Evidence{Fork, seen.Note, next.Note}
	return d, true
}

// follows checks that the next tree begins with the one that is remembered.
func follows(seen, next Seen, proof tlog.TreeProof) error {
	if seen.Size == 0 || seen.Size == next.Size { // any tree begins with the empty one, and with itself
		if len(proof) > 0 {
			return errors.New("the proof should be empty")
		}
		return nil
	}
	return tlog.CheckTree(proof, next.Size, next.Root, seen.Size, seen.Root)
}

// open reads a checkpoint of the log, and keeps of its signatures the log's. It has kind fault.Denied when the log has not
// signed it. Unlike ledger.ParseCheckpoint it takes extension lines: a witness makes no statement about them.
func open(l Log, signed []byte) (Seen, string, error) {
	n, err := note.Open(signed, note.VerifierList(l.Verifier))
	if err != nil {
		_, unverified := errors.AsType[*note.UnverifiedNoteError](err)
		_, invalid := errors.AsType[*note.InvalidSignatureError](err)
		if unverified || invalid {
			return Seen{}, "", fault.Errorf(fault.Denied, "the checkpoint is not signed by %s+%08x", l.Name(), l.KeyHash())
		}
		return Seen{}, "", fault.Errorf(fault.Invalid, "the checkpoint is not a signed note: %w", err)
	}
	var c formats.Checkpoint
	rest, err := c.Unmarshal([]byte(n.Text))
	if err != nil || len(c.Hash) != tlog.HashSize || int64(c.Size) < 0 || string(c.Marshal())+string(rest) != n.Text || c.Origin != l.Name() {
		return Seen{}, "", fault.Errorf(fault.Invalid, "the signed note is not a checkpoint of %s", l.Name())
	}
	own := fmt.Appendf(nil, "%s\n— %s %s\n", n.Text, n.Sigs[0].Name, n.Sigs[0].Base64)
	return Seen{int64(c.Size), tlog.Hash(c.Hash), own}, n.Text, nil
}
