package local

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/instance"
)

// A write to a file that looks read need not wait for the next look: inotify(7) tells of it at once. It tells no more than that
// something was touched: what, a look finds out, and without inotify the look that comes anyway does. The directories are watched in which
// the roots' files lie, and what an instance was given. What is written through a mapping is not told, nor what changes below the
// file system.
//
// fanotify would tell who did it as well, but by a number that the same intruder may have given away; and it needs what not every machine has.
const touches = unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF

// Touched returns a channel that is closed at the first sign after the call that something was touched which Inspect looks at. It carries
// no data: the caller inspects.
func (h *Host) Touched() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.signs == nil {
		h.signs = make(chan struct{})
	}
	return h.signs
}

// touch wakes who waits for a sign.
func (h *Host) touch() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.signs != nil {
		close(h.signs)
		h.signs = nil
	}
}

// openWatch begins to watch. Where inotify can't be had, nothing is watched.
func (h *Host) openWatch() {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		h.log.Warn("what is touched is found at the next look only", "error", err)
		return
	}
	h.watch = os.NewFile(uintptr(fd), "inotify")
	h.watchPlace(h.roots.files)
}

// watchInstance watches what an instance was given, once it runs. The watch goes with the files.
func (h *Host) watchInstance(id instance.ID) {
	h.watchPlace(filepath.Join(h.dir(id), "files"))
	h.watchPlace(filepath.Join(h.dir(id), "oci", "config.json"))
}

func (h *Host) watchPlace(path string) {
	if h.watch == nil {
		return
	}
	raw, err := h.watch.SyscallConn()
	if err != nil {
		return // the host lets go
	}
	raw.Control(func(fd uintptr) { _, err = unix.InotifyAddWatch(int(fd), path, touches) })
	if err != nil && !errors.Is(err, unix.ENOENT) {
		h.log.Warn("what is touched is found at the next look only", "path", path, "error", err)
	}
}

// watchTouches tells of what inotify tells, until ctx ends.
func (h *Host) watchTouches(ctx context.Context) {
	if h.watch == nil {
		return
	}
	defer h.watch.Close()
	defer context.AfterFunc(ctx, func() { h.watch.Close() })()
	buf := make([]byte, 16<<10)
	for {
		n, err := h.watch.Read(buf)
		if err != nil {
			return
		}
		if isTouch(buf[:n]) {
			h.touch()
		}
	}
}

// isTouch reports whether there is more among the events than that a watch ended with what it watched.
func isTouch(events []byte) bool {
	for len(events) >= unix.SizeofInotifyEvent {
		mask, name := binary.NativeEndian.Uint32(events[4:]), binary.NativeEndian.Uint32(events[12:])
		if mask&^(unix.IN_IGNORED|unix.IN_UNMOUNT) != 0 {
			return true
		}
		events = events[min(len(events), unix.SizeofInotifyEvent+int(name)):]
	}
	return false
}
