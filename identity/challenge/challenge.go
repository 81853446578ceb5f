// Package challenge is how somebody proves over HTTP to hold an SSH key: the server gives a text, the client signs it in
// the namespace invar-login@v1 (package sshkey), and sends both back. The text is
//
//	invar login v1
//	server: invar.bank.example:7373
//	nonce: 7HMZ2Y5FYVQ2TK4BFFJTPMJJCQ
//	issued: 2026-11-25T13:00:00Z
//	expires: 2026-11-25T13:02:00Z
//	seal: UZzMgDkYmVfJ2gqx5CUgXNYoxsCV3jOr4DAl6+ORnkM=
//
// The server names itself as the client reached it, and the client signs for no other: so a server that somebody was lured to
// can't pass the challenge of the real one on. The seal (HMAC-SHA256 with a secret of the server's process) tells the server that the text
// is its own, so that it remembers nothing for those who only ask. A nonce counts once.
package challenge

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/identity/sshkey"
)

// Namespace is what a challenge is signed for (SSHSIG).
const Namespace = "invar-login@v1"

// Limits.
const (
	Lifetime    = 2 * time.Minute // of a challenge
	maxLifetime = 5 * time.Minute // that a client signs
	maxBytes    = 1 << 10
)

// Challenge is the text by its fields.
type Challenge struct {
	Server    string // HOST or HOST:PORT, as in the client's address of it
	Nonce     string
	IssuedAt  time.Time
	ExpiresAt time.Time
	Seal      string
}

const format = "invar login v1\nserver: %s\nnonce: %s\nissued: %s\nexpires: %s\n"

// sealed is what the seal is over.
func (c Challenge) sealed() string {
	return fmt.Sprintf(format, c.Server, c.Nonce, c.IssuedAt.UTC().Format(time.RFC3339), c.ExpiresAt.UTC().Format(time.RFC3339))
}

// String returns the text that is signed.
func (c Challenge) String() string { return c.sealed() + "seal: " + c.Seal + "\n" }

// Parse reads the text. It has one spelling.
func Parse(text string) (Challenge, error) {
	malformed := fault.Errorf(fault.Invalid, "challenge: not as a server of invar writes it")
	lines := strings.Split(text, "\n")
	if len(text) > maxBytes || len(lines) != 7 {
		return Challenge{}, malformed
	}
	value := func(i int, name string) string { return strings.TrimPrefix(lines[i], name+": ") }
	issued, err1 := time.Parse(time.RFC3339, value(3, "issued"))
	expires, err2 := time.Parse(time.RFC3339, value(4, "expires"))
	c := Challenge{value(1, "server"), value(2, "nonce"), issued, expires, value(5, "seal")}
	if err1 != nil || err2 != nil || c.Server == "" || c.Nonce == "" || c.Seal == "" || c.String() != text {
		return Challenge{}, malformed
	}
	return c, nil
}

// For says why a client that asked the server at host (as in its address: HOST or HOST:PORT) must not sign the text, or nil.
func (c Challenge) For(host string) error {
	if c.Server != host {
		return fault.WithHint(fault.Errorf(fault.Denied, "the challenge is from the server %q, not from %q: it may have been passed on", c.Server, host),
			"don't log in there, and tell whoever runs it")
	}
	if life := c.ExpiresAt.Sub(c.IssuedAt); life <= 0 || life > maxLifetime {
		return fault.Errorf(fault.Denied, "the challenge is good for %s; a client signs for at most %s", life, maxLifetime)
	}
	return nil
}

// Desk gives challenges out and takes signed ones back. Its methods may be called concurrently.
type Desk struct {
	secret [sha256.Size]byte

	mu   sync.Mutex
	used map[string]time.Time // nonces that have counted, until their challenge expires
}

// NewDesk returns a Desk. The challenges of one are of no use at another.
func NewDesk(random io.Reader) (*Desk, error) {
	d := &Desk{used: map[string]time.Time{}}
	if _, err := io.ReadFull(random, d.secret[:]); err != nil {
		return nil, fmt.Errorf("reading random bytes: %w", err)
	}
	return d, nil
}

// Issue returns a challenge for a client that reached us as server.
func (d *Desk) Issue(random io.Reader, server string, now time.Time) (Challenge, error) {
	var nonce [16]byte
	if _, err := io.ReadFull(random, nonce[:]); err != nil {
		return Challenge{}, fmt.Errorf("reading random bytes: %w", err)
	}
	now = now.UTC().Truncate(time.Second)
	c := Challenge{Server: server, Nonce: base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(nonce[:]), IssuedAt: now, ExpiresAt: now.Add(Lifetime)}
	c.Seal = d.seal(c)
	if _, err := Parse(c.String()); err != nil {
		return Challenge{}, fault.Errorf(fault.Invalid, "the server's name %.80q can't be in a challenge", server)
	}
	return c, nil
}

func (d *Desk) seal(c Challenge) string {
	h := hmac.New(sha256.New, d.secret[:])
	io.WriteString(h, c.sealed()) // never fails
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

// Redeem returns the identity that a signed challenge proves. known says why an identity may not log in, or nil; a challenge is used
// up only by one that may. Its errors are fault.Denied, fault.Invalid when the texts are malformed, and those of known.
func (d *Desk) Redeem(text, signature, server string, now time.Time, known func(identity.Identity) error) (identity.Identity, error) {
	c, err := Parse(text)
	if err != nil {
		return identity.Identity{}, err
	}
	sig, err := sshkey.ParseSignature(signature)
	if err != nil {
		return identity.Identity{}, err
	}
	if err := d.check(c, server, now); err != nil {
		return identity.Identity{}, err
	}
	facts, err := sig.Verify(sig.Key(), Namespace, []byte(text))
	if err != nil {
		return identity.Identity{}, err
	}
	id := identity.Identity{
		Method: identity.SSH, Name: facts.Fingerprint, Key: sig.Key().String(),
		Proof: identity.Proof{
			Algorithm: facts.Algorithm, SecurityKey: facts.SecurityKey,
			UserPresent: facts.UserPresent, UserVerified: facts.UserVerified, Counter: facts.Counter,
		},
	}
	if err := known(id); err != nil {
		return identity.Identity{}, err
	}
	return id, d.use(c, now)
}

// check says why a challenge does not count, before anything is known of its signature.
func (d *Desk) check(c Challenge, server string, now time.Time) error {
	again := func(format string, args ...any) error {
		return fault.WithHint(fault.Errorf(fault.Denied, "challenge: "+format, args...), "log in again: invar login --ssh")
	}
	switch {
	case !hmac.Equal([]byte(c.Seal), []byte(d.seal(c))):
		return again("not from this server, or from before it was started again")
	case c.Server != server:
		return again("it was given out as %q, and comes back to %q", c.Server, server)
	case !now.Before(c.ExpiresAt):
		return again("it expired at %s", c.ExpiresAt.Format(time.RFC3339))
	}
	return nil
}

// use marks the challenge as used, once.
func (d *Desk) use(c Challenge, now time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for nonce, expires := range d.used {
		if !now.Before(expires) {
			delete(d.used, nonce)
		}
	}
	if _, again := d.used[c.Nonce]; again {
		return fault.WithHint(fault.Errorf(fault.Denied, "challenge: it was used already"), "log in again: invar login --ssh")
	}
	d.used[c.Nonce] = c.ExpiresAt
	return nil
}
