package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime"
)

// bare is a host over a directory, which runs nothing.
func bare(dir string) *Host { return &Host{config: Config{Dir: dir}} }

func at(version, snapshot int) runtime.Place {
	return runtime.Place{Env: "test", Component: "db", Name: "data", Version: version, Snapshot: snapshot}
}

// TestFullDiskLeavesNothingOfACopy: the error says what to do, and the source is as it was.
func TestFullDiskLeavesNothingOfACopy(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a small disk")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	h := bare(dir)
	source := h.placeDir(at(1, 0))
	if err := errors.Join(os.MkdirAll(source, 0o755), os.WriteFile(filepath.Join(source, "big"), make([]byte, 2<<20), 0o644)); err != nil {
		t.Fatal(err)
	}
	_, err := h.CopyVolume(t.Context(), runtime.VolumeCopy{From: at(1, 0), To: at(0, 1)}, nil)
	if !errors.Is(err, fault.Unavailable) || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "no space left") || !strings.Contains(fault.Hint(err), "free space") {
		t.Errorf("%v, hint %q", err, fault.Hint(err))
	}
	left, err := os.ReadDir(filepath.Dir(source))
	if err != nil || len(left) != 1 || left[0].Name() != "data" {
		t.Errorf("left: %v, %v", left, err)
	}
	if info, err := os.Stat(filepath.Join(source, "big")); err != nil || info.Size() != 2<<20 {
		t.Errorf("the source: %v, %v", info, err)
	}
}

// TestCopyThatWasCutShortIsMadeAgain: what a crash left does not count, and is not added to.
func TestCopyThatWasCutShortIsMadeAgain(t *testing.T) {
	h := bare(t.TempDir())
	source, to := h.placeDir(at(1, 0)), h.placeDir(at(0, 1))
	if err := errors.Join(os.MkdirAll(source, 0o755), os.WriteFile(filepath.Join(source, "file"), []byte("whole"), 0o644),
		os.Mkdir(to+making, 0o755), os.WriteFile(filepath.Join(to+making, "file"), []byte("wh"), 0o644), os.WriteFile(filepath.Join(to+making, "other"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := h.CopyVolume(ctx, runtime.VolumeCopy{From: at(1, 0), To: at(0, 1)}, func(int64, int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("cut short once more: %v", err)
	}
	if _, err := os.Stat(to); err == nil {
		t.Error("a part of a copy is there as if it were whole")
	}
	c, err := h.CopyVolume(t.Context(), runtime.VolumeCopy{From: at(1, 0), To: at(0, 1)}, nil)
	b, readErr := os.ReadFile(filepath.Join(to, "file"))
	if err != nil || c.Files != 1 || readErr != nil || string(b) != "whole" {
		t.Errorf("%+v, %v; the file has %q, %v", c, err, b, readErr)
	}
}

// TestCopyNeverReplacesAVolume that an instance made.
func TestCopyNeverReplacesAVolume(t *testing.T) {
	h := bare(t.TempDir())
	for _, p := range []runtime.Place{at(1, 0), at(2, 0)} {
		if err := os.MkdirAll(h.placeDir(p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.CopyVolume(t.Context(), runtime.VolumeCopy{From: at(1, 0), To: at(2, 0)}, nil); !errors.Is(err, fault.Conflict) {
		t.Errorf("%v, want a conflict", err)
	}
}
