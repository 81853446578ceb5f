// Package signer signs with SSH keys (package sshkey): with one that an ssh-agent holds, or with a private key file.
//
// Keys in FIDO security keys sign through the agent, which talks to the device: ssh-add FILE once, then touch when it asks.
// Private key files are refused when others than their owner could read them, as ssh does.
package signer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity/sshkey"
)

// Limits.
const (
	agentDial   = 5 * time.Second
	maxKeyBytes = 64 << 10 // of a private key file
)

// Config says which key to sign with. The zero value finds none.
type Config struct {
	// Key is the file of a private key, or of its public key (*.pub: then the agent has the private one, or the file beside
	// it is used), or the fingerprint (SHA256:…) or the comment of a key of the agent. "" is the agent's only key.
	Key string

	// AgentSocket is where the agent listens: SSH_AUTH_SOCK. "" is no agent.
	AgentSocket string

	// Passphrase asks for the passphrase of an encrypted file. nil: such files are refused.
	Passphrase func(file string) ([]byte, error)
}

// Signer signs with one key. Close it when done.
type Signer struct {
	signer ssh.Signer
	key    sshkey.PublicKey
	conn   net.Conn // to the agent, or nil
}

// Open finds the key. It fails with fault.NotFound when there is none such, and with fault.Invalid when it can't be used.
func Open(ctx context.Context, c Config) (*Signer, error) {
	if c.Key == "" || strings.HasPrefix(c.Key, "SHA256:") {
		return openAgent(ctx, c, byName(c.Key))
	}
	if strings.HasSuffix(c.Key, ".pub") {
		return openPublic(ctx, c)
	}
	if _, err := os.Stat(c.Key); errors.Is(err, os.ErrNotExist) {
		return openAgent(ctx, c, byName(c.Key))
	}
	return openFile(c.Key, c.Passphrase)
}

// Key returns the public key.
func (s *Signer) Key() sshkey.PublicKey { return s.key }

// Close ends the connection to the agent, if there is one.
func (s *Signer) Close() error {
	if s.conn == nil {
		return nil
	}
	return s.conn.Close()
}

// Sign signs the message for the namespace. With a security key it waits for the touch, as long as ctx lets it; a Signer
// whose ctx ended is of no use any more.
func (s *Signer) Sign(ctx context.Context, namespace string, message []byte) (sshkey.Signature, error) {
	if s.conn != nil {
		defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	}
	sig, err := sshsig.SignWithRand(strings.NewReader(string(message)), rand.Reader, s.signer, sshsig.HashSHA512, namespace)
	if ctx.Err() != nil {
		return sshkey.Signature{}, fmt.Errorf("signing with key %s: %w", s.key.Fingerprint(), ctx.Err())
	}
	if err != nil {
		return sshkey.Signature{}, fmt.Errorf("signing with key %s: %w", s.key.Fingerprint(), err)
	}
	signed, err := sshkey.FromSSHSIG(sig)
	if err != nil {
		return sshkey.Signature{}, err
	}
	if _, err := signed.Verify(s.key, namespace, message); err != nil { // an agent may answer anything
		return sshkey.Signature{}, fmt.Errorf("what key %s signed: %w", s.key.Fingerprint(), err)
	}
	return signed, nil
}

// choice tells whether a key of the agent, with its comment, is the one that is meant.
type choice func(key sshkey.PublicKey, comment string) bool

// byName chooses by fingerprint or comment; "" takes any.
func byName(name string) choice {
	return func(key sshkey.PublicKey, comment string) bool {
		return name == "" || name == comment || name == key.Fingerprint()
	}
}

