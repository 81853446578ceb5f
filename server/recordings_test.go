package server

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/recording"
	"github.com/invarhq/invar/sealed"
)

func TestRecordingIsNeverInClearWhereThereAreAuditors(t *testing.T) {
	auditor, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kept, err := openRecordings(dir)
	if err != nil {
		t.Fatal(err)
	}
	part, err := kept.New("abcdefghabcd", []string{auditor.Recipient().String()})
	if err != nil {
		t.Fatal(err)
	}
	tape, err := recording.New(part, 80, 24, time.Now(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for range 10_000 { // more than age holds back
		tape.Input(time.Now(), []byte("hunter2\r"))
	}
	holds(t, dir, "hunter2", false)
	d, size, kind, err := part.Done()
	if err != nil || kind != sealed.Type || size == 0 {
		t.Fatalf("%d bytes of %s, %v", size, kind, err)
	}
	holds(t, dir, "hunter2", false)
	f, err := kept.open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, _ := io.ReadAll(f)
	if digest.Of(b) != d || int64(len(b)) != size {
		t.Errorf("%d bytes of digest %s, want %d of %s", len(b), digest.Of(b), size, d)
	}
	clear, err := age.Decrypt(bytes.NewReader(b), auditor)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(clear); err != nil || strings.Count(string(text), "hunter2") != 10_000 {
		t.Errorf("the auditor reads it %d times, %v", strings.Count(string(text), "hunter2"), err)
	}
}

// holds checks whether a file of the directory has the text, and that only its owner can read it.
func holds(t *testing.T, dir, text string, want bool) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	got := false
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		got = got || bytes.Contains(b, []byte(text))
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", f, info.Mode(), err)
		}
	}
	if got != want || len(files) == 0 {
		t.Errorf("%d files have %q: %v, want %v", len(files), text, got, want)
	}
}

func TestRecordingThatWasNotCompletedIsDeleted(t *testing.T) {
	dir := t.TempDir()
	kept, err := openRecordings(dir)
	if err != nil {
		t.Fatal(err)
	}
	part, err := kept.New("abcdefghabcd", nil)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(part, "begun")
	if _, err := openRecordings(dir); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, name := range []string{"sha256:" + strings.Repeat("0", 64), "../keys/ledger.key"} {
		if _, err := kept.open(digest.Digest(name)); !errors.Is(err, fault.NotFound) && !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
