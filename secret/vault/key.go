package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"filippo.io/age"

	"github.com/invarhq/invar/durable"
	"github.com/invarhq/invar/fault"
)

// identity is what decrypts, and what to encrypt to.
type identity struct {
	age.Identity
	to age.Recipient
}

func (i identity) recipient() age.Recipient { return i.to }

// Key finds the identity. It is asked each time a secret is made or opened.
type Key interface {
	// identity returns the identity. Where none was ever made, and empty says that nothing was encrypted yet, it may make one.
	identity(empty func() (bool, error)) (identity, error)
}

// keyFile is a key in a file, made at the first need.
type keyFile struct {
	path string

	mu sync.Mutex // guards the making, and known
	// known is kept once it is read: later loss of the file is noticed at the next start.
	known *identity
}

// KeyFile returns a key that lies in a file: an age identity, as age-keygen writes it. The file is made when the first secret
// is; once there are secrets, one that is missing is damage and never made anew.
func KeyFile(path string) Key { return &keyFile{path: path} }

func (k *keyFile) identity(empty func() (bool, error)) (identity, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.known != nil {
		return *k.known, nil
	}
	id, err := k.read()
	if errors.Is(err, fs.ErrNotExist) {
		id, err = k.make(empty)
	}
	if err != nil {
		return identity{}, err
	}
	k.known = &id
	return id, nil
}

func (k *keyFile) read() (identity, error) {
	text, err := os.ReadFile(k.path)
	if err != nil {
		return identity{}, err
	}
	defer clear(text)
	id, err := parseIdentity(text)
	if err != nil {
		return identity{}, fault.WithHint(fault.As(fault.Corrupt, fmt.Errorf("reading %s: %w", k.path, err)), "restore it from a backup")
	}
	return id, nil
}

// make makes the key, durably before anything is encrypted to it.
func (k *keyFile) make(empty func() (bool, error)) (identity, error) {
	first, err := empty()
	if err != nil {
		return identity{}, err
	}
	if !first {
		return identity{}, fault.WithHint(fault.Errorf(fault.Corrupt, "the key %s is missing, and there are secrets that were made with it", k.path),
			"restore it from a backup, or give it with --secrets-key-command; docs/secrets.md says what to do when it is lost for good")
	}
	made, err := age.GenerateX25519Identity()
	if err != nil {
		return identity{}, err
	}
	text := fmt.Appendf(nil, "# public key: %s\n%s\n", made.Recipient(), made)
	defer clear(text)
	if err := os.MkdirAll(filepath.Dir(k.path), 0o700); err != nil {
		return identity{}, fmt.Errorf("making the key of secrets: %w", err)
	}
	if err := durable.Write(k.path, text, 0o600); err != nil {
		return identity{}, fmt.Errorf("making the key of secrets: %w", err)
	}
	return identity{made, made.Recipient()}, nil
}

// held is a key in memory alone.
type held struct{ id identity }

func (h held) identity(func() (bool, error)) (identity, error) { return h.id, nil }

// commandWithin bounds the time of a key command.
const commandWithin = time.Minute

// KeyCommand returns the key that a command of the shell prints: an age identity. It is run once, now; what it prints is kept in
// memory and nowhere else. Its standard error goes to ours.
func KeyCommand(ctx context.Context, command string) (Key, error) {
	ctx, cancel := context.WithTimeout(ctx, commandWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = time.Second
	text, err := cmd.Output()
	defer clear(text)
	if err != nil {
		return nil, fault.As(fault.Unavailable, fmt.Errorf("asking the command for the key of secrets: %w", errors.Join(ctx.Err(), err)))
	}
	id, err := parseIdentity(text)
	if err != nil {
		return nil, fault.WithHint(fault.As(fault.Invalid, fmt.Errorf("reading what the command for the key of secrets printed: %w", err)),
			"it prints one age identity, as age-keygen writes it")
	}
	return held{id}, nil
}

// parseIdentity reads one identity of age's own kinds. Its errors hold nothing of the text.
func parseIdentity(text []byte) (identity, error) {
	ids, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil || len(ids) != 1 {
		return identity{}, errors.New("it is not one age identity")
	}
	switch id := ids[0].(type) {
	case *age.X25519Identity:
		return identity{id, id.Recipient()}, nil
	case *age.HybridIdentity:
		return identity{id, id.Recipient()}, nil
	}
	return identity{}, errors.New("it is an age identity of a kind that is not known")
}
