package control_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity/sshkey"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
	"github.com/invarhq/invar/store/storetest"
)

// office is a desk with people who sign: alice proposes, bob, carol and erin (of security) approve, dave carries out.
type office struct {
	*desk
	keys map[platform.PrincipalName]ssh.Signer
	def  platform.Definition
}

// newOffice has prod ask for the approvals of require. It is to be made in a synctest bubble where time matters.
func newOffice(t testing.TB, require string, change ...func(*platform.Definition)) *office {
	t.Helper()
	o := &office{desk: newDesk(t), keys: map[platform.PrincipalName]ssh.Signer{}}
	var all []platform.PrincipalName
	t.Cleanup(func() { _ = o.Ledger().Close() })
	for i, name := range []platform.PrincipalName{"alice", "bob", "carol", "dave", "erin"} {
		o.keys[name] = key(t, byte(i))
		o.def.Principals = append(o.def.Principals, platform.Principal{Name: name, LocalUsers: []string{string(name)}, SSHKeys: []string{line(o.keys[name])}})
		all = append(all, name)
	}
	o.def.Groups = []platform.Group{{Name: "managers", Members: []platform.PrincipalName{"bob", "carol"}}, {Name: "security", Members: []platform.PrincipalName{"carol", "erin"}}}
	o.def.Roles = []platform.Role{{Name: "admin", Permissions: []platform.Permission{platform.Anything}}}
	o.def.Grants = []platform.Grant{{Role: "admin", Principals: all, Environments: []platform.Pattern{"*"}}}
	if require != "" {
		o.def.Approvals = []platform.Approval{{Name: "prod", Environments: []platform.Pattern{"prod"}, Require: require, ExpiresMillis: (24 * time.Hour).Milliseconds()}}
	}
	for _, c := range change {
		c(&o.def)
	}
	o.rule()
	return o
}

// rule puts the office's definition in force.
func (o *office) rule() {
	o.t.Helper()
	def := o.def
	def.Principals, def.Groups, def.Grants = slices.Clone(def.Principals), slices.Clone(def.Groups), slices.Clone(def.Grants)
	o.apply(platform.Env, app{Name: platform.App, Platform: &def})
}

func key(t testing.TB, seed byte) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func line(s ssh.Signer) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))
}

func (o *office) principal(name platform.PrincipalName) *platform.Principal {
	i := slices.IndexFunc(o.def.Principals, func(p platform.Principal) bool { return p.Name == name })
	return &o.def.Principals[i]
}

func as(name platform.PrincipalName) control.Actor {
	return control.Actor{Kind: state.ActorLocal, Name: string(name), Principal: name}
}

// sign signs a statement in a namespace.
func sign(t testing.TB, with ssh.Signer, s change.Statement, namespace string) control.Signed {
	t.Helper()
	text, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	sig, err := sshsig.Sign(bytes.NewReader(text), with, sshsig.HashSHA512, namespace)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := sshkey.FromSSHSIG(sig)
	if err != nil {
		t.Fatal(err)
	}
	return control.Signed{Statement: text, Signature: []byte(ours.String())}
}

func (o *office) find(n state.ChangeNumber) state.Change {
	o.t.Helper()
	c, err := o.State().Change(n)
	if err != nil {
		o.t.Fatal(err)
	}
	return c
}

// approval is what the principal would sign now.
func (o *office) approval(n state.ChangeNumber, by platform.PrincipalName) change.Statement {
	s := o.Statement(o.find(n), change.Approval, by, "")
	s.SignedAt = state.Millis(time.Now())
	return s
}

func (o *office) approve(n state.ChangeNumber, by ...platform.PrincipalName) error {
	o.t.Helper()
	var errs []error
	for _, name := range by {
		errs = append(errs, o.Approve(o.t.Context(), as(name), n, sign(o.t, o.keys[name], o.approval(n, name), change.Approval.Namespace()), ""))
	}
	return errors.Join(errs...)
}

// request proposes a version of the shop for prod, by alice.
func (o *office) request(version string, how ...control.How) state.ChangeNumber {
	o.t.Helper()
	m, err := o.propose("prod", shop(version))
	if err != nil {
		o.t.Fatal(err)
	}
	if how != nil {
		m.How = how[0]
	}
	moved, err := o.Apply(o.t.Context(), as("alice"), m)
	if err != nil || !moved.Waiting {
		o.t.Fatalf("proposing version %s: %+v, %v; want it to wait", version, moved, err)
	}
	return moved.Change
}

func (o *office) carry(n state.ChangeNumber, by platform.PrincipalName) error {
	o.t.Helper()
	_, err := o.CarryOut(o.t.Context(), as(by), n, false)
	return err
}

// live brings a version to prod, and lets its rollout complete.
func (o *office) live(version string) state.ChangeNumber {
	o.t.Helper()
	n := o.request(version)
	if err := errors.Join(o.approve(n, "carol", "bob", "erin"), o.carry(n, "dave")); err != nil {
		o.t.Fatal(err)
	}
	o.complete("prod")
	return n
}

