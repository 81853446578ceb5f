package vault_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/secret"
	"github.com/invarhq/invar/secret/vault"
)

var password = secret.Ref{Env: "staging", Name: "db-password"}

const value = "correct horse battery staple"

// place is where a server keeps its secrets.
type place struct {
	t         *testing.T
	dir, file string
}

func newPlace(t *testing.T) place {
	dir := t.TempDir()
	return place{t, filepath.Join(dir, "secrets"), filepath.Join(dir, "keys", "secrets.key")}
}

// open opens the vault as a server does when it starts; without a key, by the file.
func (p place) open(key ...vault.Key) *vault.Vault {
	p.t.Helper()
	k := vault.KeyFile(p.file)
	if len(key) > 0 {
		k = key[0]
	}
	v, err := vault.Open(p.dir, k)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

func (p place) put(v *vault.Vault, value string) digest.Digest {
	p.t.Helper()
	d, err := v.Put(password, []byte(value))
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

func (p place) reads(v *vault.Vault, version digest.Digest, want string) {
	p.t.Helper()
	got, err := v.Open(password, version)
	if err != nil || string(got) != want {
		p.t.Errorf("version %s: %q, %v; want %q", version.Short(), got, err, want)
	}
}

func TestVersionsOutliveTheServer(t *testing.T) {
	p := newPlace(t)
	v := p.open()
	d := p.put(v, value)
	p.reads(v, d, value)
	p.reads(p.open(), d, value)
	for path, want := range map[string]os.FileMode{p.dir: 0o700, p.file: 0o600, filepath.Join(p.dir, strings.TrimPrefix(string(d), "sha256:")): 0o400} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("mode of %s: %v, want %v", path, st.Mode().Perm(), want)
		}
	}
}

// The name of a version is the digest of its ciphertext, and so tells nothing: not even that a value came back.
func TestEqualValuesMakeDifferentVersions(t *testing.T) {
	p := newPlace(t)
	v := p.open()
	first, again := p.put(v, value), p.put(v, value)
	if first == again {
		t.Errorf("both are %s", first)
	}
	for _, d := range []digest.Digest{first, again} {
		sealed, err := os.ReadFile(filepath.Join(p.dir, strings.TrimPrefix(string(d), "sha256:")))
		if err != nil || digest.Of(sealed) != d || bytes.Contains(sealed, []byte(value)) {
			t.Errorf("%s: %v; want it to be named by its content, which is encrypted", d, err)
		}
		p.reads(v, d, value)
	}
	if !v.Has(first) || v.Has(digest.Of(nil)) {
		t.Error("Has does not tell what is there")
	}
}

func TestAVersionIsNeverOverwritten(t *testing.T) {
	p := newPlace(t)
	v := p.open()
	var all []digest.Digest
	for _, text := range []string{"one", "two", "three"} {
		all = append(all, p.put(v, text))
	}
	for i, text := range []string{"one", "two", "three"} {
		p.reads(v, all[i], text)
	}
}

func TestAVersionIsOfItsSecretAlone(t *testing.T) {
	p := newPlace(t)
	v := p.open()
	d := p.put(v, value)
	if got, err := v.Open(secret.Ref{Env: "prod", Name: "db-password"}, d); !errors.Is(err, fault.Corrupt) {
		t.Errorf("as prod's: %q, %v, want corrupt", got, err)
	}
}

func TestDamageIsTold(t *testing.T) {
	p := newPlace(t)
	v := p.open()
	d := p.put(v, value)
	file := filepath.Join(p.dir, strings.TrimPrefix(string(d), "sha256:"))
	sealed, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sealed[len(sealed)-1] ^= 1
	if err := errors.Join(os.Remove(file), os.WriteFile(file, sealed, 0o400)); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Open(password, d); !errors.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "staging/db-password") {
		t.Errorf("damaged: %v, want corrupt, with the secret's name", err)
	}
	if _, err := v.Open(password, digest.Of(nil)); !errors.Is(err, fault.NotFound) || fault.Hint(err) == "" {
		t.Errorf("never made: %v, want not found, with a hint", err)
	}
	if _, err := v.Open(password, "../../etc/passwd"); err == nil {
		t.Error("a name that is no digest was opened")
	}
}

