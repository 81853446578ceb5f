package signer_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity/sshkey"
	"github.com/invarhq/invar/identity/sshkey/signer"
)

const namespace = "invar-test@v1"

func TestAKeyFileSigns(t *testing.T) {
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		file := newKey(t, kind, "")
		checkSigns(t, signer.Config{Key: file}, publicOf(t, file))
	}
}

func TestAnEncryptedFileAsksForItsPassphrase(t *testing.T) {
	file := newKey(t, "ed25519", "correct horse")
	asked := ""
	checkSigns(t, signer.Config{Key: file, Passphrase: func(name string) ([]byte, error) {
		asked = name
		return []byte("correct horse"), nil
	}}, publicOf(t, file))
	if asked != file {
		t.Errorf("asked for the passphrase of %q, want %q", asked, file)
	}
	refused := errors.New("no terminal")
	for what, ask := range map[string]func(string) ([]byte, error){
		"encrypted":   nil,
		"no terminal": func(string) ([]byte, error) { return nil, refused },
		"incorrect":   func(string) ([]byte, error) { return []byte("wrong horse"), nil },
	} {
		if _, err := signer.Open(t.Context(), signer.Config{Key: file, Passphrase: ask}); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("got %v, want an error that says %q", err, what)
		}
	}
}

func TestAFileThatOthersMayReadIsRefused(t *testing.T) {
	file := newKey(t, "ed25519", "")
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620} {
		must(t, os.Chmod(file, mode))
		if _, err := signer.Open(t.Context(), signer.Config{Key: file}); fault.KindOf(err) != fault.Denied || !strings.Contains(fault.Hint(err), "chmod 600") {
			t.Errorf("mode %04o: got %v", mode, err)
		}
	}
}

func TestTheAgentsKeyIsChosenByFileFingerprintOrComment(t *testing.T) {
	socket := startAgent(t)
	one, two := newKey(t, "ed25519", ""), newKey(t, "rsa", "")
	add(t, socket, one)
	checkSigns(t, signer.Config{AgentSocket: socket}, publicOf(t, one)) // the only one
	add(t, socket, two)
	must(t, os.Remove(two))
	key := publicOf(t, two)
	for _, name := range []string{two + ".pub", key.Fingerprint(), "rsa@bank"} {
		checkSigns(t, signer.Config{AgentSocket: socket, Key: name}, key)
	}
	for name, want := range map[string]fault.Kind{"": fault.Invalid, "nobody@bank": fault.NotFound} {
		_, err := signer.Open(t.Context(), signer.Config{AgentSocket: socket, Key: name})
		if fault.KindOf(err) != want || !strings.Contains(fault.Hint(err), key.Fingerprint()+" rsa@bank") {
			t.Errorf("%q: got %v, hint %q; want the choices", name, err, fault.Hint(err))
		}
	}
}

func TestAPublicKeyFileFindsTheFileBesideIt(t *testing.T) {
	file := newKey(t, "ed25519", "")
	checkSigns(t, signer.Config{Key: file + ".pub"}, publicOf(t, file))
	other := newKey(t, "ed25519", "")
	must(t, os.Rename(other, file))
	if _, err := signer.Open(t.Context(), signer.Config{Key: file + ".pub"}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("got %v, want the other key refused", err)
	}
}

func TestNoKeyAndNoAgentSaysWhatToDo(t *testing.T) {
	for what, c := range map[string]signer.Config{
		"no ssh-agent":           {},
		"no such file":           {Key: filepath.Join(t.TempDir(), "id")},
		"reaching the ssh-agent": {AgentSocket: filepath.Join(t.TempDir(), "agent")},
		"not one line":           {Key: write(t, "x.pub", "nothing")},
		"no key found":           {Key: write(t, "x", "nothing")},
	} {
		if _, err := signer.Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("got %v, want an error that says %q", err, what)
		}
	}
}