func (o *office) must(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

// wantKind checks that something failed in a certain way, and that nothing was written but refusals.
func (o *office) wantKind(what string, err error, kind fault.Kind, text string) {
	o.t.Helper()
	if fault.KindOf(err) != kind || !strings.Contains(err.Error(), text) {
		o.t.Errorf("%s: %v, want %s: %s", what, err, kind, text)
	}
}

func TestChangeIsCarriedOutOnceItsRequirementIsMet(t *testing.T) {
	for _, c := range []struct {
		require string
		by      []platform.PrincipalName
		met     bool
	}{
		{"2 of group.managers", nil, false},
		{"2 of group.managers", []platform.PrincipalName{"bob"}, false},
		{"2 of group.managers", []platform.PrincipalName{"bob", "carol"}, true},
		{"1 of group.managers and 1 of group.security", []platform.PrincipalName{"carol"}, false}, // nobody counts twice
		{"1 of group.managers and 1 of group.security", []platform.PrincipalName{"carol", "bob"}, true},
		{"1 of group.managers and 1 of group.security", []platform.PrincipalName{"carol", "erin"}, true},
		{"2 of group.managers and 1 of group.security", []platform.PrincipalName{"bob", "carol"}, false},
		{"(2 of group.managers or 1 of principal.erin) and 1 of group.security", []platform.PrincipalName{"erin", "carol"}, true},
		{"(2 of group.managers or 1 of principal.erin) and 1 of group.security", []platform.PrincipalName{"bob", "carol"}, false},
	} {
		o := newOffice(t, c.require)
		n := o.request("1")
		o.must(o.approve(n, c.by...))
		err := o.carry(n, "dave")
		if (err == nil) != c.met {
			t.Errorf("%s by %v: %v", c.require, c.by, err)
		}
		if err != nil {
			o.wantKind(c.require, err, fault.Denied, "lacks approvals")
		}
		o.audit()
	}
}

func TestAuthorApproverAndApplierAreThreePeople(t *testing.T) {
	for _, c := range []struct {
		name                    string
		selfApproval, selfApply bool
		approver, applier       platform.PrincipalName
		want                    string
	}{
		{"three people", false, false, "bob", "dave", ""},
		{"author approves", false, false, "alice", "dave", "would not count"},
		{"author approves where he may", true, false, "alice", "dave", ""},
		{"author carries out", false, false, "bob", "alice", "has someone else carry it out"},
		{"approver carries out", false, false, "bob", "bob", "has someone else carry it out"},
		{"author carries out where he may", false, true, "bob", "alice", ""},
		{"approver carries out where he may", false, true, "bob", "bob", ""},
		{"one person does all where he may", true, true, "alice", "alice", ""},
	} {
		o := newOffice(t, "1 of (principal.alice, principal.bob)", func(d *platform.Definition) {
			d.Approvals[0].SelfApproval, d.Approvals[0].SelfApply = c.selfApproval, c.selfApply
		})
		n := o.request("1")
		err := o.approve(n, c.approver)
		if err == nil {
			err = o.carry(n, c.applier)
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// The rules are those at the time of carrying out: an approval by somebody who could not give it any more does not stand.
func TestApprovalStandsOnlyWhileItCouldBeGiven(t *testing.T) {
	for name, change := range map[string]func(o *office){
		"no member any more": func(o *office) { o.def.Groups[0].Members = []platform.PrincipalName{"carol"} },
		"disabled":           func(o *office) { o.principal("bob").Disabled = true },
		"a machine now":      func(o *office) { o.principal("bob").Machine = true },
		"key revoked":        func(o *office) { o.principal("bob").SSHKeys = []string{line(key(o.t, 99))} },
		"without the permission": func(o *office) {
			o.def.Grants[0].Principals = slices.DeleteFunc(slices.Clone(o.def.Grants[0].Principals), func(n platform.PrincipalName) bool { return n == "bob" })
		},
		"more is asked for": func(o *office) { o.def.Approvals[0].Require = "2 of group.managers" },
	} {
		o := newOffice(t, "1 of group.managers")
		n := o.request("1")
		o.must(o.approve(n, "bob"))
		change(o)
		o.rule()
		o.wantKind(name, o.carry(n, "dave"), fault.Denied, "lacks approvals")
		o.must(o.approve(n, "carol"))
		if err := o.carry(n, "dave"); err != nil && name != "more is asked for" {
			t.Errorf("%s: after another approval: %v", name, err)
		}
		o.audit()
	}
}

func TestWhoseKeyWasReplacedApprovesAgain(t *testing.T) {
	o := newOffice(t, "1 of group.managers")
	n := o.request("1")
	o.must(o.approve(n, "bob"))
	o.wantKind("twice", o.approve(n, "bob"), fault.Conflict, "approved by")
	o.keys["bob"] = key(t, 99)
	o.wantKind("with a key that is not his", o.approve(n, "bob"), fault.Denied, "none of bob's")
	o.principal("bob").SSHKeys = []string{line(o.keys["bob"])}
	o.rule()
	o.wantKind("with the approval of the old key", o.carry(n, "dave"), fault.Denied, "lacks approvals")
	o.must(o.approve(n, "bob"))
	o.must(o.carry(n, "dave"))
	if c := o.find(n); len(c.Approvals) != 1 || c.Status != state.ChangeApplied {
		t.Errorf("got %+v", c)
	}
	o.audit()
}

func TestSignatureCountsForWhatItWasGivenAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, "1 of group.managers")
		first := o.request("1")
		second := o.request("2")
		bob, approval := o.keys["bob"], change.Approval.Namespace()
		good := o.approval(first, "bob")
		with := func(f func(*change.Statement)) change.Statement { s := good; f(&s); return s }
		for name, got := range map[string]control.Signed{
			"of another change":         sign(t, bob, o.approval(second, "bob"), approval),
			"of another log":            sign(t, bob, with(func(s *change.Statement) { s.Log = "example.com/other" }), approval),
			"of another meaning":        sign(t, bob, with(func(s *change.Statement) { s.Meaning = change.Rejection }), change.Rejection.Namespace()),
			"in another namespace":      sign(t, bob, good, change.Rejection.Namespace()),
			"in git's namespace":        sign(t, bob, good, "git"),
			"of another plan":           sign(t, bob, with(func(s *change.Statement) { s.Plan = s.Release }), approval),
			"of another release":        sign(t, bob, with(func(s *change.Statement) { s.Release = s.Plan }), approval),
			"of another environment":    sign(t, bob, with(func(s *change.Statement) { s.Env = "staging" }), approval),
			"of another request":        sign(t, bob, with(func(s *change.Statement) { s.Request = "x" }), approval),
			"with another note":         sign(t, bob, with(func(s *change.Statement) { s.Reason = "not what the request says" }), approval),
			"for another signer":        sign(t, bob, with(func(s *change.Statement) { s.Signer = "carol" }), approval),
			"with another's key":        sign(t, o.keys["carol"], good, approval),
			"before there was a change": sign(t, bob, with(func(s *change.Statement) { s.SignedAt = s.SignedAt.Add(-change.MaxSkew - time.Second) }), approval),
			"in the future":             sign(t, bob, with(func(s *change.Statement) { s.SignedAt = s.SignedAt.Add(change.MaxSkew + time.Second) }), approval),
			"with nothing":              {},
			"with a statement altered":  {Statement: bytes.Replace(sign(t, bob, good, approval).Statement, []byte("prod"), []byte("prud"), 1), Signature: sign(t, bob, good, approval).Signature},
			"with white space":          {Statement: append(sign(t, bob, good, approval).Statement, '\n'), Signature: sign(t, bob, good, approval).Signature},
		} {
			size := o.State().Size()
			if err := o.Approve(t.Context(), as("bob"), first, got, ""); !errors.Is(err, fault.Denied) || o.State().Size() != size {
				t.Errorf("signed %s: %v, want it denied", name, err)
			}
		}
		o.wantKind("replayed by another", o.Approve(t.Context(), as("carol"), first, sign(t, bob, good, approval), ""), fault.Denied, "something else")
		o.must(o.Approve(t.Context(), as("bob"), first, sign(t, bob, good, approval), ""))
		o.wantKind("replayed", o.Approve(t.Context(), as("bob"), first, sign(t, bob, good, approval), ""), fault.Conflict, "already")
	})
}

func TestChangeExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, "1 of group.managers")
		n := o.request("1")
		o.must(o.approve(n, "bob"))
		time.Sleep(24*time.Hour - time.Millisecond)
		o.must(o.approve(n, "carol")) // just in time
		time.Sleep(time.Millisecond)
		o.wantKind("approving", o.approve(n, "erin"), fault.Conflict, "expired")
		o.wantKind("carrying out", o.carry(n, "dave"), fault.Conflict, "expired")
		o.wantKind("withdrawing", o.Withdraw(t.Context(), as("alice"), n, ""), fault.Conflict, "expired")
		stop := o.govern()
		synctest.Wait()
		time.Sleep(time.Second)
		stop()
		if c := o.find(n); c.Status != state.ChangeVoided || !strings.Contains(c.Cause, "expired") {
			t.Errorf("got %s: %s", c.Status, c.Cause)
		}
		o.audit()
	})
}

// govern runs the loop until what it returns is called.
func (o *office) govern() (stop func()) {
	ctx, cancel := context.WithCancel(o.t.Context())
	var loop sync.WaitGroup
	loop.Go(func() { _ = o.Govern(ctx) })
	return func() { cancel(); loop.Wait() }
}

func TestApprovedChangeOfAnAutomaticRuleIsCarriedOutByTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, "1 of group.managers", func(d *platform.Definition) { d.Approvals[0].Automatic = true })
		n := o.request("1")
		stop := o.govern()
		time.Sleep(time.Minute)
		if c := o.find(n); c.Status != state.ChangeOpen {
			t.Fatalf("carried out without an approval: %s", c.Status)
		}
		stop()
		o.must(o.approve(n, "bob"))
		o.crash() // approved, and not carried out: the next server does it
		defer o.govern()()
		time.Sleep(time.Second)
		if c := o.find(n); c.Status != state.ChangeApplied || c.ClosedBy.Kind != state.ActorSystem {
			t.Errorf("got %s by %s", c.Status, c.ClosedBy)
		}
	})
}

