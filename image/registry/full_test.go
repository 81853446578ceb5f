package registry_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image/registry"
)

// smallDisk mounts a tmpfs of so many bytes. Mounting needs root, as running instances does.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mounting a small disk (this test needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestFullDiskDuringAPullLosesNothing(t *testing.T) {
	s, err := registry.Open(smallDisk(t, "96k"))
	if err != nil {
		t.Fatal(err)
	}
	kept, _, err := s.Put(t.Context(), strings.NewReader("kept"))
	if err != nil {
		t.Fatal(err)
	}
	layout := writeLayout(t, bigImage(t))
	_, err = s.Pull(t.Context(), registry.Source{Ref: "oci:" + layout, Platform: amd64}, nil)
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(fault.Hint(err), "space") {
		t.Errorf("Pull: %v (hint %q), want unavailable", err, fault.Hint(err))
	}
	left, err := os.ReadDir(filepath.Join(s.Dir(), "staging"))
	if err != nil || len(left) != 0 {
		t.Errorf("left in staging: %v, %v", left, err)
	}
	if b, err := s.Bytes(kept); err != nil || !bytes.Equal(b, []byte("kept")) {
		t.Errorf("what was there: %q, %v", b, err)
	}
	if _, _, err := s.Put(t.Context(), strings.NewReader("after")); err != nil {
		t.Errorf("a small blob afterwards: %v", err)
	}
}
