package challenge_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/identity/challenge"
	"github.com/invarhq/invar/identity/sshkey"
)

const server = "invar.bank.example:7373"

var now = time.Date(2026, 11, 25, 13, 0, 0, 123, time.UTC)

func anybody(identity.Identity) error { return nil }

func TestASignedChallengeProvesTheKeyOnce(t *testing.T) {
	d, key := newDesk(t), newKey(t)
	c := issue(t, d)
	must(t, c.For(server))
	sig := sign(t, key, challenge.Namespace, c.String())
	id, err := d.Redeem(c.String(), sig, server, now.Add(time.Minute), anybody)
	must(t, err)
	want, err := sshkey.FromSSH(key.PublicKey())
	must(t, err)
	if id.Method != identity.SSH || id.Key != want.String() || id.Name != want.Fingerprint() || id.Proof.Algorithm != "ssh-ed25519" {
		t.Errorf("got %+v", id)
	}
	if _, err := d.Redeem(c.String(), sig, server, now.Add(time.Minute), anybody); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "used already") {
		t.Errorf("a second time: got %v", err)
	}
}

func TestOneOfManyAtOnceCounts(t *testing.T) {
	d, key := newDesk(t), newKey(t)
	c := issue(t, d)
	sig := sign(t, key, challenge.Namespace, c.String())
	var counted atomic.Int32
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := d.Redeem(c.String(), sig, server, now, anybody); err == nil {
				counted.Add(1)
			}
		})
	}
	all.Wait()
	if counted.Load() != 1 {
		t.Errorf("%d counted, want 1", counted.Load())
	}
}

func TestWhoMayNotLogInUsesNothingUp(t *testing.T) {
	d, key := newDesk(t), newKey(t)
	c := issue(t, d)
	sig := sign(t, key, challenge.Namespace, c.String())
	unknown := errors.New("nobody's key")
	if _, err := d.Redeem(c.String(), sig, server, now, func(identity.Identity) error { return unknown }); !errors.Is(err, unknown) {
		t.Errorf("got %v, want the reason", err)
	}
	_, err := d.Redeem(c.String(), sig, server, now, anybody)
	must(t, err)
}

func TestChallengesThatDoNotCount(t *testing.T) {
	d, key := newDesk(t), newKey(t)
	c := issue(t, d)
	later := c
	later.ExpiresAt = later.ExpiresAt.Add(time.Hour)
	renamed := c
	renamed.Server = "evil.example"
	text := c.String()
	for name, x := range map[string]struct {
		text, namespace, server string
		after                   time.Duration
		reason                  string
	}{
		"expired":         {text, challenge.Namespace, server, challenge.Lifetime, "it expired at"},
		"of another desk": {issue(t, newDesk(t)).String(), challenge.Namespace, server, 0, "not from this server"},
		"prolonged":       {later.String(), challenge.Namespace, server, 0, "not from this server"},
		"renamed":         {renamed.String(), challenge.Namespace, "evil.example", 0, "not from this server"},
		"passed on":       {text, challenge.Namespace, "evil.example", 0, "comes back to"},
		"an approval":     {text, "invar-approval@v1", server, 0, "made for namespace"},
	} {
		_, err := d.Redeem(x.text, sign(t, key, x.namespace, x.text), x.server, now.Add(x.after), anybody)
		if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), x.reason) {
			t.Errorf("%s: got %v, want a denial that says %q", name, err, x.reason)
		}
	}
	if _, err := d.Redeem(text, sign(t, key, challenge.Namespace, text+"x"), server, now, anybody); fault.KindOf(err) != fault.Denied {
		t.Errorf("a signature over another text: got %v", err)
	}
	for _, bad := range []string{"", "invar login v1\n", strings.TrimSuffix(text, "\n"), text + "\n", strings.ReplaceAll(text, "00Z", "00+00:00")} {
		if _, err := d.Redeem(bad, sign(t, key, challenge.Namespace, "x"), server, now, anybody); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: got %v, want it malformed", bad, err)
		}
	}
}

// A server that somebody was lured to passes the real one's challenge on.
func TestAClientSignsForTheServerThatItAskedOnly(t *testing.T) {
	c := issue(t, newDesk(t))
	for _, host := range []string{"evil.example:7373", "invar.bank.example", "", "INVAR.bank.example:7373"} {
		if err := c.For(host); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), server) {
			t.Errorf("%q: got %v, want it refused", host, err)
		}
	}
	for _, life := range []time.Duration{-time.Second, 0, time.Hour} {
		c.ExpiresAt = c.IssuedAt.Add(life)
		if err := c.For(server); fault.KindOf(err) != fault.Denied {
			t.Errorf("good for %s: got %v, want it refused", life, err)
		}
	}
}

func TestANameThatCannotBeInAChallengeGetsNone(t *testing.T) {
	for _, name := range []string{"", "a\nnonce: x", strings.Repeat("a", 2000)} {
		if _, err := newDesk(t).Issue(rand.Reader, name, now); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%.20q: got %v", name, err)
		}
	}
}

func TestSSHKeygenSignsAChallenge(t *testing.T) {
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip("ssh-keygen is not installed")
	}
	d, dir := newDesk(t), t.TempDir()
	c, key := issue(t, d), filepath.Join(dir, "key")
	must(t, os.WriteFile(filepath.Join(dir, "challenge"), []byte(c.String()), 0o600))
	for _, args := range [][]string{{"-q", "-t", "ed25519", "-N", "", "-f", key}, {"-q", "-Y", "sign", "-n", challenge.Namespace, "-f", key, filepath.Join(dir, "challenge")}} {
		if out, err := exec.CommandContext(t.Context(), "ssh-keygen", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	sig, err := os.ReadFile(filepath.Join(dir, "challenge.sig"))
	must(t, err)
	_, err = d.Redeem(c.String(), string(sig), server, now, anybody)
	must(t, err)
}

func FuzzParse(f *testing.F) {
	d, err := challenge.NewDesk(rand.Reader)
	must(f, err)
	c, err := d.Issue(rand.Reader, server, now)
	must(f, err)
	f.Add(c.String())
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := challenge.Parse(text); err == nil && c.String() != text {
			t.Errorf("%q prints as %q", text, c)
		}
	})
}

func newDesk(t *testing.T) *challenge.Desk {
	t.Helper()
	d, err := challenge.NewDesk(rand.Reader)
	must(t, err)
	return d
}

func issue(t *testing.T, d *challenge.Desk) challenge.Challenge {
	t.Helper()
	c, err := d.Issue(rand.Reader, server, now)
	must(t, err)
	return c
}

func newKey(t *testing.T) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	s, err := ssh.NewSignerFromKey(private)
	must(t, err)
	return s
}

func sign(t *testing.T, key ssh.Signer, namespace, text string) string {
	t.Helper()
	raw, err := sshsig.Sign(strings.NewReader(text), key, sshsig.HashSHA512, namespace)
	must(t, err)
	sig, err := sshkey.FromSSHSIG(raw)
	must(t, err)
	return sig.String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
