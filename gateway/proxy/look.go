package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/kernel"
)

// The fields of drift.Gateway.
const (
	fieldProgram = "program"
	fieldUsers   = "users"
	fieldTracer  = "traced by"
	fieldStopped = "stopped by a signal"
	fieldParent  = "parent"
	fieldLink    = "control link"   // that leads to the process's own socket
	fieldSocket  = "control socket" // of the process
)

// Kinds implements reconcile.Surrounding.
func (s *Supervisor) Kinds() []drift.Kind { return []drift.Kind{drift.Gateway, drift.Listener} }

// Look implements reconcile.Surrounding: it looks at the gateway's process, the way to it, and the sockets on which the machine is reached, from
// outside of the gateway. A gateway that has died is none of its business: it is started again.
func (s *Supervisor) Look(ctx context.Context) ([]drift.Oddity, error) {
	first, err := s.look()
	if err != nil || len(first) == 0 {
		return nil, err
	}
	select {
	case <-time.After(drift.ConfirmAfter): // a process that is just being replaced differs for a moment
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	second, err := s.look()
	return drift.Confirmed(first, second), err
}

// look looks once.
func (s *Supervisor) look() ([]drift.Oddity, error) {
	found, err := s.listeners()
	if err != nil {
		return nil, err
	}
	want, got, alive := s.facts()
	if !alive {
		return found, nil
	}
	return append(drift.Odd(drift.Restore, drift.Compare(want, got)), found...), nil
}

// lockWithin is how long a look waits while sockets are changed. A gateway that does not answer may hold a change up for long: then what
// was found last still counts.
const lockWithin = 100 * time.Millisecond

func (s *Supervisor) listeners() ([]drift.Oddity, error) {
	for began := time.Now(); !s.mu.TryLock(); time.Sleep(time.Millisecond) {
		if time.Since(began) > lockWithin {
			return *s.lastListeners.Load(), nil
		}
	}
	defer s.mu.Unlock()
	s.reap(time.Now())
	found, err := s.lookAtListeners()
	if err == nil {
		s.lastListeners.Store(&found)
	}
	return found, err
}

// facts returns what the gateway's process should be, and what it is. It reports false when the process has ended.
func (s *Supervisor) facts() (want, got drift.Facts, alive bool) {
	p := s.serving.Load()
	now, err := ofProcess(p.PID)
	if err != nil || now.Start != p.Start {
		return want, got, false
	}
	status, _ := kernel.Status(strconv.Itoa(p.PID), make([]byte, 4<<10), "Uid", "TracerPid", "State") // what can't be read differs
	fact := func(field, value string) drift.Fact {
		return drift.Fact{Kind: drift.Gateway, Field: field, Value: value}
	}
	users := fmt.Sprintf("%d", os.Geteuid())
	mine := []drift.Fact{fact(fieldProgram, p.exe.String()), fact(fieldUsers, strings.Join([]string{users, users, users, users}, " ")),
		fact(fieldLink, filepath.Base(socketOf(s.cfg, p.PID))), fact(fieldSocket, p.socket)}
	found := []drift.Fact{fact(fieldProgram, now.exe.String()), fact(fieldUsers, status["Uid"]), fact(fieldLink, linkAt(s.cfg.controlPath())),
		fact(fieldSocket, socketAt(socketOf(s.cfg, p.PID)))}
	if p.Parent == os.Getpid() {
		mine, found = append(mine, fact(fieldParent, strconv.Itoa(p.Parent))), append(found, fact(fieldParent, strconv.Itoa(now.Parent)))
	}
	if tracer, err := strconv.Atoi(status["TracerPid"]); err == nil && tracer != 0 {
		found = append(found, fact(fieldTracer, nameOf(tracer)))
	}
	if strings.HasPrefix(status["State"], "T") { // "t" is a debugger's
		found = append(found, fact(fieldStopped, status["State"]))
	}
	return drift.Of(mine...), drift.Of(found...), true
}

// linkAt tells what is at the path where a link should be.
func linkAt(path string) string {
	to, err := os.Readlink(path)
	switch {
	case err == nil:
		return strings.ToValidUTF8(to, "?")
	case errors.Is(err, fs.ErrNotExist):
		return "nothing"
	}
	return "no link"
}

// socketAt tells what is at the path where a process's own socket should be: another socket has another number.
func socketAt(path string) string {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "nothing"
	}
	if err != nil {
		return err.Error()
	}
	text := info.Mode().String()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		text += fmt.Sprintf(" of user %d, inode %d of device %d", st.Uid, st.Ino, st.Dev)
	}
	return text
}

// nameOf says what a process is, for people.
func nameOf(pid int) string {
	var st unix.Stat_t
	uid := -1 // it is gone
	if unix.Stat(filepath.Join("/proc", strconv.Itoa(pid)), &st) == nil {
		uid = int(st.Uid)
	}
	return processName(pid, uid)
}

// Heal implements reconcile.Surrounding: the link is put back, a process that is not as it was started is replaced by a new one, and sockets are no
// longer shared. Who listens beside them is told, and left alone.
func (s *Supervisor) Heal(ctx context.Context, found []drift.Oddity) (string, error) {
	var renew, link bool
	for _, o := range found {
		switch {
		case o.Field == fieldStopped: // it holds up whoever asks it: the end of it lets them go on, and the next one starts as after a crash
			return "the process was ended, and a new one started", s.serving.Load().Signal(unix.SIGKILL)
		case o.Kind == string(drift.Listener):
			s.keepForItself()
		case o.Field == fieldLink:
			link = true
		default:
			renew = true
		}
	}
	switch {
	case renew:
		return "a new process took over from the gateway's", s.Renew(ctx)
	case link:
		return "the link to the control socket was put back", s.relink()
	}
	return "it was put back", nil
}

// relink has the control path lead to the gateway again.
func (s *Supervisor) relink() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return link(s.cfg.controlPath(), socketOf(s.cfg, s.servingPID()))
}

// Watch has a listener of this process looked at beside the gateway's, for as long as the Supervisor lives.
func (s *Supervisor) Watch(l net.Listener) error {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil // nobody listens beside on a path; what lies there is looked at by whoever made it
	}
	f, err := tcp.File()
	if err != nil {
		return fmt.Errorf("watching a listener: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watched = append(s.watched, f)
	return nil
}
