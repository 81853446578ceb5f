package evidence_test

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/evidence"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/state"
)

// FuzzDecodeManifest: what is accepted has one spelling.
func FuzzDecodeManifest(f *testing.F) {
	m := evidence.Manifest{V: 1, Log: "vm/log", VKey: "k", Scope: evidence.Scope{From: 1, To: 3, Env: "prod"}, Size: 4, Root: "r", Tool: "dev",
		At: time.Date(2026, 11, 22, 23, 0, 0, 0, time.UTC), Files: []evidence.File{{Path: "a/b.json", Digest: digest.Of([]byte("x")), Bytes: 1}}}
	good, err := m.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.Replace(good, []byte("a/b.json"), []byte("../b.json"), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := evidence.DecodeManifest(b)
		if err != nil {
			return
		}
		if again, err := m.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%q became %q, %v", b, again, err)
		}
		for _, file := range m.Files {
			if strings.HasPrefix(file.Path, "/") || strings.Contains(file.Path, "..") {
				t.Errorf("path %q", file.Path)
			}
		}
	})
}

// FuzzDecodePopulation: what is accepted has one spelling.
func FuzzDecodePopulation(f *testing.F) {
	good, err := evidence.Population{V: 1, Log: "vm/log", Filter: evidence.Filter, To: evidence.Tree{Size: 3, Root: "r"}, AsOf: evidence.Tree{Size: 3, Root: "r"},
		Count: 2, Digest: digest.Of(nil)}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := evidence.DecodePopulation(b)
		if err != nil {
			return
		}
		if again, err := p.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%q became %q, %v", b, again, err)
		}
	})
}

// FuzzDecodeMapping: it never panics, and what it accepts can be written and read again.
func FuzzDecodeMapping(f *testing.F) {
	b, err := os.ReadFile("controls.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := evidence.DecodeMapping(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := evidence.DecodeMapping(again); err != nil {
			t.Errorf("%q: %v", again, err)
		}
	})
}

// FuzzOpenReceipt: nothing opens but what the log signed.
func FuzzOpenReceipt(f *testing.F) {
	skey, vkey, err := ledger.GenerateKey("vm/log")
	if err != nil {
		f.Fatal(err)
	}
	signer, verifier, err := ledger.ParseKey(skey)
	if err != nil {
		f.Fatal(err, vkey)
	}
	want := evidence.Receipt{Log: "vm/log", Entry: 7, Manifest: digest.Of([]byte("m"))}
	signed, err := want.Sign(signer)
	if err != nil {
		f.Fatal(err)
	}
	if got, err := evidence.OpenReceipt(signed, verifier); err != nil || got != want {
		f.Fatalf("got %v, %v", got, err)
	}
	odd, err := note.Sign(&note.Note{Text: "vm/log\n7\nAAAA\n"}, signer) // what a checkpoint looks like
	if err != nil {
		f.Fatal(err)
	}
	if _, err := evidence.OpenReceipt(odd, verifier); err == nil {
		f.Fatal("a checkpoint was taken for a receipt")
	}
	f.Add(signed)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := evidence.OpenReceipt(b, verifier)
		if err == nil && r != want {
			t.Errorf("opened %q as %v", b, r)
		}
	})
}

// Every kind of entry answers a control, or is said to answer none; and every kind that the mapping names is one.
func TestEveryKindIsMapped(t *testing.T) {
	m := evidence.Controls()
	named := map[state.Kind]bool{}
	for _, k := range m.Operational {
		named[k] = true
	}
	seen := map[string]bool{}
	for _, c := range m.Controls {
		if seen[c.Name()] || c.ID == "" || c.Title == "" || c.Answer == "" || len(c.Kinds) == 0 {
			t.Errorf("control %q is there twice, or lacks something", c.Name())
		}
		seen[c.Name()] = true
		for _, k := range c.Kinds {
			named[k] = true
		}
	}
	known := state.Kinds()
	for _, k := range known {
		if !named[k.Kind] {
			t.Errorf("kind %s is in no control of controls.json, nor among its operational ones", k.Kind)
		}
	}
	for k := range named {
		if !slices.ContainsFunc(known, func(i state.KindInfo) bool { return i.Kind == k }) {
			t.Errorf("controls.json names kind %s, which there is not", k)
		}
	}
}

// The controls that issue 3 names are all there.
func TestTheMappingHasTheControlsThatAuditorsAskFor(t *testing.T) {
	has := map[string]bool{}
	for _, c := range evidence.Controls().Controls {
		has[c.Name()] = true
	}
	for framework, ids := range map[string]string{
		"NIST SP 800-53r5": "CM-2 CM-3 CM-3(2) CM-5 CM-5(1) CM-6 CM-8 CM-14 AU-2 AU-3 AU-8 AU-9 AU-10 AU-12 SI-7 AC-3 AC-5 AC-6(9) SA-10 SR-4",
		"SOC 2":            "CC8.1", "PCI DSS 4.0.1": "6.5.1 10.2 10.3 11.5.2", "ISO/IEC 27001:2022": "A.8.9 A.8.15 A.8.32",
		"21 CFR Part 11": "11.10(e) 11.50 11.70",
	} {
		for id := range strings.FieldsSeq(ids) {
			if !has[framework+" "+id] {
				t.Errorf("%s %s is missing", framework, id)
			}
		}
	}
	if !has["DORA RTS 2024/1774 Art. 17"] {
		t.Error("DORA RTS Art. 17 is missing")
	}
}

func TestControlsDocUpToDate(t *testing.T) {
	const file = "../docs/controls.md"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(evidence.ControlsDoc()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != evidence.ControlsDoc() {
		t.Errorf("%s is stale: UPDATE=1 go test -run UpToDate ./evidence (%v)", file, err)
	}
}

// The vector by which others can check their own way of drawing.
func TestSampleIsTheOneThatAnybodyDraws(t *testing.T) {
	population := digest.Of([]byte("population"))
	for _, c := range []struct {
		count, n int
		want     []int
	}{{1000, 5, []int{141, 605, 112, 553, 80}}, {3, 5, []int{1, 2, 3}}, {0, 5, []int{}}} {
		got := evidence.Sample("dice: 4 1 6 6 2 3", population, c.count, c.n)
		if !slices.Equal(got, c.want) {
			t.Errorf("of %d: drew %v, want %v", c.count, got, c.want)
		}
	}
}

// Every number is as likely as any other, and a number is drawn once.
func TestSampleIsFair(t *testing.T) {
	const count, draws = 7, 7000
	var hits [count + 1]int
	for i := range draws {
		s := evidence.Sample(string(rune(i)), digest.Of([]byte{byte(i), byte(i >> 8)}), count, 3)
		if len(s) != 3 || s[0] == s[1] || s[1] == s[2] || s[0] == s[2] {
			t.Fatalf("drew %v", s)
		}
		for _, n := range s {
			hits[n]++
		}
	}
	for n := 1; n <= count; n++ { // 3000 each, standard deviation 41
		if hits[n] < 2800 || hits[n] > 3200 {
			t.Errorf("%d was drawn %d times, want about %d", n, hits[n], draws*3/count)
		}
	}
}
