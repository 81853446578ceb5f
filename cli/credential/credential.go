// Package credential keeps a person's logins, one file a server, in a directory of his own ($XDG_CONFIG_HOME/invar/logins). The
// files hold secrets: they are for their owner alone (0600), and are refused when others could read them.
//
// A file is replaced as a whole, so that a crash leaves the old login or the new. Whoever renews a login holds a lock meanwhile: a
// provider takes a refresh token once, and two commands at once must not spend the same.
package credential

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/durable"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
)

const maxBytes = 256 << 10 // of a file

// Login is what a login left.
type Login struct {
	Server    string          `json:"server"` // its address, as given to --server
	Method    identity.Method `json:"method"`
	Token     string          `json:"token"` // what is shown to the server
	ExpiresAt time.Time       `json:"expires_at"`

	Session string `json:"session,omitempty"` // ssh: name of the server's session, to end it by

	Issuer   string   `json:"issuer,omitempty"` // oidc: where the next token comes from
	ClientID string   `json:"client_id,omitempty"`
	Scopes   []string `json:"scopes,omitempty"`
	Refresh  string   `json:"refresh,omitempty"`
}

// Store is a directory of logins. It is made when the first is kept.
type Store struct{ Dir string }

func (s Store) file(server string) string {
	return filepath.Join(s.Dir, url.QueryEscape(server)+".json")
}

// Load returns the login to a server, or fault.NotFound.
func (s Store) Load(server string) (Login, error) {
	f, err := os.Open(s.file(server))
	if errors.Is(err, fs.ErrNotExist) {
		return Login{}, fault.WithHint(fault.Errorf(fault.NotFound, "not logged in to %s", server), "invar login --server %s", server)
	}
	if err != nil {
		return Login{}, fmt.Errorf("reading the login to %s: %w", server, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Login{}, fmt.Errorf("reading the login to %s: %w", server, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return Login{}, fault.WithHint(fault.Errorf(fault.Denied, "the login to %s: others may read %s (mode %04o)", server, f.Name(), info.Mode().Perm()),
			"log in again, so that what they may have read ends: invar logout && invar login")
	}
	text, err := io.ReadAll(io.LimitReader(f, maxBytes))
	if err != nil {
		return Login{}, fmt.Errorf("reading the login to %s: %w", server, err)
	}
	l, err := decode(text)
	if err != nil || l.Server != server {
		return Login{}, fault.WithHint(fault.Errorf(fault.Corrupt, "the login to %s: %s is not as invar writes it", server, f.Name()), "invar login --server %s", server)
	}
	return l, nil
}

func encode(l Login) ([]byte, error) {
	text, err := json.MarshalIndent(l, "", "  ")
	return append(text, '\n'), err
}

func decode(text []byte) (Login, error) {
	var l Login
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return Login{}, err
	}
	again, err := encode(l)
	if err == nil && !bytes.Equal(again, text) {
		err = errors.New("it has a second spelling")
	}
	return l, err
}

// Save keeps a login, in place of the one before.
func (s Store) Save(l Login) error {
	text, err := encode(l)
	if err != nil {
		return fmt.Errorf("keeping the login to %s: %w", l.Server, err)
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("keeping the login to %s: %w", l.Server, err)
	}
	if err := durable.Write(s.file(l.Server), text, 0o600); err != nil {
		return fmt.Errorf("keeping the login to %s: %w", l.Server, err)
	}
	return nil
}

// Delete forgets a login. That there is none is no error.
func (s Store) Delete(server string) error {
	if err := os.Remove(s.file(server)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forgetting the login to %s: %w", server, err)
	}
	return nil
}

// Renew replaces a login by what renew makes of it, unless another process has done so by the time that it is our turn: then
// stale says no, and the other's is returned.
func (s Store) Renew(server string, stale func(Login) bool, renew func(Login) (Login, error)) (Login, error) {
	unlock, err := s.lock()
	if err != nil {
		return Login{}, err
	}
	defer unlock()
	l, err := s.Load(server)
	if err != nil || !stale(l) {
		return l, err
	}
	if l, err = renew(l); err != nil {
		return Login{}, err
	}
	return l, s.Save(l)
}

// lock waits until no other process renews a login.
func (s Store) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", s.Dir, err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", s.Dir, err)
	}
	return func() { f.Close() }, nil // and so the lock
}
