package control_test

import (
	"bytes"
	"crypto/ed25519"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity/sshkey"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
	"github.com/invarhq/invar/store/storetest"
)

// keyOf is the SSH key of somebody, the same every time.
func keyOf(t testing.TB, name platform.PrincipalName) ssh.Signer {
	t.Helper()
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func person(name platform.PrincipalName) control.Actor {
	return control.Actor{Kind: state.ActorSSH, Name: string(name), Principal: name}
}

// eraser is a desk whose platform lets alice, bob, carol and a machine erase, and that ran two versions of the shop.
func eraser(t *testing.T, more ...func(*platform.Definition)) (*desk, digest.Digest) {
	d := newDesk(t)
	ruled := ruledBy("alice", "alice")
	for _, name := range []platform.PrincipalName{"bob", "carol", "robot"} {
		ruled.Platform.Principals = append(ruled.Platform.Principals, platform.Principal{Name: name, Machine: name == "robot"})
		ruled.Platform.Grants[0].Principals = append(ruled.Platform.Grants[0].Principals, name)
	}
	for i, p := range ruled.Platform.Principals {
		ruled.Platform.Principals[i].SSHKeys = []string{strings.TrimSpace(string(ssh.MarshalAuthorizedKey(keyOf(t, p.Name).PublicKey())))}
	}
	for _, f := range more {
		f(ruled.Platform)
	}
	d.apply(platform.Env, ruled)
	d.complete(platform.Env)
	d.apply("prod", shop("1"))
	plan := d.plan("prod", 1)
	d.complete("prod")
	d.apply("prod", shop("2"))
	d.complete("prod")
	return d, plan
}

func (d *desk) plan(env spec.EnvName, generation int) digest.Digest {
	d.t.Helper()
	g, err := d.State().Generation(env, generation)
	if err != nil {
		d.t.Fatal(err)
	}
	return g.Plan
}

func (d *desk) askToErase(content digest.Digest) state.ErasureNumber {
	d.t.Helper()
	n, err := d.RequestErasure(d.t.Context(), person("alice"), control.Erasing{Digest: content, Authority: "TICKET-1", Reason: "a name"})
	if err != nil {
		d.t.Fatal(err)
	}
	return n
}

// agree signs with the key of signer, and sends that as who.
func (d *desk) agree(n state.ErasureNumber, who, signer platform.PrincipalName) error {
	d.t.Helper()
	r, err := d.State().Erasure(n)
	if err != nil {
		d.t.Fatal(err)
	}
	s := d.ErasureStatement(r, who, "seen")
	s.SignedAt = time.Now().UTC().Truncate(time.Millisecond)
	text, err := s.Encode()
	if err != nil {
		d.t.Fatal(err)
	}
	sig, err := sshsig.Sign(bytes.NewReader(text), keyOf(d.t, signer), sshsig.HashSHA512, change.Erasure.Namespace())
	if err != nil {
		d.t.Fatal(err)
	}
	spelled, err := sshkey.FromSSHSIG(sig)
	if err != nil {
		d.t.Fatal(err)
	}
	return d.ApproveErasure(d.t.Context(), person(who), n, control.Signed{Statement: text, Signature: []byte(spelled.String())}, "seen")
}

func TestErasureNeedsTwoOthers(t *testing.T) {
	d, plan := eraser(t)
	n := d.askToErase(plan)
	for name, err := range map[string]error{
		"who asked":     d.agree(n, "alice", "alice"),
		"a machine":     d.agree(n, "robot", "robot"),
		"another's key": d.agree(n, "bob", "carol"),
		"a stranger":    d.agree(n, "eve", "eve"),
	} {
		if fault.KindOf(err) != fault.Denied {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := d.agree(n, "bob", "bob"); err != nil {
		t.Fatal(err)
	}
	if err := d.agree(n, "bob", "bob"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("twice: got %v", err)
	}
	if err := d.Erased(plan); err != nil {
		t.Errorf("erased by one: %v", err)
	}
	if err := d.agree(n, "carol", "carol"); err != nil {
		t.Fatal(err)
	}
	err := d.Erased(plan)
	if fault.KindOf(err) != fault.NotFound || !strings.Contains(err.Error(), "was erased by entry") || !strings.Contains(err.Error(), "by alice, bob, carol: TICKET-1") {
		t.Errorf("got %v", err)
	}
	size := d.State().Size()
	if got := d.kinds(size - 2); !slices.Equal(got, []state.Kind{state.KindErasureApprove, state.KindErasure}) {
		t.Errorf("the last entries are %v", got)
	}
	if _, err := d.Content(plan); fault.KindOf(err) != fault.NotFound { // the blob is there still
		t.Errorf("reading it: %v", err)
	}
	for r, err := range d.References(t.Context()) {
		if err != nil || r == plan {
			t.Errorf("it is still referred to: %s, %v", r, err)
		}
	}
	d.crash() // the next start folds all of it again
	if d.Erased(plan) == nil {
		t.Error("forgotten after a restart")
	}
	d.audit()
}

func TestWhatIsNeededIsNotErased(t *testing.T) {
	d, _ := eraser(t)
	g, err := d.State().Generation("prod", 1)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := d.State().Bundle(g.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	for what, content := range map[string]digest.Digest{
		"the bundle of an earlier release": g.Bundle, "its source": bundle.Source, "the release": g.Release, "the head's plan": d.plan("prod", 2),
		"an image": digest.Of(manifest), "a layer": digest.Of([]byte("layer")),
	} {
		_, err := d.RequestErasure(t.Context(), person("alice"), control.Erasing{Digest: content, Authority: "GDPR", Law: true, Reason: "a name"})
		if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "it is needed: ") {
			t.Errorf("%s: got %v", what, err)
		}
	}
	_, err = d.RequestErasure(t.Context(), person("alice"), control.Erasing{Digest: digest.Of([]byte("no such thing")), Authority: "GDPR", Law: true, Reason: "a name"})
	if fault.KindOf(err) != fault.NotFound {
		t.Errorf("what nothing names: %v", err)
	}
}

func TestRetentionYieldsToALawAlone(t *testing.T) {
	d, plan := eraser(t, func(p *platform.Definition) {
		p.Retentions = []platform.Retention{{Name: "plans", Kinds: []string{"change.apply"}, KeepMillis: time.Hour.Milliseconds()}}
	})
	ask := control.Erasing{Digest: plan, Authority: "TICKET-1", Reason: "a name"}
	if _, err := d.RequestErasure(t.Context(), person("alice"), ask); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "retention plans has that kept until") {
		t.Errorf("a ticket: %v", err)
	}
	ask.Authority, ask.Law = "GDPR Art. 17", true
	if _, err := d.RequestErasure(t.Context(), person("alice"), ask); err != nil {
		t.Errorf("a law: %v", err)
	}
}

// A server that dies in the write has erased or has not, and never half; whoever records deletes nothing.
func TestErasureSurvivesACrashInItsWrite(t *testing.T) {
	for _, f := range []storetest.Fault{storetest.Fail, storetest.FailAfter, storetest.Crash, storetest.CrashAfter} {
		d, plan := eraser(t)
		n := d.askToErase(plan)
		if err := d.agree(n, "bob", "bob"); err != nil {
			t.Fatal(err)
		}
		d.disk.SetFaults(storetest.Nth(storetest.OpAppend, 1, f))
		err := d.agree(n, "carol", "carol")
		d.crash()
		r, failed := d.State().Erasure(n)
		if failed != nil {
			t.Fatal(failed)
		}
		erased := r.Status == state.Erased
		if err == nil && !erased || erased != (len(r.Approvals) == 2) || erased != (d.Erased(plan) != nil) {
			t.Errorf("fault %v: agreed with %v, then %s with %d approvals", f, err, r.Status, len(r.Approvals))
		}
		if !d.blobs.Has(plan) {
			t.Errorf("fault %v: the one who records deleted", f)
		}
		d.audit()
	}
}