// A policy that refuses an automatic change is asked ever more rarely: every try is in the ledger.
func TestRefusedAutomaticChangeDoesNotFloodTheLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, "1 of group.managers", func(d *platform.Definition) { d.Approvals[0].Automatic = true })
		n := o.request("1")
		o.must(o.approve(n, "bob"))
		o.def.Policies = []platform.Policy{{Name: "never", Environments: []platform.Pattern{"prod"}, Files: map[string]string{"p.rego": "package never\n\nimport rego.v1\n\ndeny contains \"never\" if true\n"}}}
		o.rule()
		defer o.govern()()
		size := o.State().Size()
		time.Sleep(23 * time.Hour)
		if got := slices.Index(o.kinds(size), state.KindPolicyDecision); got < 0 {
			t.Error("no try is in the ledger")
		}
		if got := o.State().Size() - size; got > 60 {
			t.Errorf("%d entries in a day", got)
		}
		o.def.Policies = nil
		o.rule()
		time.Sleep(time.Second)
		if c := o.find(n); c.Status != state.ChangeApplied {
			t.Errorf("after the policy was taken back: %s", c.Status)
		}
	})
}

func TestPolicyRefusesAndIsRecordedOncePerTry(t *testing.T) {
	policy := func(rego string) func(*platform.Definition) {
		return func(d *platform.Definition) {
			d.Policies = []platform.Policy{{Name: "rules", Environments: []platform.Pattern{"prod"}, Files: map[string]string{"p.rego": "package rules\n\nimport rego.v1\n\n" + rego}}}
		}
	}
	for name, rego := range map[string]string{
		"denies": `deny contains "not this" if input.change.kind == "apply"`,
		"fails":  "deny contains msg if {\n\tx := 1 / (input.environment.generation - input.environment.generation)\n\tmsg := sprintf(\"%v\", [x])\n}",
	} {
		o := newOffice(t, "", policy(rego))
		m, err := o.propose("prod", shop("1"))
		o.must(err)
		for try := range 2 {
			size := o.State().Size()
			_, err := o.Apply(t.Context(), as("alice"), m)
			if !errors.Is(err, fault.Denied) {
				t.Errorf("%s: %v, want it denied", name, err)
			}
			if kinds := o.kinds(size); len(kinds) != 1 || kinds[0] != state.KindPolicyDecision {
				t.Errorf("%s: try %d wrote %v, want one decision", name, try, kinds)
			}
		}
		o.audit()
	}
}

func TestWhatHappenedMeanwhileVoidsAChange(t *testing.T) {
	o := newOffice(t, "1 of group.managers")
	first := o.request("1")
	second := o.request("2")
	o.must(o.approve(first, "bob"))
	o.must(o.approve(second, "bob"))
	o.must(o.carry(first, "dave"))
	o.wantKind("the head moved", o.carry(second, "dave"), fault.Conflict, "the head moved to generation 1")
	o.complete("prod")
	third := o.request("3")
	o.must(o.approve(third, "bob"))
	if _, err := o.Revoke(t.Context(), as("erin"), o.find(third).Release, "CVE"); err != nil {
		t.Fatal(err)
	}
	o.wantKind("its release was revoked", o.carry(third, "dave"), fault.Denied, "was revoked by erin")
	o.audit()
}

func TestOneOfManyWins(t *testing.T) {
	o := newOffice(t, "1 of group.managers", func(d *platform.Definition) { d.Approvals[0].SelfApply = true })
	n, m := o.request("1"), o.request("2")
	race := func(do ...func() error) (won int) {
		var mu sync.Mutex
		var all sync.WaitGroup
		for _, f := range do {
			all.Go(func() {
				if err := f(); err == nil {
					mu.Lock()
					won++
					mu.Unlock()
				} else if k := fault.KindOf(err); k != fault.Conflict {
					t.Errorf("lost with %v", err)
				}
			})
		}
		all.Wait()
		return won
	}
	signed := sign(t, o.keys["bob"], o.approval(n, "bob"), change.Approval.Namespace())
	approve := func() error { return o.Approve(t.Context(), as("bob"), n, signed, "") }
	if won := race(approve, approve, approve, approve); won != 1 {
		t.Errorf("%d equal approvals count", won)
	}
	o.must(o.approve(m, "bob"))
	carry := func(n state.ChangeNumber) func() error { return func() error { return o.carry(n, "dave") } }
	if won := race(carry(n), carry(m), carry(n), carry(m)); won != 1 || o.env("prod").Head.Number != 1 {
		t.Errorf("%d changes moved the head to generation %d", won, o.env("prod").Head.Number)
	}
	o.audit()
}

