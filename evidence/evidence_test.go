package evidence_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/evidence"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/policy"
	"github.com/invarhq/invar/state"
)

func TestAGoodBundleVerifies(t *testing.T) {
	w := governed(t)
	r := w.verify(w.export())
	if !r.OK() || r.Population.Count != 2 {
		t.Fatalf("%d moves\n%s", r.Population.Count, lines(r.Findings))
	}
	counts := map[string]int{}
	for _, c := range r.Checks {
		counts[c.Check] = c.Count
	}
	for check, want := range map[string]int{"signature": 2, "policy": 2, "judged": 1, "separation": 1, "tree": len(w.entries), "fold": len(w.entries)} {
		if counts[check] != want {
			t.Errorf("%s looked at %d, want %d", check, counts[check], want)
		}
	}
}

// The same ledger, exported at the same time, gives the same bytes.
func TestAnExportIsReproducible(t *testing.T) {
	w := governed(t)
	a, b := w.export(), w.export()
	for _, p := range files(a) {
		if p != evidence.FileNote && !bytes.Equal(a[p].Data, b[p].Data) {
			t.Errorf("%s differs", p)
		}
	}
}

// A mutated ledger is signed again with the log's own key: its tree is good, and only what its entries say gives it away.
func TestAServerThatLiesIsFoundOut(t *testing.T) {
	for _, c := range []struct {
		name string
		lie  func(w *world) (guilty state.Entry)
		want string
	}{
		{"a self-approval", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			w.approve("bob")
			e := w.approve("alice")
			w.carryOut("dave", w.shop("prod", "2", 2))
			return e
		}, "keeps author and approver apart"},
		{"a change without enough approvals", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			w.approve("bob")
			return w.carryOut("dave", w.shop("prod", "2", 2))
		}, "without the approvals that the rules ask for: prod: 2 of group.approvers"},
		{"a moved signature", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			first := w.approve("bob").Data.(state.ChangeApprove)
			sig := w.entries[len(w.entries)-1].Sigs[0]
			w.request(person("alice"), w.shop("prod", "3", 2))
			e := w.approval("bob", first.Statement, sig)
			w.approve("carol")
			w.carryOut("dave", w.shop("prod", "3", 2))
			return e
		}, "the signed statement is about something else"},
		{"a signature by another's key", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			s := w.statement("bob")
			text, sig := sign(s, signerOf("mallory"), s.Meaning.Namespace())
			return w.approval("bob", text, sig)
		}, "none of bob's"},
		{"a signature in another namespace", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			text, sig := sign(w.statement("bob"), signerOf("bob"), "file")
			sig.Namespace = change.Approval.Namespace()
			return w.approval("bob", text, sig)
		}, "namespace"},
		{"a rejection taken for an approval", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			s := w.statement("bob")
			s.Meaning = change.Rejection
			text, sig := sign(s, signerOf("bob"), s.Meaning.Namespace())
			return w.approval("bob", text, sig)
		}, "the signed statement is about something else"},
		{"a back-dated approval", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			w.approve("carol")
			s := w.statement("bob")
			s.SignedAt = w.at.Add(3 * time.Hour) // signed when it had been carried out already
			text, sig := sign(s, signerOf("bob"), s.Meaning.Namespace())
			e := w.approval("bob", text, sig)
			w.carryOut("dave", w.shop("prod", "2", 2))
			return e
		}, "in the future of"},
		{"an approval from before the request", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			s := w.statement("bob")
			s.SignedAt = w.at.Add(-time.Hour)
			text, sig := sign(s, signerOf("bob"), s.Meaning.Namespace())
			return w.approval("bob", text, sig)
		}, "when what it is about came to be"},
		{"an approval by a key that was taken away", func(w *world) state.Entry {
			d := rules()
			d.Principals[1].SSHKeys = []string{keyLine("bob's new key")}
			w.define(person("root"), d)
			w.request(person("alice"), w.shop("prod", "2", 2))
			return w.approve("bob")
		}, "none of bob's"},
		{"an approval by a key that was taken away before the change was carried out", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			w.approve("bob")
			w.approve("carol")
			d := rules()
			d.Principals[1].SSHKeys = []string{keyLine("bob's new key")}
			w.define(person("root"), d)
			return w.carryOut("dave", w.shop("prod", "2", 2))
		}, "without the approvals that the rules ask for"},
		{"an expired change", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			w.approve("bob")
			w.approve("carol")
			w.later(25 * time.Hour)
			return w.carryOut("dave", w.shop("prod", "2", 2))
		}, "had expired at"},
		{"a change carried out by its author", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			w.approve("bob")
			w.approve("carol")
			return w.carryOut("alice", w.shop("prod", "2", 2))
		}, "is author of this change"},
		{"a change carried out by the server where no rule says so", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			w.approve("bob")
			w.approve("carol")
			r := w.shop("prod", "2", 2)
			w.judge("prod", r, w.now.LastChange(), state.PhaseApply)
			return w.apply(system, r, state.Governed{Change: w.now.LastChange()}, "")
		}, "no rule lets it"},
		{"a head that the server moved", func(w *world) state.Entry {
			return w.apply(system, w.shop("prod", "2", 2), state.Governed{}, "")
		}, "the server moved the head by itself"},
		{"a move by somebody who may not", func(w *world) state.Entry {
			return w.apply(person("mallory"), w.shop("staging", "1", 2), state.Governed{}, "")
		}, "mallory lacked the permission apply"},
		{"an emergency by somebody who may not", func(w *world) state.Entry {
			r := w.shop("prod", "2", 2)
			w.known(r)
			w.judge("prod", r, 0, state.PhaseApply)
			return w.apply(person("dave"), r, state.Governed{Emergency: true, ReviewBy: w.at.Add(time.Hour)}, "it burns")
		}, "dave lacked the permission breakglass"},
		{"a decision that was never made", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			w.approve("bob")
			w.approve("carol")
			return w.apply(person("dave"), w.shop("prod", "2", 2), state.Governed{Change: w.now.LastChange()}, "")
		}, `policy "baseline" in force had not judged it`},
		{"a swapped policy bundle", func(w *world) state.Entry {
			r := w.shop("prod", "2", 2)
			w.request(person("alice"), r)
			w.approve("bob")
			w.approve("carol")
			lax := func(j *judgement) {
				j.files = policy.Files{"main.rego": []byte("package prod\n\nimport rego.v1\n\ndeny contains \"never\" if false\n")}
			}
			e := w.judge("prod", r, w.now.LastChange(), state.PhaseApply, lax)
			w.apply(person("dave"), r, state.Governed{Change: w.now.LastChange()}, "")
			return e
		}, `policy "baseline" in force was`},
		{"an expired exception", func(w *world) state.Entry {
			w.later(10 * 24 * time.Hour)
			r := w.shop("prod", "2", 1)
			backdated := func(j *judgement) { j.input.Now = start.Add(time.Hour) }
			w.request(person("alice"), r, backdated)
			return w.entries[len(w.entries)-1]
		}, "and recorded 242h"},
		{"an exception that was prolonged", func(w *world) state.Entry {
			w.later(10 * 24 * time.Hour)
			r := w.shop("prod", "2", 1)
			w.request(person("alice"), r, func(j *judgement) { j.exceptions[0].Expires = w.at.Add(time.Hour) })
			return w.entries[len(w.entries)-1]
		}, `exception "one-more-week" is another one than that in force`},
		{"a decision turned round", func(w *world) state.Entry {
			e := w.judge("prod", w.shop("prod", "2", 2), 0, state.PhaseApply)
			d := e.Data.(state.PolicyDecision)
			d.Allowed = false
			w.entries[len(w.entries)-1].Data = d
			return e
		}, "says otherwise than the decision"},
		{"a decision on another release", func(w *world) state.Entry {
			w.request(person("alice"), w.shop("prod", "2", 2))
			w.approve("bob")
			w.approve("carol")
			other := w.shop("prod", "2", 3)
			w.judge("prod", other, w.now.LastChange(), state.PhaseApply)
			return w.apply(person("dave"), w.shop("prod", "2", 2), state.Governed{Change: w.now.LastChange()}, "")
		}, "and another was carried out"},
		{"a plan that hides something", func(w *world) state.Entry {
			r := w.shop("staging", "1", 2)
			d := w.known(r)
			p, _ := w.plan("staging", r, d)
			p.Items[0].Starts = 1
			b, err := digest.Canonical(p)
			if err != nil {
				t.Fatal(err)
			}
			body := w.keep(b, change.TypePlan)
			return w.add(person("dave"), "staging", state.Apply{App: "shop", Generation: 1, Release: d, Bundle: r.Bundle, Plan: body.Digest}, func(e *state.Entry) { e.Body = body })
		}, "is not what lies between the two releases"},
		{"a freeze", func(w *world) state.Entry {
			d := rules()
			d.Freezes = []platform.Freeze{{Name: "holidays", Kind: platform.FreezeDeny, Environments: []platform.Pattern{"staging"}, From: start, To: start.Add(1000 * time.Hour)}}
			w.define(person("root"), d)
			return w.apply(person("dave"), w.shop("staging", "1", 2), state.Governed{}, "")
		}, "the head moved in a freeze"},
		{"an emergency reviewed by a stranger", func(w *world) state.Entry {
			g := w.emergency()
			s := change.Statement{V: 1, Log: origin, Meaning: change.Review, Env: "prod", Generation: 2, Request: string(g.ID), Plan: g.Data.(state.Apply).Plan,
				Release: g.Data.(state.Apply).Release, Verdict: state.Accepted, Signer: "bob", SignedAt: w.at}
			text, sig := sign(s, signerOf("bob"), s.Meaning.Namespace())
			return w.add(person("bob"), "prod", state.ChangeReview{Generation: 2, Verdict: state.Accepted, Statement: text}, func(e *state.Entry) { e.Sigs = []state.Signature{sig} })
		}, "bob is not in group reviewers"},
		{"a measurement that the entry calls good, and the statement does not", func(w *world) state.Entry {
			return w.measured("dave", func(m *measurement) {
				m.found[0].Found = digest.Of([]byte("another root"))
				m.edit = func(e *state.Entry, d *state.Verify) {
					d.Result, d.Differ, e.Outcome = attest.AsReleased, nil, "as released"
				}
			})
		}, "the result is differs, says the statement, and as-released, says the entry"},
		{"a measurement that the statement calls good, and what it found is not", func(w *world) state.Entry {
			return w.measured("dave", func(m *measurement) {
				m.found[0].Found = digest.Of([]byte("another root"))
				m.lie = func(s *attest.Statement[attest.Verification]) {
					s.Predicate.Result, s.Predicate.Instances[0].Result = attest.AsReleased, attest.AsReleased
				}
				m.edit = func(e *state.Entry, d *state.Verify) { d.Result, d.Differ = attest.AsReleased, nil }
			})
		}, "is said to be as-released; what was found is differs"},
		{"a measurement of another release", func(w *world) state.Entry {
			return w.measured("dave", func(m *measurement) { m.of.Release = digest.Of([]byte("another release")) })
		}, "was in force"},
		{"a measurement with another subject", func(w *world) state.Entry {
			return w.measured("dave", func(m *measurement) {
				m.lie = func(s *attest.Statement[attest.Verification]) {
					s.Subject[1] = attest.Of("root web", digest.Of([]byte("another root")))
				}
			})
		}, "its subjects are not its release"},
		{"a measurement against a root that is not the release's", func(w *world) state.Entry {
			return w.measured("dave", func(m *measurement) { m.of.Components[0].Root = digest.Of([]byte("another root")) })
		}, "component web is not as the release has it"},
		{"a measurement that expects another root of an instance", func(w *world) state.Entry {
			return w.measured("dave", func(m *measurement) {
				m.found[0].Expected = digest.Of([]byte("another root"))
				m.found[0].Found = m.found[0].Expected
			})
		}, "instance web-aaaaaaaaaa is not what the ledger says of it"},
		{"a measurement that leaves an instance out", func(w *world) state.Entry {
			return w.measured("dave", func(m *measurement) { m.found = m.found[1:] })
		}, "instance web-aaaaaaaaaa ran, and the statement does not have it"},
		{"a measurement that names others than differ", func(w *world) state.Entry {
			return w.measured("dave", func(m *measurement) {
				m.found[0].Found = digest.Of([]byte("another root"))
				m.edit = func(_ *state.Entry, d *state.Verify) { d.Differ = []instance.ID{"web-bbbbbbbbbb"} }
			})
		}, "and the entry that 1 of 2 do, as [web-bbbbbbbbbb]"},
		{"a measurement in the name of somebody else", func(w *world) state.Entry {
			return w.measured("dave", func(m *measurement) { m.of.Who = "alice" })
		}, "it was asked for by alice, says the statement, and dave, says the entry"},
		{"a measurement that was made later than it was recorded", func(w *world) state.Entry {
			return w.measured("dave", func(m *measurement) { m.of.To = m.of.To.Add(time.Hour) })
		}, "and recorded at"},
		{"a measurement that another key signed", func(w *world) state.Entry {
			return w.measured("dave", func(m *measurement) {
				skey, _, err := ledger.GenerateKey(origin)
				if err != nil {
					w.t.Fatal(err)
				}
				m.skey = skey
			})
		}, "it is not signed with the log's key"},
		{"a measurement by somebody who may not", func(w *world) state.Entry {
			return w.measured("mallory", func(*measurement) {})
		}, "mallory lacked the permission verify"},
		{"a reproduction that differed, recorded as the same", func(w *world) state.Entry {
			return w.reproduced(state.Different, state.Same)
		}, "the result is different, says the statement, and same, says the entry"},
		{"a promotion of what did not run healthy for so long", func(w *world) state.Entry {
			return w.promotion(func(p *state.Promoted) { p.HealthyForMS = (2 * time.Hour).Milliseconds() })
		}, "has run healthy for 1h0m0s, since entry"},
		{"a promotion of what was not the head", func(w *world) state.Entry {
			return w.promotion(func(p *state.Promoted) { p.Generation = 2 })
		}, "environment prod is at generation 1; what was to be promoted is generation 2"},
		{"a promotion that is proven by other entries", func(w *world) state.Entry {
			return w.promotion(func(p *state.Promoted) { p.Completed-- })
		}, "it is said that prod@1 completed by entry"},
		{"a snapshot deleted by somebody who may not", func(w *world) state.Entry {
			return w.deletion("mallory")
		}, "mallory lacked the permission destroy"},
		{"an entry that does not follow", func(w *world) state.Entry {
			e := w.entry(person("dave"), "prod", state.ChangeWithdraw{Change: 1}) // it was carried out
			w.entries = append(w.entries, e)
			return e
		}, "change 1 is applied already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := governed(t)
			w.t = t
			guilty := c.lie(w)
			bad := w.verify(w.export()).Of(evidence.Failure)
			named := false
			for _, f := range bad {
				if len(f.Controls) == 0 {
					t.Errorf("no control for check %s", f.Check)
				}
				if f.ID == guilty.ID && strings.Contains(f.Message, c.want) {
					named = true
				} else if f.ID != guilty.ID {
					t.Logf("besides: %s", f)
				}
			}
			if !named {
				t.Errorf("want %s named: %s\n%s", guilty.ID, c.want, lines(bad))
			}
		})
	}
}

