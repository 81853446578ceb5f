package witness_test

import (
	"bytes"
	"strconv"
	"testing"

	"github.com/invarhq/invar/ledger/witness"
)

// fixedLog is the key of a log.
const fixedLog = "invar.example/ledger+3396c23e+AQOhB7+zzhC+HXDdGOdLwJln5PYwm6UNXx3chmQSVTG4"

func FuzzRequest(f *testing.F) {
	k := newLogKey(f)
	log := k.NewLog(f, "entry", 5)
	f.Add(request(f, log, 0).Marshal())
	f.Add(request(f, log, 3).Marshal())
	f.Add(request(f, log, 5).Marshal())
	f.Add([]byte("old 0\n\n"))
	f.Add([]byte("old 00\n\nx\n"))
	f.Add([]byte("old -1\n\nx\n"))
	f.Add([]byte("old 9223372036854775808\n\n"))
	own := newKey(f, "w").Verifier()
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := witness.ParseRequest(body)
		if err != nil {
			return
		}
		if again := r.Marshal(); !bytes.Equal(again, body) {
			t.Errorf("%q was read as %+v, which is written %q", body, r, again)
		}
		if d := witness.Decide(k.Log, own, witness.Seen{}, r); d.Verdict == witness.Cosign && r.Old != 0 {
			t.Errorf("%q was cosigned", body)
		}
	})
}

func FuzzConflict(f *testing.F) {
	f.Add([]byte("7\n"))
	f.Add([]byte("07\n"))
	f.Add([]byte("7"))
	f.Fuzz(func(t *testing.T, body []byte) {
		n, err := witness.ParseConflict(body)
		if err == nil && (n < 0 || string(body) != strconv.FormatInt(n, 10)+"\n") {
			t.Errorf("%q was read as %d", body, n)
		}
	})
}

func FuzzVerifierKey(f *testing.F) {
	f.Add(newKey(f, "w").Verifier().String())
	f.Add(fixedLog)
	f.Add("w+00000000+BA==")
	f.Fuzz(func(t *testing.T, vkey string) {
		if v, err := witness.ParseVerifier(vkey); err == nil && v.String() != vkey {
			t.Errorf("%q was read as %q", vkey, v)
		}
	})
}

func FuzzKey(f *testing.F) {
	skey, err := witness.GenerateKey("w")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(skey)
	f.Add("PRIVATE+KEY+w+00000000+BA==")
	f.Fuzz(func(t *testing.T, skey string) {
		if k, err := witness.ParseKey(skey); err == nil {
			if _, err := witness.ParseVerifier(k.Verifier().String()); err != nil {
				t.Errorf("%q has the verifier %q: %v", skey, k.Verifier(), err)
			}
		}
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add(expand(f, "log "+fixedLog+" https://log.example\nwitness a $A https://a.example\nwitness b $B\ngroup g 2 a b\nquorum g\n"))
	f.Add("quorum none\n")
	f.Add("# \xff\n\tquorum\tnone")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := witness.ParsePolicy(text)
		if err != nil {
			return
		}
		again, err := witness.ParsePolicy(p.String())
		if err != nil || again.String() != p.String() {
			t.Errorf("%q was read as\n%s, and that as\n%s, %v", text, p, again, err)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	k, w := newLogKey(f), newKey(f, "w")
	signed := k.NewLog(f, "entry", 2).Checkpoint()
	f.Add([]byte("— w AAAAAAAA\n"))
	f.Add(w.Cosign("another text\n", noon))
	f.Fuzz(func(t *testing.T, answer []byte) {
		if c, err := witness.Answered(signed, answer, w.Verifier()); err == nil {
			t.Errorf("%q was accepted as a cosignature at %v", answer, c.Time)
		}
	})
}