func TestRollbackAndDestroyAreGovernedToo(t *testing.T) {
	o := newOffice(t, "1 of group.managers or 2 of group.security")
	o.live("1")
	o.live("2")
	back, err := o.Rollback(t.Context(), as("alice"), "prod", 0, "back", control.How{})
	if err != nil || !back.Waiting {
		t.Fatalf("rollback: %+v, %v; want it to wait", back, err)
	}
	end, err := o.Destroy(t.Context(), as("alice"), "prod", true, "end", control.How{})
	if err != nil || !end.Waiting {
		t.Fatalf("destroy: %+v, %v; want it to wait", end, err)
	}
	o.must(o.approve(back.Change, "bob"))
	o.must(o.carry(back.Change, "dave"))
	if got, want := o.env("prod").Head.Release, o.find(1).Release; got != want {
		t.Errorf("rolled back to %s, want %s", got.Short(), want.Short())
	}
	o.wantKind("the destroy", o.carry(end.Change, "dave"), fault.Conflict, "the head moved")
	o.complete("prod")
	o.def.Approvals[0].Rollbacks = true
	o.rule()
	free, err := o.Rollback(t.Context(), as("alice"), "prod", 2, "forth", control.How{})
	if err != nil || free.Waiting || free.Generation != 4 {
		t.Errorf("where rollbacks are free: %+v, %v", free, err)
	}
	o.audit()
}

func emergencies(d *platform.Definition) {
	d.BreakGlass = []platform.BreakGlass{{Name: "night", Environments: []platform.Pattern{"prod"}, ReviewMillis: (48 * time.Hour).Milliseconds(), Reviewers: "security", SessionMillis: 1}}
}

func (o *office) emergency(version, reason string) error {
	o.t.Helper()
	m, err := o.propose("prod", shop(version))
	o.must(err)
	m.Reason, m.How.Emergency = reason, true
	_, err = o.Apply(o.t.Context(), as("alice"), m)
	return err
}

func (o *office) review(generation int, by platform.PrincipalName) error {
	o.t.Helper()
	g, err := o.State().Generation("prod", generation)
	o.must(err)
	s := o.ReviewStatement(g, by, state.Accepted, "")
	s.SignedAt = state.Millis(time.Now())
	return o.Review(o.t.Context(), as(by), "prod", generation, state.Accepted, sign(o.t, o.keys[by], s, change.Review.Namespace()), "")
}

func TestEmergencyGoesAtOnceAndIsReviewedBySomebodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, "1 of group.managers or 2 of group.security", emergencies, func(d *platform.Definition) {
			d.Groups[1].Members = []platform.PrincipalName{"alice", "carol", "erin"}
		})
		o.live("1")
		o.live("2")
		o.wantKind("without a reason", o.emergency("3", "  "), fault.Invalid, "needs a reason")
		o.must(o.emergency("3", "the site is down"))
		g, err := o.State().Generation("prod", 3)
		o.must(err)
		if !g.Emergency || g.Of != 0 {
			t.Errorf("got %+v", g)
		}
		o.complete("prod")
		o.wantKind("a review by whoever acted", o.review(3, "alice"), fault.Denied, "whoever acted")
		o.wantKind("a review by somebody of no group", o.review(3, "bob"), fault.Denied, "security")
		o.wantKind("a review of what was none", o.review(2, "erin"), fault.Conflict, "no review")

		time.Sleep(48 * time.Hour)
		n := o.request("4")
		o.must(o.approve(n, "bob")) // in time to the millisecond: a review is late after it was due
		time.Sleep(time.Second)
		o.wantKind("a late review holds up what is new", o.carry(n, "dave"), fault.Denied, "was due at")
		o.must(o.emergency("5", "down again")) // never another emergency
		o.complete("prod")
		back, err := o.Rollback(t.Context(), as("alice"), "prod", 2, "back", control.How{}) // nor the way back
		o.must(err)
		o.must(o.approve(back.Change, "bob"))
		o.must(o.carry(back.Change, "dave"))
		o.complete("prod")
		o.must(o.review(3, "erin"))
		o.wantKind("twice", o.review(3, "carol"), fault.Conflict, "no review")
		if due := o.env("prod").Reviews; len(due) != 1 || due[0].Generation != 4 {
			t.Errorf("due is %+v", due)
		}
		o.live("6")
		o.audit()
	})
}

func TestEmergencyNeedsARule(t *testing.T) {
	o := newOffice(t, "1 of group.managers")
	o.wantKind("without one", o.emergency("1", "down"), fault.Denied, "no break_glass rule")
}

func TestFreezeHoldsUpMovesUntilItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		o := newOffice(t, "1 of group.managers or 2 of group.security", emergencies, func(d *platform.Definition) {
			d.Approvals[0].Automatic = true
			d.Freezes = []platform.Freeze{
				{Name: "night", Environments: []platform.Pattern{"prod"}, Kind: platform.FreezeDeny, From: begin.Add(time.Hour), To: begin.Add(9 * time.Hour), Rollbacks: true},
				{Name: "window", Environments: []platform.Pattern{"prod"}, Kind: platform.FreezeAllow, From: begin, To: begin.Add(2 * time.Hour), Rollbacks: true},
				{Name: "window2", Environments: []platform.Pattern{"prod"}, Kind: platform.FreezeAllow, From: begin.Add(10 * time.Hour), To: begin.Add(11 * time.Hour), Rollbacks: true},
			}
		})
		o.live("1")
		o.live("2")
		time.Sleep(time.Hour) // the night begins
		n := o.request("3")
		o.must(o.approve(n, "bob"))
		o.wantKind("in a freeze", o.carry(n, "dave"), fault.Denied, "is frozen: freeze night")
		defer o.govern()()
		time.Sleep(8*time.Hour + 30*time.Minute) // the night is over, the next window is not open
		o.wantKind("between windows", o.carry(n, "dave"), fault.Denied, "next opens at")
		if c := o.find(n); c.Status != state.ChangeOpen {
			t.Fatalf("it is %s", c.Status)
		}
		time.Sleep(31 * time.Minute) // the window opens: the server does what was approved
		if c := o.find(n); c.Status != state.ChangeApplied {
			t.Errorf("with the window open it is %s", c.Status)
		}
		o.audit()
	})
}

func TestHeadThatNobodyConfirmsGoesBack(t *testing.T) {
	for _, c := range []struct {
		name      string
		before    func(o *office)
		confirm   time.Duration // after which it is confirmed; 0: never
		want      state.MoveKind
		wantError string
	}{
		{"to what completed before", func(o *office) { o.live("1") }, 0, state.MovedByRollback, ""},
		{"to nothing where there was nothing", func(*office) {}, 0, state.MovedByDestroy, ""},
		{"not past a destruction", func(o *office) {
			o.live("1")
			moved, err := o.Destroy(o.t.Context(), as("alice"), "prod", false, "end", control.How{})
			o.must(err)
			o.must(o.approve(moved.Change, "bob"))
			o.must(o.carry(moved.Change, "dave"))
			o.complete("prod")
		}, 0, state.MovedByDestroy, ""},
		{"never to what was revoked", func(o *office) {
			o.live("1")
			o.live("2")
			_, err := o.Revoke(o.t.Context(), as("erin"), o.find(1).Release, "CVE")
			o.must(err)
			o.live("3")
			_, err = o.Revoke(o.t.Context(), as("erin"), o.find(3).Release, "CVE")
			o.must(err)
		}, 0, state.MovedByRollback, ""},
		{"not when it is confirmed", func(o *office) { o.live("1") }, time.Hour - time.Second, state.MovedByApply, ""},
		{"also when it is confirmed too late", func(o *office) { o.live("1") }, time.Hour, state.MovedByRollback, "was to be confirmed by"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newOffice(t, "1 of group.managers or 2 of group.security")
				c.before(o)
				n := o.request("9", control.How{Confirm: time.Hour})
				o.must(o.approve(n, "bob"))
				o.must(o.carry(n, "dave"))
				o.complete("prod")
				head := o.env("prod").Head.Number
				stop := o.govern()
				time.Sleep(30 * time.Minute)
				stop()
				o.crash()
				if c.confirm > 0 {
					time.Sleep(c.confirm - 30*time.Minute)
					err := o.Confirm(t.Context(), as("alice"), "prod", "fine")
					if c.wantError == "" && err != nil || c.wantError != "" && (err == nil || !strings.Contains(err.Error(), c.wantError)) {
						t.Errorf("confirming: %v, want %q", err, c.wantError)
					}
				}
				stop = o.govern()
				time.Sleep(2 * time.Hour)
				stop()
				newest, err := o.State().Generation("prod", o.env("prod").Head.Number)
				o.must(err)
				if newest.Kind != c.want || c.want != state.MovedByApply && newest.Number != head+1 {
					t.Errorf("the head is generation %d by %s, want %s", newest.Number, newest.Kind, c.want)
				}
				if _, revoked := o.State().Revoked(newest.Release); revoked {
					t.Error("it went back to a revoked release")
				}
				o.audit()
			})
		})
	}
}

func TestVolumesThatAreDeletedCanNotBeUnconfirmed(t *testing.T) {
	o := newOffice(t, "")
	o.apply("prod", app{Name: "shop", Components: []release.Placed{web("1", withVolume)}})
	o.complete("prod")
	_, err := o.Destroy(t.Context(), as("alice"), "prod", true, "end", control.How{Confirm: time.Hour})
	o.wantKind("with volumes", err, fault.Invalid, "do not come back")
}