func TestAPromotionIsProvenAgain(t *testing.T) {
	w := governed(t)
	w.promotion(func(*state.Promoted) {})
	r := w.verify(w.export())
	if !r.OK() {
		t.Fatal(lines(r.Findings))
	}
	if !slices.ContainsFunc(r.Checks, func(c evidence.Checked) bool { return c.Check == "promotion" && c.Count == 1 }) {
		t.Errorf("not checked: %+v", r.Checks)
	}
}

// A good statement is counted, and is no finding; what was found is a gap, as is that nothing was.
func TestMeasurementsAreChecked(t *testing.T) {
	w := governed(t)
	w.measured("dave", func(*measurement) {})
	w.measured("dave", func(m *measurement) { m.found[1].Found = digest.Of([]byte("another root")) })
	w.measured("dave", func(m *measurement) { m.found, m.of.Detail = nil, "the host is away" })
	w.reproduced(state.Same, state.Same)
	w.add(person("root"), "prod", state.Verify{Instances: 2}) // as an old server wrote it
	fsys := w.export()
	r := w.verify(fsys)
	if !r.OK() {
		t.Fatal(lines(r.Findings))
	}
	for _, c := range r.Checks {
		if c.Check == "attestation" && c.Count != 4 {
			t.Errorf("%d statements were checked", c.Count)
		}
	}
	all := lines(r.Findings)
	for _, want := range []string{"gap verify: entry", "1 of 2 instances did not run what their release says, or could not be measured, as web-bbbbbbbbbb", "not all of what ran in prod could be measured"} {
		if !strings.Contains(all, want) {
			t.Errorf("want %q in\n%s", want, all)
		}
	}
	n := 0
	for _, p := range files(fsys) {
		if strings.HasPrefix(p, "attestations/") && strings.HasSuffix(p, ".dsse.json") {
			n++
		}
	}
	if n != 4 || !strings.Contains(string(fsys[evidence.FileGuide].Data), "attestations/*.dsse.json") {
		t.Errorf("%d attestations", n)
	}
}

