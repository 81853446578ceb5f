package sshkey_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity/sshkey"
)

const namespace = "invar-test@v1"

func TestEveryKindOfKeyVerifiesAndTellsItsFacts(t *testing.T) {
	want := map[string]sshkey.Facts{
		"ed25519":    {Algorithm: "ssh-ed25519"},
		"rsa":        {Algorithm: "rsa-sha2-512"},
		"ecdsa-256":  {Algorithm: "ecdsa-sha2-nistp256"},
		"ecdsa-384":  {Algorithm: "ecdsa-sha2-nistp384"},
		"ecdsa-521":  {Algorithm: "ecdsa-sha2-nistp521"},
		"sk-ed25519": {Algorithm: ssh.KeyAlgoSKED25519, SecurityKey: true, Application: "ssh:", UserPresent: true, UserVerified: true, Counter: 7},
		"sk-ecdsa":   {Algorithm: ssh.KeyAlgoSKECDSA256, SecurityKey: true, Application: "ssh:", UserPresent: true},
	}
	for name, s := range signers(t) {
		t.Run(name, func(t *testing.T) {
			text := sign(t, s, namespace, "message").String()
			got, err := sshkey.Verify(keyOf(t, s), namespace, []byte("message"), text)
			must(t, err)
			w := want[name]
			w.Hash, w.Fingerprint = "sha512", ssh.FingerprintSHA256(s.PublicKey())
			if d := cmp.Diff(w, got); d != "" {
				t.Errorf("facts (-want +got):\n%s", d)
			}
		})
	}
}

func TestASignatureCountsForItsKeyNamespaceAndMessageOnly(t *testing.T) {
	all := signers(t)
	for name, s := range all {
		sig := sign(t, s, namespace, "message")
		other := keyOf(t, newSoftEd25519(t, 1, 1))
		for what, err := range map[string]error{
			"made with key":            second(sig.Verify(other, namespace, []byte("message"))),
			"made for namespace":       second(sig.Verify(sig.Key(), "invar-other@v1", []byte("message"))),
			"not over this message":    second(sig.Verify(sig.Key(), namespace, []byte("massage"))),
			"there is no key":          second(sig.Verify(sshkey.PublicKey{}, namespace, []byte("message"))),
			"no key, or no signature ": second(sshkey.Signature{}.Verify(sig.Key(), namespace, nil)),
		} {
			if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), strings.TrimSpace(what)) {
				t.Errorf("%s: got %v, want a denial that says %q", name, err, what)
			}
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestASecurityKeyMustBeTouched(t *testing.T) {
	for _, s := range []ssh.Signer{newSoftEd25519(t, 0x04, 1), newSoftECDSA(t, 0, 1)} {
		sig := sign(t, s, namespace, "message")
		if _, err := sig.Verify(sig.Key(), namespace, []byte("message")); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), "user presence") {
			t.Errorf("%s: got %v, want a denial for want of user presence", s.PublicKey().Type(), err)
		}
	}
}

func TestFlagsAndCounterAreSigned(t *testing.T) {
	s := newSoftEd25519(t, 0x01, 7)
	raw, err := sshsig.Sign(strings.NewReader("message"), s, sshsig.HashSHA512, namespace)
	must(t, err)
	for i, change := range []byte{0x04, 0, 0, 0, 1} {
		altered := *raw
		inner := *raw.Signature
		inner.Rest = append([]byte(nil), inner.Rest...)
		inner.Rest[i] ^= max(change, 2)
		altered.Signature = &inner
		sig, err := sshkey.FromSSHSIG(&altered)
		must(t, err)
		if _, err := sig.Verify(sig.Key(), namespace, []byte("message")); fault.KindOf(err) != fault.Denied {
			t.Errorf("byte %d of flags and counter altered: got %v, want a denial", i, err)
		}
	}
}

func TestWeakAndForeignKeysAreRefusedWithTheirReason(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	weakKey, err := ssh.NewPublicKey(&weak.PublicKey)
	must(t, err)
	_, ca, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	authority, err := ssh.NewSignerFromKey(ca)
	must(t, err)
	cert := &ssh.Certificate{Key: authority.PublicKey(), CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity}
	must(t, cert.SignCert(rand.Reader, authority))
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(authority.PublicKey())))
	for text, want := range map[string]string{
		string(ssh.MarshalAuthorizedKey(weakKey)):           "1024 bits is too weak",
		string(ssh.MarshalAuthorizedKey(cert)):              "certificates are not taken",
		"ssh-dss AAAAB3NzaC1kc3M=":                          "DSA is too weak",
		"ssh-rot13 AAAA":                                    `type "ssh-rot13" is not taken`,
		"ssh-ed25519":                                       "not one line of type and key",
		"ssh-ed25519 AAAA":                                  "short read",
		"ssh-ed25519 A-A":                                   "not base64",
		"no-pty " + line:                                    `type "no-pty" is not taken`,
		line + "\n" + line:                                  "not one line",
		"ssh-rsa" + strings.TrimPrefix(line, "ssh-ed25519"): "it says ssh-rsa, and is ssh-ed25519",
		"":                         "not one line",
		strings.Repeat("a", 9<<10): "larger than",
	} {
		if _, err := sshkey.ParsePublicKey(text); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: got %v, want %q", text, err, want)
		}
	}
}

