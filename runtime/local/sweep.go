package local

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	goruntime "runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// A look reads a root's file only when it shows that it was touched. What changes a file and shows nothing (a disk that rots, whoever
// writes to the device below the file system) is found by reading everything again, slowly: one root at a time, at sweepRate, and with
// the I/O priority of what waits for everybody else.
const (
	sweepEvery = time.Hour   // how often each root is read from the first byte to the last
	sweepPause = time.Minute // between two roots
	sweepRate  = 8 << 20     // bytes per second: some hundredths of a core
	adoptRate  = 64 << 20    // for those that an earlier server mounted: what is known of them may have been changed while none ran
)

// sweepRoots reads the roots that are mounted, again and again, until ctx ends; first those that an earlier server mounted.
func (h *Host) sweepRoots(ctx context.Context, adopted []digest.Digest) {
	last := map[digest.Digest]time.Time{}
	for _, d := range adopted {
		h.sweepRoot(ctx, d, adoptRate)
		last[d] = time.Now()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(sweepPause):
		}
		if d, ok := nextToSweep(h.roots.all(), last, time.Now()); ok {
			h.sweepRoot(ctx, d, sweepRate)
		}
	}
}

func (h *Host) sweepRoot(ctx context.Context, d digest.Digest, bytesPerSecond int) {
	got, err := h.roots.sweep(ctx, d, bytesPerSecond)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		h.log.Warn("reading a root again", "root", d, "error", err)
	case got != d:
		h.log.Warn("a root is not what its name says", "root", d, "found", got)
		h.touch()
	}
}

// nextToSweep returns the root that was not read for the longest time, if that is long enough, and notes that its turn came. One that is
// new counts as read: it was when it was mounted.
func nextToSweep(mounted []digest.Digest, last map[digest.Digest]time.Time, now time.Time) (next digest.Digest, ok bool) {
	kept := map[digest.Digest]bool{}
	for _, d := range mounted {
		kept[d] = true
		if last[d].IsZero() {
			last[d] = now
		}
		if now.Sub(last[d]) >= sweepEvery && (!ok || last[d].Before(last[next])) {
			next, ok = d, true
		}
	}
	for d := range last {
		if !kept[d] {
			delete(last, d)
		}
	}
	if ok {
		last[next] = now
	}
	return next, ok
}

// all returns the roots that are mounted.
func (r *roots) all() []digest.Digest {
	entries, _ := os.ReadDir(r.mounts)
	var list []digest.Digest
	for _, e := range entries {
		list = append(list, digest.Digest("sha256:"+e.Name()))
	}
	return list
}

// sweep hashes a root's file without haste, and remembers what it found, for looks to tell.
func (r *roots) sweep(ctx context.Context, d digest.Digest, bytesPerSecond int) (digest.Digest, error) {
	defer idlePriority()()
	f, err := os.Open(r.file(d))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fault.As(fault.Corrupt, err)
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	got, _, err := digest.OfReader(&pacedReader{ctx: ctx, from: f, began: time.Now(), bytesPerSecond: bytesPerSecond})
	if err == nil {
		r.keep(d, reading{stampOf(st), got})
	}
	return got, err
}

// idlePriority has this goroutine's I/O wait for everybody else's (ioprio_set(2)), until the function that it returns is called.
func idlePriority() (undo func()) {
	goruntime.LockOSThread()
	set := func(class uintptr) {
		const thisThread, classShift = 1, 13
		unix.Syscall(unix.SYS_IOPRIO_SET, thisThread, 0, class<<classShift) // where it can't be set, the rate alone bounds it
	}
	set(3)
	return func() {
		set(0)
		goruntime.UnlockOSThread()
	}
}

// pacedReader reads at a rate at the most, in pieces of at most a quarter of a second.
type pacedReader struct {
	ctx            context.Context
	from           io.Reader
	began          time.Time
	read           int64
	bytesPerSecond int
}

func (p *pacedReader) Read(b []byte) (int, error) {
	due := p.began.Add(time.Duration(float64(p.read) / float64(p.bytesPerSecond) * float64(time.Second)))
	select {
	case <-p.ctx.Done():
		return 0, p.ctx.Err()
	case <-time.After(time.Until(due)):
	}
	n, err := p.from.Read(b[:min(len(b), max(1, p.bytesPerSecond/4))])
	p.read += int64(n)
	return n, err
}
