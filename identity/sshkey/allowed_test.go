package sshkey_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity/sshkey"
)

var (
	from  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	until = time.Date(2026, 12, 31, 23, 59, 59, 0, time.UTC)
	at    = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
)

// OpenSSH and we say the same of every kind of key, and of every way in which a signature may not count.
func TestOpenSSHAgreesOnWhatCounts(t *testing.T) {
	type question struct {
		principal, namespace, message string
		at                            time.Time
	}
	good := question{"alice", namespace, "message", at}
	cases := map[string]struct {
		ask  func(question) question
		want bool
	}{
		"good":               {func(q question) question { return q }, true},
		"first second":       {func(q question) question { q.at = from; return q }, true},
		"last second":        {func(q question) question { q.at = until; return q }, true},
		"another person":     {func(q question) question { q.principal = "bob"; return q }, false},
		"second name":        {func(q question) question { q.principal = "https://id.example.com#42"; return q }, true},
		"another namespace":  {func(q question) question { q.namespace = "invar-other@v1"; return q }, false},
		"namespace not ours": {func(q question) question { q.namespace = "git"; return q }, false},
		"too early":          {func(q question) question { q.at = from.Add(-time.Second); return q }, false},
		"too late":           {func(q question) question { q.at = until.Add(time.Second); return q }, false},
		"altered message":    {func(q question) question { q.message = "massage"; return q }, false},
	}
	for name, s := range signers(t) {
		sig := sign(t, s, namespace, "message")
		allowed := []sshkey.AllowedSigner{{
			Principals: []string{"alice", "https://id.example.com#42"}, Namespaces: []string{namespace, "git"},
			ValidAfter: from, ValidBefore: until, Key: keyOf(t, s),
		}}
		text, err := sshkey.FormatAllowedSigners(allowed)
		must(t, err)
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "allowed"), []byte(text), 0o600))
		must(t, os.WriteFile(filepath.Join(dir, "sig"), []byte(sig.String()), 0o600))
		for what, c := range cases {
			q := c.ask(good)
			_, err := sshkey.VerifyAllowed(allowed, q.principal, q.namespace, q.at, []byte(q.message), sig)
			if (err == nil) != c.want || err != nil && fault.KindOf(err) != fault.Denied {
				t.Errorf("%s, %s: we say %v, want %t", name, what, err, c.want)
			}
			out, err := runKeygen(t, q.message, "-Y", "verify", "-f", filepath.Join(dir, "allowed"), "-s", filepath.Join(dir, "sig"),
				"-I", q.principal, "-n", q.namespace, "-Overify-time="+q.at.Format("20060102150405Z"))
			if (err == nil) != c.want {
				t.Errorf("%s, %s: ssh-keygen says %v, want %t\n%s", name, what, err, c.want, out)
			}
		}
	}
}

func TestALaterLineMayAllowWhatAnEarlierDoesNot(t *testing.T) {
	s := newSoftEd25519(t, 1, 1)
	sig, key := sign(t, s, namespace, "message"), keyOf(t, s)
	allowed := []sshkey.AllowedSigner{
		{Principals: []string{"alice"}, ValidBefore: from, Key: key},
		{Principals: []string{"alice"}, ValidAfter: from, Key: key},
	}
	_, err := sshkey.VerifyAllowed(allowed, "alice", namespace, at, []byte("message"), sig)
	must(t, err)
	_, err = sshkey.VerifyAllowed(allowed[:1], "alice", namespace, at, []byte("message"), sig)
	if err == nil || !strings.Contains(err.Error(), "was valid until 2026-01-01T00:00:00Z") {
		t.Errorf("got %v, want the reason", err)
	}
}

func TestAllowedSignersReadsWhatItWrites(t *testing.T) {
	want := []sshkey.AllowedSigner{
		{Principals: []string{"alice", "a@b"}, Namespaces: []string{"git", namespace}, ValidAfter: from, ValidBefore: until, Key: keyOf(t, newSoftEd25519(t, 1, 1))},
		{Principals: []string{"bob"}, Key: keyOf(t, newSoftECDSA(t, 1, 1))},
		{Principals: []string{"carol"}, ValidBefore: until, Key: keyOf(t, newSoftECDSA(t, 1, 1))},
	}
	text, err := sshkey.FormatAllowedSigners(want)
	must(t, err)
	got, err := sshkey.ParseAllowedSigners(text)
	must(t, err)
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b sshkey.PublicKey) bool { return a == b })); d != "" {
		t.Errorf("read back (-want +got):\n%s", d)
	}
}

func TestAllowedSignersRefusesWhatOpenSSHWouldReadOtherwise(t *testing.T) {
	key := keyOf(t, newSoftEd25519(t, 1, 1))
	for what, s := range map[string]sshkey.AllowedSigner{
		"nobody":            {Key: key},
		"no key":            {Principals: []string{"alice"}},
		"pattern":           {Principals: []string{"*"}, Key: key},
		"negated":           {Principals: []string{"!alice"}, Key: key},
		"two in one":        {Principals: []string{"alice,bob"}, Key: key},
		"second line":       {Principals: []string{"alice\nmallory"}, Key: key},
		"comment":           {Principals: []string{"#alice"}, Key: key},
		"empty name":        {Principals: []string{""}, Key: key},
		"quote":             {Principals: []string{"alice"}, Namespaces: []string{`a"b`}, Key: key},
		"fraction":          {Principals: []string{"alice"}, ValidAfter: from.Add(time.Millisecond), Key: key},
		"before OpenSSH":    {Principals: []string{"alice"}, ValidAfter: time.Unix(1, 0), Key: key},
		"pattern namespace": {Principals: []string{"alice"}, Namespaces: []string{"invar-*"}, Key: key},
	} {
		if text, err := sshkey.FormatAllowedSigners([]sshkey.AllowedSigner{s}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: got %q, %v; want it refused", what, text, err)
		}
	}
}

func FuzzParseAllowedSigners(f *testing.F) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJKVUr9H4S1vEKFHjKPZCUBvpVUZCfBiKkWPXVFPnAhs\n"
	f.Add("alice " + key)
	f.Add(`alice,bob namespaces="git,x",valid-after="20260101000000Z",valid-before="20270101000000Z" ` + key)
	f.Add(`alice valid-after="20260101" ` + key)
	f.Fuzz(func(t *testing.T, text string) {
		signers, err := sshkey.ParseAllowedSigners(text)
		if err != nil {
			return
		}
		if got, err := sshkey.FormatAllowedSigners(signers); err != nil || got != text {
			t.Errorf("%q prints as %q, %v", text, got, err)
		}
	})
}