func TestRevokedReleaseNeverComesBack(t *testing.T) {
	o := newOffice(t, "1 of group.managers or 2 of group.security")
	o.live("1")
	if _, err := o.Revoke(t.Context(), as("erin"), o.find(1).Release, " "); !errors.Is(err, fault.Invalid) {
		t.Errorf("without a reason: %v", err)
	}
	proposed, err := o.Revoke(t.Context(), as("erin"), o.find(1).Release, "CVE-1")
	if err != nil || len(proposed) != 0 {
		t.Errorf("with nothing to go back to: %v, %v", proposed, err)
	}
	before := o.env("prod")
	o.must(o.record("prod", o.create("prod", "web-aaaaaaaaaa"))) // healing of the head goes on
	if after := o.env("prod"); after.Head.Number != before.Head.Number || len(after.Instances) != 1 {
		t.Errorf("got %+v", after.Head)
	}
	o.live("2")
	o.live("3")
	proposed, err = o.Revoke(t.Context(), as("erin"), o.find(3).Release, "CVE-2")
	if err != nil || len(proposed) != 1 || o.find(proposed[0]).Release != o.find(2).Release {
		t.Fatalf("proposed %v, %v; want to go back to version 2", proposed, err)
	}
	_, err = o.Rollback(t.Context(), as("alice"), "prod", 1, "", control.How{})
	o.wantKind("going back to it", err, fault.Denied, "was revoked by erin: CVE-1")
	_, err = o.propose("prod", shop("1"))
	o.wantKind("planning it", err, fault.Denied, "was revoked")
	o.wantKind("revoking it twice", func() error { _, err := o.Revoke(t.Context(), as("erin"), o.find(1).Release, "x"); return err }(), fault.Conflict, "already")
	o.must(o.approve(proposed[0], "bob"))
	o.must(o.carry(proposed[0], "dave"))
	o.audit()
}

// A rollout away from a revoked release that fails stays where it is, and what has the traffic keeps it.
func TestFailedRolloutDoesNotRevertToARevokedRelease(t *testing.T) {
	for _, when := range []string{"before the head moved", "while the rollout goes on"} {
		o := newOffice(t, "1 of group.managers or 2 of group.security")
		o.live("1")
		revoke := func() {
			_, err := o.Revoke(t.Context(), as("erin"), o.find(1).Release, "CVE")
			o.must(err)
		}
		if when == "before the head moved" {
			revoke()
		}
		n := o.request("2")
		o.must(o.approve(n, "bob"))
		o.must(o.carry(n, "dave"))
		if when != "before the head moved" {
			revoke()
		}
		e := o.env("prod")
		if e.Previous.Release != o.find(1).Release || !e.Previous.Revoked {
			t.Errorf("%s: previous is %s, revoked %v", when, e.Previous.Release.Short(), e.Previous.Revoked)
		}
		o.must(o.record("prod", deploy.Step{Kind: deploy.Failed, Generation: e.Head.Number, Cause: "it did not start"}))
		err := o.record("prod", deploy.Step{Kind: deploy.Revert, Generation: e.Head.Number + 1, Release: e.Previous.Release, Cause: "it did not start"})
		o.wantKind(when, err, fault.Denied, "is revoked")
		o.crash()
		if !o.env("prod").Previous.Revoked {
			t.Errorf("%s: forgotten after a restart", when)
		}
		o.audit()
	}
}

// Whatever happens at whatever time, in a store that fails and a process that dies: nobody's rules are broken, and the state is the
// fold of the entries, also when it begins at a snapshot.
func TestAnyLifeOfChanges(t *testing.T) {
	people := []platform.PrincipalName{"alice", "bob", "carol", "dave", "erin"}
	rapid.Check(t, func(rt *rapid.T) {
		o := newOffice(t, "1 of group.managers and 1 of group.security", emergencies)
		o.config.SnapshotEvery = rapid.Int64Range(1, 8).Draw(rt, "snapshot every")
		defer func() { o.disk.Crash(); _ = o.Ledger().Close() }()
		for range rapid.IntRange(1, 15).Draw(rt, "turns") {
			f := storetest.Fault(rapid.IntRange(0, 4).Draw(rt, "fault"))
			if rapid.IntRange(0, 3).Draw(rt, "faulty") == 0 {
				o.disk.SetFaults(storetest.Nth(storetest.OpAppend, 1, f))
			}
			before := o.State().Size()
			err := o.anything(rt, people)
			if err != nil && fault.KindOf(err) == "" {
				rt.Fatalf("failed without a kind: %v", err)
			}
			after := o.State().Size()
			o.disk.SetFaults(nil)
			if f >= storetest.Crash || rapid.IntRange(0, 5).Draw(rt, "restart") == 0 {
				o.crash()
			}
			if got := o.State().Size(); got < after || after < before {
				rt.Fatalf("from %d to %d to %d entries", before, after, got)
			}
			o.audit()
			o.apart(rt)
		}
	})
}

// anything does something with changes.
func (o *office) anything(rt *rapid.T, people []platform.PrincipalName) error {
	ctx := o.t.Context()
	who := rapid.SampledFrom(people).Draw(rt, "who")
	n := state.ChangeNumber(rapid.IntRange(1, int(max(1, o.State().LastChange()))).Draw(rt, "change"))
	_, unknown := o.State().Change(n)
	switch what := rapid.IntRange(0, 9).Draw(rt, "what"); {
	case what <= 1:
		m, err := o.propose("prod", shop(rapid.SampledFrom([]string{"1", "2", "3"}).Draw(rt, "version")))
		if err == nil {
			m.How.Emergency = rapid.IntRange(0, 4).Draw(rt, "emergency") == 0
			_, err = o.Apply(ctx, as(who), m)
		}
		return err
	case what == 2:
		_, err := o.Rollback(ctx, as(who), "prod", rapid.IntRange(0, 3).Draw(rt, "to"), "back", control.How{})
		return err
	case unknown != nil:
		return unknown
	case what <= 5:
		return o.approve(n, who)
	case what <= 7:
		return o.carry(n, who)
	case what == 8:
		return o.Withdraw(ctx, as(who), n, "")
	}
	if _, err := o.State().Environment("prod"); err != nil {
		return err
	}
	e := o.env("prod")
	if e.Head.Outcome != deploy.Rolling {
		_, err := o.Revoke(ctx, as(who), e.Head.Release, "why not")
		return err
	}
	return o.record("prod", deploy.Step{Kind: deploy.Done, Generation: e.Head.Number})
}

