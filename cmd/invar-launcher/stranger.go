package main

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/kernel"
	"github.com/invarhq/invar/runtime/local/wire"
)

// maxTold is how much of a command is told.
const maxTold = 256

// noteStranger remembers, and tells the watchers, when somebody who does not watch has a command run in an instance. A host watches as long as it
// lives, but for the moment between two launchers: who asks first and watches then is a host all the same. The status holds it, so that a host
// that comes later hears of it too.
func (l *launcher) noteStranger(pid int, q wire.Request) {
	r, err := l.find(q.ID)
	if l.watches(pid) || err != nil {
		return
	}
	s := wire.Stranger{PID: pid, Command: kernel.Command(pid, maxTold), At: time.Now(), Asked: asked(q)}
	r.set(func(now *wire.Status) {
		if len(now.Strangers) < wire.MaxStrangers {
			now.Strangers = append(slices.Clip(now.Strangers), s) // who was told before keeps what he has
		}
	})
	if l.watches(pid) { // by now
		l.acquit(pid)
	}
}

func (l *launcher) watches(pid int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(slices.Collect(maps.Values(l.watchers)), pid)
}

// acquit forgets that a process was taken for a stranger. It watches now.
func (l *launcher) acquit(pid int) {
	is := func(s wire.Stranger) bool { return s.PID == pid }
	l.mu.Lock()
	records := slices.Collect(maps.Values(l.instances))
	l.mu.Unlock()
	for _, r := range records {
		if slices.ContainsFunc(r.snapshot().Strangers, is) {
			r.set(func(now *wire.Status) { now.Strangers = slices.DeleteFunc(slices.Clone(now.Strangers), is) })
		}
	}
}

func asked(q wire.Request) string {
	var args []string
	switch {
	case q.Exec != nil:
		args = q.Exec.Args
	case q.Session != nil:
		args = q.Session.Args
	}
	return kernel.Cut(strings.Join(args, " "), maxTold)
}