// A key that is lost is never made anew: what it encrypted would look as if it were damaged.
func TestLostKeyIsToldAndNotReplaced(t *testing.T) {
	p := newPlace(t)
	d := p.put(p.open(), value)
	if err := os.Remove(p.file); err != nil {
		t.Fatal(err)
	}
	v := p.open()
	_, opened := v.Open(password, d)
	_, put := v.Put(password, []byte("another"))
	for what, err := range map[string]error{"opening": opened, "making": put} {
		if !errors.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "secrets.key is missing") || fault.Hint(err) == "" {
			t.Errorf("%s: %v, want corrupt, with the file's name and a hint", what, err)
		}
	}
	if _, err := os.Stat(p.file); err == nil {
		t.Error("the key was made anew")
	}
}

func TestAnotherKeyIsTold(t *testing.T) {
	p := newPlace(t)
	d := p.put(p.open(), value)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.file, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = p.open().Open(password, d)
	if !errors.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "encrypted to another key") || fault.Hint(err) == "" {
		t.Errorf("got %v, want corrupt, with a hint", err)
	}
}

// What a garbled key file holds may be most of a key: no error repeats it.
func TestGarbledKeysAreNotRepeated(t *testing.T) {
	p := newPlace(t)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	garbled := id.String()[:len(id.String())-1]
	if err := errors.Join(os.MkdirAll(filepath.Dir(p.file), 0o700), os.WriteFile(p.file, []byte(garbled), 0o600)); err != nil {
		t.Fatal(err)
	}
	_, byFile := p.open().Put(password, []byte(value))
	_, byCommand := vault.KeyCommand(t.Context(), "echo "+garbled)
	_, two := vault.KeyCommand(t.Context(), "echo "+id.String()+"; echo "+id.String())
	for what, err := range map[string]error{"file": byFile, "command": byCommand, "two keys": two} {
		if err == nil || strings.Contains(err.Error(), "AGE-SECRET") || strings.Contains(fault.Hint(err), "AGE-SECRET") {
			t.Errorf("%s: %v, want an error without the key", what, err)
		}
	}
}

func TestACommandHoldsTheKey(t *testing.T) {
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{x25519.String(), hybrid.String()} {
		p := newPlace(t)
		held := filepath.Join(t.TempDir(), "elsewhere")
		if err := os.WriteFile(held, []byte("# a comment\n"+id+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := vault.KeyCommand(t.Context(), "cat '"+held+"'")
		if err != nil {
			t.Fatal(err)
		}
		d := p.put(p.open(key), value)
		if err := os.Remove(held); err != nil { // it is asked once, at the start
			t.Fatal(err)
		}
		p.reads(p.open(key), d, value)
		if _, err := os.Stat(p.file); err == nil {
			t.Error("a key file was made beside the command")
		}
	}
}

func TestACommandThatFailsStopsTheStart(t *testing.T) {
	if _, err := vault.KeyCommand(t.Context(), "exit 3"); !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v, want unavailable", err)
	}
}

// A crash before the rename leaves a file that nobody reads, and does not stand for a version when the key is to be made.
func TestWhatACrashLeftIsNoVersion(t *testing.T) {
	p := newPlace(t)
	v := p.open()
	if err := os.WriteFile(filepath.Join(p.dir, ".new-123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.reads(v, p.put(v, value), value)
}

func TestValuesThatCannotBeKeptMakeNothing(t *testing.T) {
	p := newPlace(t)
	v := p.open()
	for _, bad := range [][]byte{nil, make([]byte, secret.MaxBytes+1)} {
		if _, err := v.Put(password, bad); !errors.Is(err, fault.Invalid) {
			t.Errorf("%d bytes: %v, want invalid", len(bad), err)
		}
	}
	if _, err := os.Stat(p.file); err == nil {
		t.Error("a key was made for nothing")
	}
}
