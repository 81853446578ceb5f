package local

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
)

// Measure implements runtime.Host. All instances of one root share its mount, and so the result.
func (h *Host) Measure(_ context.Context, id instance.ID) (runtime.Measurement, error) {
	h.mu.Lock()
	i, ok := h.instances[id]
	if !ok || i.seen.State == instance.Absent {
		h.mu.Unlock()
		return runtime.Measurement{}, fault.Errorf(fault.NotFound, "measuring instance %s: it is not on this host", id)
	}
	root := i.spec.Root
	h.mu.Unlock()
	got, err := h.roots.measure(root)
	if err != nil {
		return runtime.Measurement{}, fmt.Errorf("measuring instance %s: %w", id, err)
	}
	return runtime.Measurement{Root: got}, nil
}

// measure hashes the file that a root is mounted from, which is immutable while it is mounted.
func (r *roots) measure(d digest.Digest) (digest.Digest, error) {
	defer r.lock(d)()
	if mounted, err := isMountPoint(filepath.Join(r.mounts, d.Hex())); err != nil || !mounted {
		return "", fault.Errorf(fault.Corrupt, "root %s is not mounted any more", d)
	}
	f, err := os.Open(r.file(d))
	if err != nil {
		return "", fault.As(fault.Corrupt, err)
	}
	defer f.Close()
	got, _, err := digest.OfReader(f)
	return got, err
}
