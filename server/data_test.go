package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/invarhq/invar/fault"
)

// open opens dir as a server does, and lets it go again.
func open(t *testing.T, dir string, begin bool) (vkey string, err error) {
	t.Helper()
	d, err := openData(t.Context(), dir)
	if err != nil {
		return "", err
	}
	defer d.store.Close()
	if begin {
		if err := d.begin(); err != nil {
			t.Fatal(err)
		}
	}
	return d.key.vkey, nil
}

func TestDataDirectoryKeepsItsKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first, err := open(t, dir, true)
	if err != nil {
		t.Fatal(err)
	}
	again, err := open(t, dir, true)
	if err != nil || again != first {
		t.Errorf("reopened: key %q, %v; want %q", again, err, first)
	}
	public, err := os.ReadFile(filepath.Join(dir, publicKey))
	if err != nil || strings.TrimSpace(string(public)) != first {
		t.Errorf("public key: %q, %v; want %q", public, err, first)
	}
	for path, want := range map[string]os.FileMode{
		dir:                           0o711, // other users reach the socket in it, and nothing else
		filepath.Join(dir, secretKey): 0o600, filepath.Dir(filepath.Join(dir, secretKey)): 0o700, filepath.Join(dir, ledgerFile): 0o600,
		filepath.Join(dir, ociDir): 0o700, filepath.Join(dir, rootsDir): 0o700, filepath.Join(dir, gatewayDir): 0o700,
	} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("mode of %s: %v, %v; want %v", path, st.Mode().Perm(), err, want)
		}
	}
}

// A server that died before its ledger began goes on with what it left.
func TestDataDirectoryIsBegunAgainAfterACrash(t *testing.T) {
	dir := t.TempDir()
	first, err := open(t, dir, false)
	if err != nil {
		t.Fatal(err)
	}
	second, err := open(t, dir, false)
	if err != nil || second != first {
		t.Errorf("after a crash with key and empty ledger: %q, %v; want %q", second, err, first)
	}
	if err := os.Remove(filepath.Join(dir, ledgerFile)); err != nil {
		t.Fatal(err)
	}
	third, err := open(t, dir, false)
	if err != nil || third != first {
		t.Errorf("after a crash with a key alone: %q, %v; want %q", third, err, first)
	}
}

// A ledger or key that is missing is never taken for a new one.
func TestMissingPartsOfTheDataDirectoryAreDamage(t *testing.T) {
	for _, missing := range []string{ledgerFile, secretKey} {
		dir := t.TempDir()
		if _, err := open(t, dir, true); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, missing)); err != nil {
			t.Fatal(err)
		}
		_, err := open(t, dir, true)
		if !errors.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), missing) || fault.Hint(err) == "" {
			t.Errorf("without %s: %v (hint %q), want corrupt", missing, err, fault.Hint(err))
		}
		if _, err := os.Stat(filepath.Join(dir, missing)); err == nil {
			t.Errorf("%s was made again", missing)
		}
	}
}

func TestGarbledKeyIsDamage(t *testing.T) {
	dir := t.TempDir()
	if _, err := open(t, dir, true); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, secretKey), []byte("garbage\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir, true); !errors.Is(err, fault.Corrupt) {
		t.Errorf("garbled key: %v, want corrupt", err)
	}
}