// Where a rule wants it more often than weekly, twice its time without is a gap.
func TestARuleThatIsNotKeptIsAGap(t *testing.T) {
	w := governed(t)
	d := rules()
	d.Verifications = []platform.Verification{{Name: "prod", Environments: []platform.Pattern{"prod"}, EveryMillis: time.Hour.Milliseconds()}}
	w.define(person("root"), d)
	const want = "what runs in prod was not measured from"
	w.measured("dave", func(*measurement) {})
	w.later(2 * time.Hour)
	if all := lines(w.verify(w.export()).Findings); strings.Contains(all, want) {
		t.Errorf("in time: %s", all)
	}
	w.later(time.Minute)
	if all := lines(w.verify(w.export()).Findings); !strings.Contains(all, want) {
		t.Errorf("late: %s", all)
	}
}

// A measurement that failed does not count as one: the week goes on.
func TestAFailedMeasurementDoesNotEndAWeekWithout(t *testing.T) {
	w := governed(t)
	w.later(6 * 24 * time.Hour)
	w.measured("dave", func(m *measurement) { m.found, m.of.Detail = nil, "the host is away" })
	w.later(3 * 24 * time.Hour)
	if all := lines(w.verify(w.export()).Findings); !strings.Contains(all, "what runs in prod was not measured from") {
		t.Errorf("%s", all)
	}
}

