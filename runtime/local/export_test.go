package local

import "time"

// DialIn is for tests that talk to what runs in an instance.
var DialIn = dialIn

// DeleteLogs is what a removal does at most once a minute.
func (h *Host) DeleteLogs(now time.Time) error { return h.deleteLogs(now) }

// Restrict makes the host believe that its machine has less.
func (h *Host) Restrict(less func(*Features)) {
	less(&h.features)
	h.roots.features, h.trees.features = h.features, h.features
}

// Scanner returns what one look for foreign processes is.
func (h *Host) Scanner() func() {
	s := newScanner(h)
	return func() { s.scan() }
}
