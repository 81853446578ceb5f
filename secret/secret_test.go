package secret_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/secret"
)

var password = secret.Ref{Env: "staging", Name: "db-password"}

func TestNamesHaveOneSpelling(t *testing.T) {
	r, err := secret.Parse("staging/db-password")
	if err != nil || r != password || r.String() != "staging/db-password" {
		t.Errorf("parsed %v, %v", r, err)
	}
	for _, bad := range []string{"", "staging", "staging/", "/db", "staging/db/x", "Staging/db", "staging/db_password", "../x", "staging/.."} {
		if r, err := secret.Parse(bad); !errors.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %v, want invalid", bad, r, err)
		}
	}
}

func TestContentReadsBackUnderItsNameAlone(t *testing.T) {
	for _, value := range [][]byte{[]byte("x"), []byte("line\n"), {0, 0, 0}, bytes.Repeat([]byte("v"), secret.MaxBytes)} {
		content, err := secret.Seal(password, value)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := secret.Open(password, content); err != nil || !bytes.Equal(got, value) {
			t.Errorf("%d bytes read back as %d: %v", len(value), len(got), err)
		}
		for _, other := range []secret.Ref{{Env: "prod", Name: "db-password"}, {Env: "staging", Name: "db"}} {
			if _, err := secret.Open(other, content); !errors.Is(err, fault.Corrupt) {
				t.Errorf("opened as %s: %v, want corrupt", other, err)
			}
		}
	}
}

func TestSizeTellsTheLengthOnlyToTheBlock(t *testing.T) {
	for _, n := range []int{1, 8, 400} {
		content, err := secret.Seal(password, bytes.Repeat([]byte("v"), n))
		if err != nil || len(content) != secret.BlockBytes {
			t.Errorf("%d bytes: content of %d, %v", n, len(content), err)
		}
	}
}

func TestEmptyAndLongValuesAreRefused(t *testing.T) {
	for _, n := range []int{0, secret.MaxBytes + 1} {
		if _, err := secret.Seal(password, bytes.Repeat([]byte("v"), n)); !errors.Is(err, fault.Invalid) || strings.Contains(err.Error(), "vv") {
			t.Errorf("%d bytes: %v, want invalid, without the value", n, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	for _, value := range []string{"x", "hunter2\n", "\x00"} {
		content, err := secret.Seal(password, []byte(value))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content)
		f.Add(content[:len(content)-1])
		f.Add(append(content, content...))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		value, err := secret.Open(password, content)
		if err != nil {
			return
		}
		if again, err := secret.Seal(password, value); err != nil || !bytes.Equal(again, content) {
			t.Errorf("%q was accepted but is spelled %q: %v", content, again, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("staging/db-password")
	f.Add("a/b/c")
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := secret.Parse(s); err == nil && r.String() != s {
			t.Errorf("%q reads as %q", s, r)
		}
	})
}