// emergency moves prod without approvals.
func (w *world) emergency() state.Entry {
	r := w.shop("prod", "urgent", 2)
	w.known(r)
	w.judge("prod", r, 0, state.PhaseApply)
	return w.apply(person("root"), r, state.Governed{Emergency: true, ReviewBy: w.at.Add(72 * time.Hour)}, "it burns")
}

// A bundle that was touched after its export is found out by hashes, and the entry is named.
func TestABundleThatWasTouchedIsFoundOut(t *testing.T) {
	w := governed(t)
	good := w.export()
	const entries = "tile/entries/000.p/"
	bundle := func(fsys fstest.MapFS) (string, [][]byte) {
		for _, p := range files(fsys) {
			if strings.HasPrefix(p, entries) {
				all, err := ledger.ParseBundle(fsys[p].Data)
				if err != nil {
					t.Fatal(err)
				}
				return p, all
			}
		}
		t.Fatal("no entries")
		return "", nil
	}
	put := func(fsys fstest.MapFS, p string, all [][]byte) {
		var b []byte
		for _, e := range all {
			b = ledger.AppendBundle(b, e)
		}
		fsys[p] = &fstest.MapFile{Data: b}
	}
	fork := func(fsys fstest.MapFS) { // a well signed checkpoint of another history
		other := governed(t)
		other.skey, other.vkey = w.skey, w.vkey
		other.entries[3].Reason = "another history"
		for p, f := range other.export() {
			if p == evidence.FileCheckpoint {
				fsys[p] = f
			}
		}
	}
	for _, c := range []struct {
		name  string
		touch func(fsys fstest.MapFS)
		entry int64 // named
	}{
		{"a leaf's byte", func(fsys fstest.MapFS) {
			p, all := bundle(fsys)
			all[7] = bytes.Replace(bytes.Clone(all[7]), []byte("2026"), []byte("2025"), 1)
			put(fsys, p, all)
		}, 7},
		{"a dropped leaf", func(fsys fstest.MapFS) {
			p, all := bundle(fsys)
			put(fsys, p, append(all[:5:5], all[6:]...))
		}, 5},
		{"reordered leaves", func(fsys fstest.MapFS) {
			p, all := bundle(fsys)
			all[8], all[9] = all[9], all[8]
			put(fsys, p, all)
		}, 8},
		{"a line of entries.jsonl", func(fsys fstest.MapFS) {
			ls := bytes.SplitAfter(fsys[evidence.FileEntries].Data, []byte("\n"))
			fsys[evidence.FileEntries] = &fstest.MapFile{Data: bytes.Join(append(ls[:4:4], ls[5:]...), nil)}
		}, 4},
		{"a forked checkpoint", fork, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys := fstest.MapFS{}
			for p, f := range good {
				fsys[p] = f
			}
			c.touch(fsys)
			bad := w.verify(fsys).Of(evidence.Failure)
			named := false
			for _, f := range bad {
				named = named || f.Entry == c.entry && f.Check == "tree"
			}
			if !named {
				t.Errorf("want entry %d named\n%s", c.entry, lines(bad))
			}
		})
	}
	for _, p := range files(good) {
		fsys := fstest.MapFS{}
		for q, f := range good {
			fsys[q] = f
		}
		data := bytes.Clone(good[p].Data)
		if len(data) == 0 {
			continue
		}
		data[len(data)/2] ^= 1
		fsys[p] = &fstest.MapFile{Data: data}
		r, err := evidence.Verify(t.Context(), fsys, evidence.Options{VKey: w.vkey, Tool: "test"})
		if err == nil && r.OK() {
			t.Errorf("a byte of %s was changed, and all is well", p)
		}
		delete(fsys, p)
		if r, err = evidence.Verify(t.Context(), fsys, evidence.Options{VKey: w.vkey, Tool: "test"}); err == nil && r.OK() {
			t.Errorf("%s is gone, and all is well", p)
		}
	}
}

