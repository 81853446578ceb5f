// Package vault keeps the versions of secrets on disk, each encrypted with age (https://age-encryption.org/v1):
//
//	DIR/HEX    the ciphertext with this SHA-256; what is encrypted is described in package secret
//
// They lie beside the OCI store, not in it: no registry client gets them. A file is written once and never again, and
// nothing removes it, so that whatever a release pins can be delivered.
package vault

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/durable"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/secret"
)

// maxCiphertext bounds a file that is read: the largest content, and what age adds.
const maxCiphertext = secret.MaxBytes + 4<<10

// Vault has the versions of a directory and the key to them. Its methods may be called by any number of goroutines.
type Vault struct {
	dir string
	key Key
}

// Open opens the vault in dir, which is made when it is missing.
func Open(dir string, key Key) (*Vault, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of secrets: %w", err)
	}
	return &Vault{dir, key}, nil
}

// Put encrypts a value, and returns the version's name once its file is durable. Each call makes another version, also of the
// same value.
//
//	crash before the rename    a file with a name of its own, which nobody reads
//	crash after it             a version that no ledger entry names: nothing pins it
func (v *Vault) Put(r secret.Ref, value []byte) (digest.Digest, error) {
	content, err := secret.Seal(r, value)
	if err != nil {
		return "", err
	}
	defer clear(content)
	id, err := v.key.identity(v.empty)
	if err != nil {
		return "", fmt.Errorf("encrypting secret %s: %w", r, err)
	}
	sealed, err := encrypt(id, content)
	if err != nil {
		return "", fmt.Errorf("encrypting secret %s: %w", r, err)
	}
	version := digest.Of(sealed)
	if err := durable.Write(v.path(version), sealed, 0o400); err != nil {
		return "", fault.As(fault.Unavailable, fmt.Errorf("storing secret %s: %w", r, err))
	}
	return version, nil
}

func encrypt(id identity, content []byte) ([]byte, error) {
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, id.recipient())
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return sealed.Bytes(), nil
}

// Open returns the value of a version. It fails with fault.NotFound for a version that is not here, and with fault.Corrupt when
// its file is damaged, is of another secret, or was encrypted to another key. The caller clears the value when it is done with it.
func (v *Vault) Open(r secret.Ref, version digest.Digest) ([]byte, error) {
	value, err := v.open(r, version)
	if err != nil {
		return nil, fmt.Errorf("opening secret %s, version %s: %w", r, version.Short(), err)
	}
	return value, nil
}

func (v *Vault) open(r secret.Ref, version digest.Digest) ([]byte, error) {
	sealed, err := v.read(version)
	if err != nil {
		return nil, err
	}
	id, err := v.key.identity(v.empty)
	if err != nil {
		return nil, err
	}
	content, err := decrypt(id, sealed)
	if err != nil {
		return nil, err
	}
	return secret.Open(r, content)
}

func decrypt(id identity, sealed []byte) ([]byte, error) {
	plain, err := age.Decrypt(bytes.NewReader(sealed), id)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, fault.WithHint(fault.Errorf(fault.Corrupt, "it was encrypted to another key"),
			"give the server the key that it was made with: DATA/keys/secrets.key from a backup, or --secrets-key-command")
	}
	if err != nil {
		return nil, fault.As(fault.Corrupt, err)
	}
	content := make([]byte, 0, maxCiphertext) // of one piece, so that no copy is left behind as it grows
	buf := bytes.NewBuffer(content)
	if _, err := io.Copy(buf, io.LimitReader(plain, maxCiphertext)); err != nil {
		clear(buf.Bytes())
		return nil, fault.As(fault.Corrupt, err)
	}
	return buf.Bytes(), nil
}

func (v *Vault) read(version digest.Digest) ([]byte, error) {
	if _, err := digest.Parse(string(version)); err != nil {
		return nil, err
	}
	f, err := os.Open(v.path(version))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.WithHint(fault.Errorf(fault.NotFound, "it is not in %s", v.dir), "restore the directory from a backup, or set the secret again")
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sealed, err := io.ReadAll(io.LimitReader(f, maxCiphertext+1))
	if err != nil {
		return nil, err
	}
	if digest.Of(sealed) != version {
		return nil, fault.WithHint(fault.Errorf(fault.Corrupt, "its file is damaged"), "restore %s from a backup, or set the secret again", v.path(version))
	}
	return sealed, nil
}

// Has reports whether the version is here. It does not say whether it can be decrypted.
func (v *Vault) Has(version digest.Digest) bool {
	_, err := os.Stat(v.path(version))
	return err == nil
}

func (v *Vault) path(version digest.Digest) string {
	return filepath.Join(v.dir, strings.TrimPrefix(string(version), "sha256:"))
}

// empty reports whether no version was ever made here.
func (v *Vault) empty() (bool, error) {
	entries, err := os.ReadDir(v.dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), temporary) {
			return false, nil
		}
	}
	return true, nil
}

// temporary begins the names of files that package durable is writing.
const temporary = ".new-"