// openAgent chooses the one key of the agent that is meant.
func openAgent(ctx context.Context, c Config, chosen choice) (*Signer, error) {
	if c.AgentSocket == "" {
		return nil, fault.WithHint(fault.Errorf(fault.NotFound, "SSH key %s: no ssh-agent, and no such file", named(c.Key)),
			"start an agent and add a key (ssh-add), or name a private key file with --key")
	}
	conn, err := (&net.Dialer{Timeout: agentDial}).DialContext(ctx, "unix", c.AgentSocket)
	if err != nil {
		return nil, fault.WithHint(fault.Errorf(fault.Unavailable, "reaching the ssh-agent: %w", err), "SSH_AUTH_SOCK says where it listens")
	}
	s, err := chooseSigner(ctx, conn, c.Key, chosen)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

func chooseSigner(ctx context.Context, conn net.Conn, name string, chosen choice) (*Signer, error) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	client := agent.NewClient(conn)
	held, err := client.List()
	if err != nil {
		return nil, fault.Errorf(fault.Unavailable, "asking the ssh-agent for its keys: %w", err)
	}
	signers, err := client.Signers()
	if err != nil {
		return nil, fault.Errorf(fault.Unavailable, "asking the ssh-agent for its keys: %w", err)
	}
	comments := map[string]string{}
	for _, k := range held {
		comments[string(k.Marshal())] = k.Comment
	}
	var found []*Signer
	var choices []string
	for _, s := range signers {
		key, err := sshkey.FromSSH(s.PublicKey())
		if err != nil {
			continue // of a kind that is not taken, such as a certificate
		}
		comment := comments[string(s.PublicKey().Marshal())]
		choices = append(choices, key.Fingerprint()+" "+comment)
		if chosen(key, comment) {
			found = append(found, &Signer{signer: s, key: key, conn: conn})
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, fault.WithHint(fault.Errorf(fault.Invalid, "SSH key %s: the ssh-agent holds %d such keys", named(name), len(found)),
			"choose one with --key: %s", strings.Join(choices, "; "))
	case len(choices) > 0:
		return nil, fault.WithHint(fault.Errorf(fault.NotFound, "SSH key %s: not a file, and not in the ssh-agent", named(name)),
			"the agent holds: %s", strings.Join(choices, "; "))
	}
	return nil, fault.WithHint(fault.Errorf(fault.NotFound, "SSH key %s: the ssh-agent holds no key that is taken", named(name)), "ssh-add FILE")
}

func named(name string) string {
	if name == "" {
		return "of the agent"
	}
	return fmt.Sprintf("%q", name)
}

// openPublic takes the private key that belongs to a file *.pub: from the agent, else from the file beside it.
func openPublic(ctx context.Context, c Config) (*Signer, error) {
	line, err := os.ReadFile(c.Key)
	if err != nil {
		return nil, fault.As(fault.NotFound, fmt.Errorf("SSH key: %w", err))
	}
	want, err := sshkey.ParsePublicKey(strings.TrimSpace(string(line)))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", c.Key, err)
	}
	s, agentErr := openAgent(ctx, c, func(key sshkey.PublicKey, _ string) bool { return key == want })
	if agentErr == nil {
		return s, nil
	}
	private := strings.TrimSuffix(c.Key, ".pub")
	if _, err := os.Stat(private); err != nil {
		return nil, agentErr
	}
	if s, err = openFile(private, c.Passphrase); err != nil {
		return nil, err
	}
	if s.key != want {
		return nil, fault.Errorf(fault.Invalid, "SSH key: %s is not the private key of %s", private, filepath.Base(c.Key))
	}
	return s, nil
}

// openFile reads a private key.
func openFile(file string, passphrase func(string) ([]byte, error)) (*Signer, error) {
	text, err := readPrivate(file)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if _, encrypted := errors.AsType[*ssh.PassphraseMissingError](err); encrypted {
		if passphrase == nil {
			return nil, fault.WithHint(fault.Errorf(fault.Invalid, "SSH key %s: encrypted, and nobody to ask for its passphrase", file), "ssh-add %s", file)
		}
		secret, askErr := passphrase(file)
		if askErr != nil {
			return nil, fmt.Errorf("passphrase of SSH key %s: %w", file, askErr)
		}
		signer, err = ssh.ParsePrivateKeyWithPassphrase(text, secret)
	}
	if err != nil {
		if strings.Contains(string(text), "PRIVATE KEY") && strings.Contains(err.Error(), "unhandled key type") {
			return nil, fault.WithHint(fault.Errorf(fault.Invalid, "SSH key %s: the key is in a device", file), "ssh-add %s, and name it by its .pub file", file)
		}
		return nil, fault.Errorf(fault.Invalid, "SSH key %s: %w", file, err)
	}
	key, err := sshkey.FromSSH(signer.PublicKey())
	if err != nil {
		return nil, fmt.Errorf("SSH key %s: %w", file, err)
	}
	return &Signer{signer: signer, key: key}, nil
}

// readPrivate reads a file that only its owner may read.
func readPrivate(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fault.As(fault.NotFound, fmt.Errorf("SSH key: %w", err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("SSH key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fault.Errorf(fault.Invalid, "SSH key %s: not a file", file)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fault.WithHint(fault.Errorf(fault.Denied, "SSH key %s: others may read it (mode %04o)", file, info.Mode().Perm()), "chmod 600 %s", file)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyBytes))
	if err != nil {
		return nil, fmt.Errorf("SSH key: %w", err)
	}
	return text, nil
}