// A security key waits for a touch that may never come.
func TestSigningEndsWithItsContext(t *testing.T) {
	file := newKey(t, "ed25519", "")
	real := startAgent(t)
	add(t, real, file)
	socket, stalled := stallingAgent(t, real)
	s, err := signer.Open(t.Context(), signer.Config{AgentSocket: socket})
	must(t, err)
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // ends when the agent has been asked to sign, which it is
		<-stalled
		cancel()
	}()
	if _, err := s.Sign(ctx, namespace, []byte("message")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's end", err)
	}
}

// stallingAgent passes the first two requests (for the keys) on, and then does not answer.
func stallingAgent(t *testing.T, real string) (socket string, stalled <-chan struct{}) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	stall := make(chan struct{})
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		in, err := l.Accept()
		if err != nil {
			return
		}
		defer in.Close()
		out, err := net.Dial("unix", real)
		if err != nil {
			return
		}
		defer out.Close()
		for range 2 {
			if passFrame(out, in) != nil || passFrame(in, out) != nil {
				return
			}
		}
		if _, err := io.ReadFull(in, make([]byte, 5)); err == nil {
			close(stall)
		}
		_, _ = io.Copy(io.Discard, in) // until the caller hangs up
	}()
	return socket, stall
}

// passFrame copies one message of the agent's protocol: four bytes of length, then that many.
func passFrame(to io.Writer, from io.Reader) error {
	head := make([]byte, 4)
	if _, err := io.ReadFull(from, head); err != nil {
		return err
	}
	body := make([]byte, int(head[0])<<24|int(head[1])<<16|int(head[2])<<8|int(head[3]))
	if _, err := io.ReadFull(from, body); err != nil {
		return err
	}
	_, err := to.Write(append(head, body...))
	return err
}

func checkSigns(t *testing.T, c signer.Config, key sshkey.PublicKey) {
	t.Helper()
	s, err := signer.Open(t.Context(), c)
	if err != nil {
		t.Errorf("key %q: %v", c.Key, err)
		return
	}
	defer s.Close()
	if s.Key() != key {
		t.Errorf("key %q: got %s, want %s", c.Key, s.Key().Fingerprint(), key.Fingerprint())
		return
	}
	sig, err := s.Sign(t.Context(), namespace, []byte("message"))
	must(t, err)
	if _, err := sshkey.Verify(key, namespace, []byte("message"), sig.String()); err != nil {
		t.Errorf("key %q: %v", c.Key, err)
	}
}

// startAgent runs an ssh-agent until the test ends.
func startAgent(t *testing.T) (socket string) {
	t.Helper()
	tool(t, "ssh-agent")
	socket = filepath.Join(t.TempDir(), "agent")
	cmd := exec.Command("ssh-agent", "-D", "-a", socket)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil { // it speaks when it listens
		t.Fatalf("ssh-agent: %v", err)
	}
	return socket
}

func add(t *testing.T, socket, file string) {
	t.Helper()
	tool(t, "ssh-add")
	cmd := exec.CommandContext(t.Context(), "ssh-add", "-q", file)
	cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ssh-add: %v\n%s", err, out)
	}
}

// newKey makes a key pair with ssh-keygen; its comment is KIND@bank.
func newKey(t *testing.T, kind, passphrase string) (file string) {
	t.Helper()
	tool(t, "ssh-keygen")
	file = filepath.Join(t.TempDir(), "id")
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", kind, "-b", map[string]string{"ed25519": "256", "ecdsa": "256", "rsa": "2048"}[kind], "-N", passphrase, "-C", kind+"@bank", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	return file
}

func publicOf(t *testing.T, file string) sshkey.PublicKey {
	t.Helper()
	line, err := os.ReadFile(file + ".pub")
	must(t, err)
	key, err := sshkey.ParsePublicKey(string(line))
	must(t, err)
	return key
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

func tool(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(name + " is not installed")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
