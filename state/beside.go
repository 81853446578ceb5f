package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
)

// The kinds of entries about the machine beside the instances.
const (
	KindHostDrift    Kind = "host.drift"
	KindHostResolved Kind = "host.resolved"
)

// HostDrift says that something beside the instances is not as it should be.
type HostDrift struct {
	Findings []instance.Finding `json:"findings"` // at most MaxHostFindings
	Response drift.Response     `json:"response"` // what follows
	Cause    string             `json:"cause"`    // what is odd, in one sentence
}

// HostResolved says that such things are over.
type HostResolved struct {
	Keys  []string  `json:"keys"`  // of findings: kind, a blank, field
	How   string    `json:"how"`   // that came, for people
	Since time.Time `json:"since"` // when the first of them was recorded
}

// MaxHostFindings is how many findings an entry has.
const MaxHostFindings = 16

// Host is what the state knows of the machine.
type Host struct {
	Open []drift.Open `json:"open,omitempty"` // what is not over, oldest first
}

func (HostDrift) EntryKind() Kind    { return KindHostDrift }
func (HostResolved) EntryKind() Kind { return KindHostResolved }

func (h HostDrift) check(e Entry) error {
	if len(h.Findings) == 0 || len(h.Findings) > MaxHostFindings || !slices.Contains(drift.Responses(), h.Response) || h.Cause == "" {
		return fmt.Errorf("want 1 to %d findings, a response that is known, and a cause", MaxHostFindings)
	}
	keys := map[string]bool{}
	for _, f := range h.Findings {
		if f.Kind == "" || strings.Contains(f.Kind, " ") || f.Expected == f.Found || keys[f.Key()] {
			return fmt.Errorf("finding %q has no kind or no difference, or is there twice", f.Key())
		}
		keys[f.Key()] = true
	}
	return nowhere(e)
}

func (h HostResolved) check(e Entry) error {
	if len(h.Keys) == 0 || h.How == "" || h.Since.IsZero() {
		return errors.New("want keys, how that came, and since when")
	}
	return nowhere(e)
}

// Host returns what the state knows of the machine.
func (s State) Host() Host {
	if h := get[Host](s.db.Txn(false), tableHost, "id", tableHost); h != nil {
		return *h
	}
	return Host{}
}

func (f *fold) host() Host {
	if h := get[Host](f.tx, tableHost, "id", tableHost); h != nil {
		return *h
	}
	return Host{}
}

func (f *fold) hostDrift(e Entry, d HostDrift) error {
	h := f.host()
	h.Open = slices.Clip(h.Open)
	for _, x := range d.Findings {
		if slices.ContainsFunc(h.Open, func(o drift.Open) bool { return o.Finding.Key() == x.Key() }) {
			return fault.Errorf(fault.Conflict, "%q is known already", x.Key())
		}
		h.Open = append(h.Open, drift.Open{Finding: x, Response: d.Response, Since: e.Time, Entry: f.log.Size})
	}
	f.detectedBeside(e, d)
	f.put(tableHost, &h)
	return nil
}

func (f *fold) hostResolved(e Entry, d HostResolved) error {
	h := f.host()
	h.Open = slices.Clone(h.Open)
	for _, key := range d.Keys {
		n := slices.IndexFunc(h.Open, func(o drift.Open) bool { return o.Finding.Key() == key })
		if n < 0 {
			return fault.Errorf(fault.Conflict, "%q is not open", key)
		}
		h.Open = slices.Delete(h.Open, n, n+1)
	}
	f.resolvedBeside(e, d)
	f.put(tableHost, &h)
	return nil
}
