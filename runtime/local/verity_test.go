package local

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestVerityDigestIsRead(t *testing.T) {
	// Of an empty file with blocks of 4096 bytes, as fsverity(1) prints it.
	const empty = "sha256:3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"
	b := make([]byte, 68)
	binary.NativeEndian.PutUint16(b, 1)
	binary.NativeEndian.PutUint16(b[2:], 32)
	copy(b[4:], []byte{
		0x3d, 0x24, 0x8c, 0xa5, 0x42, 0xa2, 0x4f, 0xc6, 0x2d, 0x1c, 0x43, 0xb9, 0x16, 0xea, 0xe5, 0x01,
		0x68, 0x78, 0xe2, 0x53, 0x3c, 0x88, 0x23, 0x84, 0x80, 0xb2, 0x61, 0x28, 0xa1, 0xf1, 0xaf, 0x95,
	})
	if got, err := verityDigest(b); err != nil || got != empty {
		t.Errorf("got %s, %v", got, err)
	}
	binary.NativeEndian.PutUint16(b, 2) // SHA-512
	if got, err := verityDigest(b); err == nil {
		t.Errorf("another algorithm is read as %s", got)
	}
}

// Where there is fs-verity, a file that has it can't be written and has the digest that fsverity(1) prints; where there is none, the
// machine's list of features says so and why.
func TestVerityIsProbedByTrying(t *testing.T) {
	dir := t.TempDir()
	f := probeVerity(dir)
	t.Log(f.Detail)
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("the probe left %v", left)
	}
	path := filepath.Join(dir, "empty")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	err = enableVerity(file)
	if !f.OK {
		if err == nil || !strings.Contains(f.Detail, "immutable attribute") {
			t.Errorf("enabled: %v; says %q", err, f.Detail)
		}
		return
	}
	if got := verityNow(path); err != nil || got != "sha256:3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95" {
		t.Errorf("an empty file has %s, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err == nil {
		t.Error("a file with fs-verity was written")
	}
}
