package witness_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	formatslog "github.com/transparency-dev/formats/log"
	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/ledger/ledgertest"
	"github.com/invarhq/invar/ledger/witness"
)

const origin = "invar.example/ledger"

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// logKey is the key of the logs in these tests, as a witness knows it.
type logKey struct {
	ledgertest.Key
	Log witness.Log
}

func newLogKey(t testing.TB) logKey {
	t.Helper()
	k := ledgertest.NewKey(t, origin)
	l, err := witness.ParseLog(k.VKey)
	if err != nil {
		t.Fatal(err)
	}
	return logKey{k, l}
}

// request asks for the newest checkpoint of a log.
func request(t testing.TB, log *ledger.Log, old int64) witness.Request {
	t.Helper()
	r := witness.Request{Old: old, Checkpoint: log.Checkpoint()}
	proof, err := log.ProveConsistency(t.Context(), old, log.Size())
	if err != nil {
		t.Fatal(err)
	}
	r.Proof = proof
	return r
}

func newKey(t testing.TB, name string) witness.Key {
	t.Helper()
	skey, err := witness.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	k, err := witness.ParseKey(skey)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// cosign does as a witness does that remembers seen.
func cosign(t testing.TB, k logKey, w witness.Key, seen *witness.Seen, r witness.Request) witness.Decision {
	t.Helper()
	d := witness.Decide(k.Log, w.Verifier(), *seen, r)
	if d.Verdict == witness.Cosign {
		*seen = d.Next
	}
	return d
}

func TestWitnessFollowsALogThatGrows(t *testing.T) {
	k, w := newLogKey(t), newKey(t, "witness.example/w1")
	log := k.NewLog(t, "entry", 1)
	var seen witness.Seen
	for range 70 {
		old := seen.Size
		if d := cosign(t, k, w, &seen, request(t, log, old)); d.Verdict != witness.Cosign {
			t.Fatalf("from %d to %d: %v, %v", old, log.Size(), d.Verdict, d.Err)
		}
		ledgertest.Grow(t, log, "entry", 1+int(log.Size())%7)
	}
}

func TestWitnessAnswers(t *testing.T) {
	k, w := newLogKey(t), newKey(t, "witness.example/w1")
	log, fork := k.NewLog(t, "entry", 10), k.NewLog(t, "other", 10)
	var seen witness.Seen
	cosign(t, k, w, &seen, request(t, log, 0))
	older := request(t, log, 10)
	ledgertest.Grow(t, log, "entry", 5)
	ledgertest.Grow(t, fork, "other", 5)
	newer := request(t, log, 10)
	with := func(change func(r *witness.Request)) witness.Request {
		r := newer
		r.Proof = append(r.Proof[:0:0], r.Proof...)
		change(&r)
		return r
	}
	stranger := newLogKey(t)
	signedBy := func(text string) []byte {
		b, err := note.Sign(&note.Note{Text: text}, k.Signer)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	text, _, _ := strings.Cut(string(newer.Checkpoint), "\n\n")
	for name, c := range map[string]struct {
		request witness.Request
		want    witness.Verdict
		doubt   witness.Doubt
	}{
		"a tree that grew":             {newer, witness.Cosign, ""},
		"the same again":               {older, witness.Cosign, ""},
		"extension lines":              {with(func(r *witness.Request) { r.Checkpoint = signedBy(text + "\nextension\n") }), witness.Cosign, ""},
		"a stale old size":             {request(t, log, 7), witness.Conflict, ""},
		"nothing known of it":          {request(t, log, 0), witness.Conflict, ""},
		"a hash flipped":               {with(func(r *witness.Request) { r.Proof[0][0] ^= 1 }), witness.BadProof, witness.Unproven},
		"no proof":                     {with(func(r *witness.Request) { r.Proof = nil }), witness.BadProof, witness.Unproven},
		"another history":              {request(t, fork, 10), witness.BadProof, witness.Unproven},
		"a proof that should be empty": {witness.Request{Old: 10, Proof: newer.Proof, Checkpoint: older.Checkpoint}, witness.BadProof, ""},
		"the old size is beyond":       {with(func(r *witness.Request) { r.Old = 16 }), witness.Malformed, ""},
		"another origin":               {with(func(r *witness.Request) { r.Checkpoint = append([]byte("x"), r.Checkpoint...) }), witness.UnknownOrigin, ""},
		"the signature of another key": {request(t, stranger.NewLog(t, "entry", 15), 10), witness.BadSignature, ""},
		"a signature over something else": {with(func(r *witness.Request) {
			r.Checkpoint = bytes.Replace(r.Checkpoint, []byte("\n15\n"), []byte("\n16\n"), 1)
		}), witness.BadSignature, ""},
		"not a note":                   {with(func(r *witness.Request) { r.Checkpoint = []byte(origin + "\n") }), witness.Malformed, ""},
		"signed, but not a checkpoint": {with(func(r *witness.Request) { r.Checkpoint = signedBy(origin + "\nmany\nAAAA\n") }), witness.Malformed, ""},
		"signed, but in another spelling": {with(func(r *witness.Request) {
			r.Checkpoint = signedBy(strings.Replace(text, "\n15\n", "\n015\n", 1) + "\n")
		}), witness.Malformed, ""},
		"the empty tree, when none is known": {witness.Request{Checkpoint: k.NewLog(t, "", 0).Checkpoint()}, witness.Conflict, ""},
		"a cosignature of somebody else on it": {with(func(r *witness.Request) {
			r.Checkpoint = append(r.Checkpoint[:len(r.Checkpoint):len(r.Checkpoint)], newKey(t, "w2").Cosign(text+"\n", noon)...)
		}), witness.Cosign, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := witness.Decide(k.Log, w.Verifier(), seen, c.request)
			if d.Verdict != c.want {
				t.Fatalf("%v, %v; want %v", d.Verdict, d.Err, c.want)
			}
			if d.Verdict == witness.Conflict && d.Size != 10 {
				t.Errorf("size %d is remembered, want 10", d.Size)
			}
			switch {
			case c.doubt == "" && d.Evidence != nil:
				t.Errorf("it raised an alarm: %s", d.Evidence.Doubt)
			case c.doubt != "" && (d.Evidence == nil || d.Evidence.Doubt != c.doubt || !bytes.Equal(d.Evidence.Held, seen.Note) || !bytes.Equal(d.Evidence.Submitted, c.request.Checkpoint)):
				t.Errorf("evidence %+v, want %s with both checkpoints", d.Evidence, c.doubt)
			}
		})
	}
}

func TestTwoTreesOfOneSizeAreAFork(t *testing.T) {
	k, w := newLogKey(t), newKey(t, "w")
	log, fork := k.NewLog(t, "entry", 10), k.NewLog(t, "other", 10)
	var seen witness.Seen
	cosign(t, k, w, &seen, request(t, log, 0))
	for _, old := range []int64{0, 3, 10} { // whatever the old size: the two checkpoints are proof enough
		d := witness.Decide(k.Log, w.Verifier(), seen, request(t, fork, old))
		if d.Verdict != witness.Conflict || d.Evidence == nil || d.Evidence.Doubt != witness.Fork {
			t.Fatalf("old %d: %v, %+v", old, d.Verdict, d.Evidence)
		}
		for _, signed := range [][]byte{d.Evidence.Held, d.Evidence.Submitted} { // anybody can check them
			if c, err := ledger.ParseCheckpoint(signed, k.Verifier); err != nil || c.Size != 10 {
				t.Errorf("%+v, %v", c, err)
			}
		}
	}
}

func TestWitnessWhoseMemoryWasSetBackSignsNoMore(t *testing.T) {
	k, w := newLogKey(t), newKey(t, "w")
	log := k.NewLog(t, "entry", 5)
	var seen witness.Seen
	cosign(t, k, w, &seen, request(t, log, 0))
	backup := seen
	ledgertest.Grow(t, log, "entry", 5)
	d := cosign(t, k, w, &seen, request(t, log, 5))
	r := request(t, log, 5)
	r.Checkpoint = append(r.Checkpoint, w.Cosign(d.Text, noon)...)
	d = witness.Decide(k.Log, w.Verifier(), backup, r)
	if d.Verdict != witness.Forgotten || d.Evidence == nil || d.Evidence.Doubt != witness.Lost {
		t.Errorf("%v, %+v", d.Verdict, d.Evidence)
	}
	if d := witness.Decide(k.Log, w.Verifier(), seen, r); d.Verdict != witness.Conflict { // 5 is no longer what it remembers
		t.Errorf("with its memory: %v", d.Verdict)
	}
}

// The verifiers and the policy of transparency-dev/formats agree with ours on what ours signs.
func TestCosignaturesAreThoseOfOthers(t *testing.T) {
	k, w := newLogKey(t), newKey(t, "witness.example/w1")
	signed := k.NewLog(t, "entry", 3).Checkpoint()
	text, _, _ := strings.Cut(string(signed), "\n\n")
	cosigned := append(bytes.Clone(signed), w.Cosign(text+"\n", noon)...)

	theirs, err := formats.NewVerifierForCosignatureV1(w.Verifier().String())
	if err != nil {
		t.Fatal(err)
	}
	c, _, n, err := formatslog.ParseCheckpoint(cosigned, origin, k.Verifier, theirs)
	if err != nil || c.Size != 3 || len(n.Sigs) != 2 {
		t.Fatalf("%+v, %v", c, err)
	}
	if at, err := formats.CoSigV1Timestamp(n.Sigs[1]); err != nil || !at.Equal(noon) {
		t.Errorf("cosigned at %v, %v", at, err)
	}
}

// A witness of theirs, with either algorithm, counts in our policy.
func TestCosignaturesOfOthersCount(t *testing.T) {
	k := newLogKey(t)
	signed := k.NewLog(t, "entry", 3).Checkpoint()
	edSkey, edVkey, err := note.GenerateKey(nil, "witness.example/ed25519")
	if err != nil {
		t.Fatal(err)
	}
	edVkey, err = formats.VKeyToCosignatureV1(edVkey)
	if err != nil {
		t.Fatal(err)
	}
	ed, err := formats.NewSignerForCosignatureV1(edSkey)
	if err != nil {
		t.Fatal(err)
	}
	mlSkey, mlVkey, err := formats.GenerateMLDSAKey("witness.example/mldsa")
	if err != nil {
		t.Fatal(err)
	}
	ml, err := formats.NewMLDSASigner(mlSkey)
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(signed, note.VerifierList(k.Verifier))
	if err != nil {
		t.Fatal(err)
	}
	cosigned, err := note.Sign(n, ed, ml)
	if err != nil {
		t.Fatal(err)
	}
	policy := policyOf(t, 2, edVkey, mlVkey)
	r, err := witness.Check(cosigned, k.Verifier, policy)
	if err != nil || !r.Quorum || len(r.By) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, by := range r.By {
		if since := time.Since(by.Time); since < 0 || since > time.Minute {
			t.Errorf("%s cosigned at %v", by.Witness.Name(), by.Time)
		}
	}
}

func policyOf(t testing.TB, least int, vkeys ...string) witness.Policy {
	t.Helper()
	var all []witness.Witness
	for _, vkey := range vkeys {
		v, err := witness.ParseVerifier(vkey)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, witness.Witness{Verifier: v})
	}
	p, err := witness.NewPolicy(least, all...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestQuorumIsMetByEnoughWitnesses(t *testing.T) {
	k := newLogKey(t)
	signed := k.NewLog(t, "entry", 3).Checkpoint()
	text, _, _ := strings.Cut(string(signed), "\n\n")
	keys := []witness.Key{newKey(t, "a"), newKey(t, "b"), newKey(t, "c")}
	policy := policyOf(t, 2, keys[0].Verifier().String(), keys[1].Verifier().String(), keys[2].Verifier().String())
	for _, c := range []struct {
		by   []int
		want bool
	}{{nil, false}, {[]int{0}, false}, {[]int{1, 1}, false}, {[]int{0, 2}, true}, {[]int{0, 1, 2}, true}} {
		cosigned := bytes.Clone(signed)
		for _, i := range c.by {
			cosigned = append(cosigned, keys[i].Cosign(text+"\n", noon)...)
		}
		r, err := witness.Check(cosigned, k.Verifier, policy)
		if err != nil || r.Quorum != c.want {
			t.Errorf("by %v: quorum %v, %v; want %v", c.by, r.Quorum, err, c.want)
		}
	}
}

func TestCheckRefusesASignatureThatIsNoneOfItsWitness(t *testing.T) {
	k, w := newLogKey(t), newKey(t, "w")
	log := k.NewLog(t, "entry", 3)
	other, _, _ := strings.Cut(string(k.NewLog(t, "entry", 2).Checkpoint()), "\n\n")
	forged := append(log.Checkpoint(), w.Cosign(other+"\n", noon)...) // of another checkpoint
	if _, err := witness.Check(forged, k.Verifier, policyOf(t, 1, w.Verifier().String())); !errors.Is(err, fault.Corrupt) {
		t.Errorf("accepted: %v", err)
	}
	if _, err := witness.Answered(log.Checkpoint(), w.Cosign(other+"\n", noon), w.Verifier()); !errors.Is(err, fault.Corrupt) {
		t.Errorf("accepted as an answer: %v", err)
	}
	if r, err := witness.Check(forged, k.Verifier, policyOf(t, 0)); err != nil || !r.Quorum { // nobody asks for it
		t.Errorf("%+v, %v", r, err)
	}
}

func TestAnswersOfStrangersAreIgnored(t *testing.T) {
	k, w, x := newLogKey(t), newKey(t, "w"), newKey(t, "x")
	signed := k.NewLog(t, "entry", 3).Checkpoint()
	text, _, _ := strings.Cut(string(signed), "\n\n")
	answer := append(x.Cosign(text+"\n", noon), w.Cosign(text+"\n", noon)...)
	c, err := witness.Answered(signed, answer, w.Verifier())
	if err != nil || c.Witness.Name() != "w" || !c.Time.Equal(noon) {
		t.Fatalf("%+v, %v", c, err)
	}
	if r, err := witness.Check(witness.With(signed, c), k.Verifier, policyOf(t, 1, w.Verifier().String())); err != nil || !r.Quorum {
		t.Errorf("%+v, %v", r, err)
	}
	for _, answer := range [][]byte{nil, []byte("200 OK\n"), x.Cosign(text+"\n", noon), []byte("— w AAAA\n")} {
		if _, err := witness.Answered(signed, answer, w.Verifier()); !errors.Is(err, fault.Corrupt) {
			t.Errorf("%q was accepted", answer)
		}
	}
}