// What was missed is reported, and is no reason not to verify.
func TestGapsAreReported(t *testing.T) {
	w := governed(t)
	w.emergency()
	w.later(100 * time.Hour)
	w.add(system, "", state.LogStart{Version: "test", Compares: state.Never})
	w.add(person("mallory"), "", state.AccessDenied{Operation: "apply", Cause: "who are you"})
	w.later(10 * 24 * time.Hour)
	w.judge("prod", w.shop("prod", "9", 1), 0, state.PhaseApply)
	r := w.verify(w.export())
	if !r.OK() {
		t.Fatal(lines(r.Of(evidence.Failure)))
	}
	all := lines(r.Findings)
	for _, want := range []string{
		"gap review: entry 15 (change.apply, 01936f2e-0000-7000-8000-000000000010): the emergency of generation 2 of prod was to be reviewed",
		"gap verify: entry 15 (change.apply, 01936f2e-0000-7000-8000-000000000010): what runs in prod was not measured from 2026-11-02T11:00:00Z to",
		"gap policy: entry", "exception one-more-week has expired, and was still needed",
		"gap witness: no witness watches the log",
		"gap drift: entry", "the server was told to compare nothing that runs with its release",
		"notice emergency: ", "notice refused: ",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("want %q in\n%s", want, all)
		}
	}
}

