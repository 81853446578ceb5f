package server

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/durable"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/store/sqlite"
)

// DataFormat is the version of the data directory's layout.
const DataFormat = sqlite.Format

// Files of the data directory; docs/operations.md lists them all.
const (
	ledgerFile = "ledger.db"
	secretKey  = "keys/ledger.key"
	publicKey  = "keys/ledger.pub"
	secretsKey = "keys/secrets.key"
	secretsDir = "secrets"
	socketFile = "invar.sock"
	ociDir     = "oci"
	rootsDir   = "roots"
	gatewayDir = "gateway"

	recordingsDir = "recordings"

	cosignedFile = "checkpoint.cosigned" // the newest checkpoint with a quorum of witnesses; in a copy of the tiles as well
)

// key is the ledger's signing key, and the name of the log.
type key struct {
	signer   note.Signer
	verifier note.Verifier
	vkey     string
	private  ed25519.PrivateKey // of signer, for what is no note
}

func (k key) origin() string { return k.verifier.Name() }

// data is an open data directory. No other server has it.
type data struct {
	dir   string
	begun bool // its ledger has begun: all of it must be there
	store *sqlite.Store
	key   key
}

func (d *data) path(name string) string { return filepath.Join(d.dir, filepath.FromSlash(name)) }

// openData opens the data directory, and makes it where it is missing or empty. The public key is written last, once the
// ledger has begun: with it, a ledger or key that is missing is damage, and never taken for a new one.
//
//	crash after the secret key    no public key: the next start goes on with the same key
//	crash after the first entry   no public key: the next start finds the ledger begun, and writes it
func openData(ctx context.Context, dir string) (*data, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	d := &data{dir: abs}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, fault.As(fault.Invalid, fmt.Errorf("making the data directory: %w", err))
	}
	d.begun = exists(d.path(publicKey))
	if err := d.openStore(ctx); err != nil {
		return nil, err
	}
	if err := errors.Join(d.openKey(), d.shield()); err != nil {
		return nil, errors.Join(err, d.store.Close())
	}
	return d, nil
}

// shield lets other users of the machine reach the socket in the directory, and nothing else.
func (d *data) shield() error {
	for _, name := range []string{ociDir, rootsDir, gatewayDir} {
		if err := os.MkdirAll(d.path(name), 0o700); err != nil {
			return fmt.Errorf("making the data directory: %w", err)
		}
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return fmt.Errorf("reading the data directory: %w", err)
	}
	for _, e := range entries {
		mode := fs.FileMode(0o600)
		switch {
		case e.IsDir():
			mode = 0o700
		case !e.Type().IsRegular():
			continue
		}
		if err := os.Chmod(d.path(e.Name()), mode); err != nil {
			return fmt.Errorf("shielding the data directory: %w", err)
		}
	}
	return os.Chmod(d.dir, 0o711)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (d *data) openStore(ctx context.Context) (err error) {
	switch {
	case exists(d.path(ledgerFile)):
		d.store, err = sqlite.Open(ctx, d.dir)
	case d.begun:
		return fault.WithHint(
			fault.Errorf(fault.Corrupt, "%s has the key of a ledger but no %s: the ledger is missing", d.dir, ledgerFile),
			"restore the directory from a backup, or choose an empty one with --data")
	default:
		d.store, err = sqlite.Create(ctx, d.dir)
	}
	return err
}

// empty tells whether the ledger has no entry yet.
func (d *data) empty(ctx context.Context) (bool, error) {
	head, err := d.store.Load(ctx)
	return head.Size == 0, err
}

// begin is called once the ledger has its first entry.
func (d *data) begin() error {
	if d.begun {
		return nil
	}
	d.begun = true
	return durable.Write(d.path(publicKey), []byte(d.key.vkey+"\n"), 0o644)
}

func (d *data) openKey() error {
	raw, err := os.ReadFile(d.path(secretKey))
	switch {
	case errors.Is(err, fs.ErrNotExist) && !d.begun:
		return d.makeKey()
	case errors.Is(err, fs.ErrNotExist):
		return fault.WithHint(
			fault.Errorf(fault.Corrupt, "%s has a ledger but no %s", d.dir, secretKey),
			"restore the key from a backup; without it the ledger can be verified but not continued")
	case err != nil:
		return fmt.Errorf("reading the ledger's key: %w", err)
	}
	return d.parseKey(strings.TrimSpace(string(raw)))
}

func (d *data) parseKey(secret string) (err error) {
	d.key.signer, d.key.verifier, err = ledger.ParseKey(secret)
	if err != nil {
		return fault.As(fault.Corrupt, fmt.Errorf("reading %s: %w", d.path(secretKey), err))
	}
	if d.key.vkey, err = ledger.VerifierKey(secret); err != nil {
		return err
	}
	_, d.key.private, err = ledger.PrivateKey(secret)
	return err
}

func (d *data) makeKey() error {
	secret, _, err := ledger.GenerateKey(newOrigin())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(d.path(secretKey)), 0o700); err != nil {
		return fmt.Errorf("making the ledger's key: %w", err)
	}
	if err := durable.Write(d.path(secretKey), []byte(secret+"\n"), 0o600); err != nil {
		return fmt.Errorf("making the ledger's key: %w", err)
	}
	return d.parseKey(secret)
}

// newOrigin names a log: unique, and recognisable for whoever runs the machine.
func newOrigin() string {
	host, _ := os.Hostname()
	host = spec.SuggestName(host)
	if host == "" {
		host = "localhost"
	}
	b := make([]byte, 4)
	rand.Read(b)
	return fmt.Sprintf("%s/invar-%s", host, hex.EncodeToString(b))
}
