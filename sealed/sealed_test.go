package sealed_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"filippo.io/age"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/sealed"
)

func TestOnlyARecipientReadsIt(t *testing.T) {
	auditor, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := sealed.Encrypt(&b, []string{auditor.Recipient().String()})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "what was typed")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b.Bytes(), []byte("typed")) {
		t.Error("it is in clear")
	}
	r, err := age.Decrypt(bytes.NewReader(b.Bytes()), auditor)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(r); string(text) != "what was typed" || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
	if _, err := age.Decrypt(bytes.NewReader(b.Bytes()), other); err == nil {
		t.Error("somebody else reads it")
	}
}

func TestRecipientsAreChecked(t *testing.T) {
	for _, list := range [][]string{nil, {""}, {"age1nonsense"}} {
		if _, err := sealed.Encrypt(io.Discard, list); !errors.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", list, err)
		}
	}
}