// apart checks what the rules promise of all that was carried out.
func (o *office) apart(rt *rapid.T) {
	for g := range o.State().History("prod") {
		if g.Of == 0 {
			if !g.Emergency {
				rt.Fatalf("generation %d moved without a change", g.Number)
			}
			continue
		}
		c, err := o.State().Change(g.Of)
		if err != nil {
			rt.Fatal(err)
		}
		by := c.Approvers()
		if slices.Contains(by, c.Author.Principal) || slices.Contains(by, g.Actor.Principal) || g.Actor.Principal == c.Author.Principal || len(by) < 2 {
			rt.Fatalf("generation %d: proposed by %s, approved by %v, carried out by %s", g.Number, c.Author, by, g.Actor)
		}
	}
}

// Whatever entry of a change's life is lost, the next server goes on from the one before.
func TestCrashAtEveryStepOfAChange(t *testing.T) {
	for _, f := range []storetest.Fault{storetest.Crash, storetest.CrashAfter} {
		for step := 1; ; step++ {
			o := newOffice(t, "1 of group.managers")
			o.disk.SetFaults(storetest.Nth(storetest.OpAppend, step, f))
			done := o.life()
			o.crash()
			o.audit()
			for range 5 { // each is decided anew on what the ledger says
				if o.life() == nil {
					break
				}
			}
			if e := o.env("prod"); e.Head.Number != 1 {
				t.Errorf("fault %v at step %d: the head is generation %d", f, step, e.Head.Number)
			}
			o.audit()
			if done == nil {
				break
			}
		}
	}
}

// life takes the newest change one or more steps further, until it is carried out.
func (o *office) life() error {
	if e, err := o.State().Environment("prod"); err == nil && e.Head.Number > 0 {
		return nil
	}
	n := o.State().LastChange()
	if n == 0 {
		m, err := o.propose("prod", shop("1"))
		if err == nil {
			_, err = o.Apply(o.t.Context(), as("alice"), m)
		}
		if err != nil {
			return err
		}
		n = o.State().LastChange()
	}
	if len(o.find(n).Approvals) == 0 {
		if err := o.approve(n, "bob"); err != nil {
			return err
		}
	}
	return o.carry(n, "dave")
}

// An environment that a rule does not name is not governed, whatever others are.
func TestUngovernedEnvironmentMovesAtOnce(t *testing.T) {
	o := newOffice(t, "1 of group.managers")
	for i, env := range []spec.EnvName{"staging", "prod2", "xprod"} {
		m, err := o.propose(env, app{Name: "shop", Components: shop("1").Components, Routes: nil})
		o.must(err)
		moved, err := o.Apply(t.Context(), as("alice"), m)
		if err != nil || moved.Waiting || moved.Generation != 1 {
			t.Errorf("%d %s: %+v, %v", i, env, moved, err)
		}
	}
	if _, err := o.State().Change(1); !errors.Is(err, fault.NotFound) {
		t.Error(fmt.Sprint("there is a change: ", err))
	}
}

// What the ledger has of an approval is checked with OpenSSH alone, as docs/changes.md tells.
func TestApprovalInTheLedgerVerifiesWithSSHKeygen(t *testing.T) {
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip("needs ssh-keygen; CI has it")
	}
	o := newOffice(t, "1 of group.managers")
	o.must(o.approve(o.request("1"), "bob"))
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		o.must(os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	e, err := o.Entry(t.Context(), o.find(1).Approvals[0].Entry)
	o.must(err)
	statement := e.Entry.Data.(state.ChangeApprove).Statement
	signers, sig := write("allowed_signers", "bob "+line(o.keys["bob"])+"\n"), write("sig", string(e.Entry.Sigs[0].Sig))
	verify := func(namespace, text string) error {
		cmd := exec.CommandContext(t.Context(), "ssh-keygen", "-Y", "verify", "-f", signers, "-I", "bob", "-n", namespace, "-s", sig)
		cmd.Stdin = strings.NewReader(text)
		return cmd.Run()
	}
	if err := verify("invar-approval@v1", statement); err != nil {
		t.Errorf("ssh-keygen: %v", err)
	}
	if verify("invar-rejection@v1", statement) == nil || verify("invar-approval@v1", statement+"\n") == nil {
		t.Error("ssh-keygen takes it for something else, too")
	}
}