func TestSHA1SignaturesAreRefused(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	s, err := ssh.NewSignerFromKey(key)
	must(t, err)
	sig, err := sshsig.Sign(strings.NewReader("message"), s, sshsig.HashSHA512, namespace)
	must(t, err)
	old, err := s.Sign(rand.Reader, []byte("message")) // SHA-1
	must(t, err)
	sig.Signature = old
	if _, err := sshkey.FromSSHSIG(sig); fault.KindOf(err) != fault.Invalid {
		t.Errorf("got %v, want it refused", err)
	}
}

func TestAKeyIsTextInJSON(t *testing.T) {
	key := keyOf(t, newSoftECDSA(t, 1, 1))
	b, err := json.Marshal(key)
	must(t, err)
	var got sshkey.PublicKey
	must(t, json.Unmarshal(b, &got))
	if got != key {
		t.Errorf("got %s, want %s", got, key)
	}
	if json.Unmarshal([]byte(`"`+key.String()+` comment"`), &got) == nil {
		t.Error("a second spelling is taken")
	}
	with, err := sshkey.ParsePublicKey(key.String() + " alice@bank\n")
	if err != nil || with != key {
		t.Errorf("with a comment: got %s, %v", with, err)
	}
}

func TestWhatSSHKeygenSignsVerifies(t *testing.T) {
	for _, args := range [][]string{{"-t", "ed25519"}, {"-t", "ecdsa", "-b", "384"}, {"-t", "rsa", "-b", "2048"}} {
		dir := t.TempDir()
		key := filepath.Join(dir, "key")
		keygen(t, "", append([]string{"-q", "-N", "", "-C", "alice@bank", "-f", key}, args...)...)
		must(t, os.WriteFile(filepath.Join(dir, "message"), []byte("message"), 0o600))
		keygen(t, "", "-Y", "sign", "-f", key, "-n", namespace, filepath.Join(dir, "message"))
		public, err := sshkey.ParsePublicKey(read(t, key+".pub"))
		must(t, err)
		if _, err := sshkey.Verify(public, namespace, []byte("message"), read(t, filepath.Join(dir, "message.sig"))); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// keygen runs ssh-keygen, and returns what it says when it fails.
func keygen(t *testing.T, stdin string, args ...string) {
	t.Helper()
	if out, err := runKeygen(t, stdin, args...); err != nil {
		t.Fatalf("ssh-keygen %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func runKeygen(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip("ssh-keygen is not installed")
	}
	cmd := exec.CommandContext(t.Context(), "ssh-keygen", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	return string(b)
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJKVUr9H4S1vEKFHjKPZCUBvpVUZCfBiKkWPXVFPnAhs")
	f.Add("sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIJKVUr9H4S1vEKFHjKPZCUBvpVUZCfBiKkWPXVFPnAhsAAAABHNzaDo= x")
	f.Fuzz(func(t *testing.T, line string) {
		key, err := sshkey.ParsePublicKey(line)
		if err != nil {
			return
		}
		again, err := sshkey.ParsePublicKey(key.String())
		if err != nil || again != key {
			t.Errorf("%q: printed and parsed again: %v, %v", line, again, err)
		}
		if !strings.HasPrefix(strings.Join(strings.Fields(line), " "), key.String()) {
			t.Errorf("%q is taken for %s", line, key)
		}
	})
}

func FuzzParseSignature(f *testing.F) {
	for _, name := range []string{"ed25519", "rsa"} { // made by ssh-keygen
		b, err := os.ReadFile(filepath.Join("testdata", name+".sig"))
		must(f, err)
		f.Add(string(b))
	}
	f.Add(sign(f, newSoftEd25519(f, 1, 1), namespace, "message").String())
	f.Add(sign(f, newSoftECDSA(f, 5, 9), namespace, "message").String())
	f.Fuzz(func(t *testing.T, text string) {
		sig, err := sshkey.ParseSignature(text)
		if err != nil {
			return
		}
		if got := sig.String(); got != text {
			t.Errorf("%q prints as %q", text, got)
		}
		_, _ = sig.Verify(sig.Key(), sig.Namespace(), []byte("message")) // must not panic
	})
}