// Content that an erasure names may be gone; content that is gone without one may not.
func TestMissingContentIsAFailure(t *testing.T) {
	w := governed(t)
	for i, e := range w.entries {
		if e.Kind() == state.KindChangeRequest {
			delete(w.blobs, e.Body.Digest)
			bad := w.verify(w.export()).Of(evidence.Failure)
			if len(bad) == 0 || bad[0].Entry != int64(i) || !strings.Contains(bad[0].Message, "no entry says that it was erased") {
				t.Errorf("%s", lines(bad))
			}
		}
	}
}

// Of an environment alone, bodies of others stay away, and everything still verifies.
func TestAScopeHasTheBodiesOfItsEnvironmentAlone(t *testing.T) {
	w := governed(t)
	from := w.at
	apply := w.apply(person("dave"), w.shop("staging", "secret", 2), state.Governed{}, "").Data.(state.Apply)
	w.request(person("alice"), w.shop("prod", "2", 2))
	fsys := w.export(func(r *evidence.Request) { r.From, r.Env = evidence.Bound{Time: from}, "prod" })
	if r := w.verify(fsys); !r.OK() || r.Population.Count != 0 {
		t.Fatalf("%d moves\n%s", r.Population.Count, lines(r.Findings))
	}
	if _, there := fsys["plans/"+apply.Plan.Hex()+".json"]; there {
		t.Error("the plan of another environment is there")
	}
}
