package state

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
)

// The kinds of entries about erasures.
const (
	KindErasureRequest Kind = "erasure.request"
	KindErasureApprove Kind = "erasure.approve"
	KindErasure        Kind = "erasure"
)

// ErasureApprovals is how many agree to an erasure, beside whoever asks for it.
const ErasureApprovals = 2

// ErasureNumber names a request to erase: 1, 2, 3 … in the order of the ledger.
type ErasureNumber int

// ErasureRequest asks that content which entries name is erased. An open request for the same content is replaced.
type ErasureRequest struct {
	Erasure   ErasureNumber `json:"erasure"`
	Digest    digest.Digest `json:"digest"`
	Authority string        `json:"authority"`     // a law with its article, or a ticket
	Law       bool          `json:"law,omitempty"` // the authority is a law: it goes before the platform's retention
	Entries   []int64       `json:"entries"`       // that name the content, the first of them
}

// ErasureApprove is a signed agreement. The entry's signature is over Statement.
type ErasureApprove struct {
	Erasure   ErasureNumber `json:"erasure"`
	Statement string        `json:"statement"`
}

// Erasure says that the content is erased from here on; its deletion follows.
type Erasure struct {
	Erasure   ErasureNumber `json:"erasure"`
	Digest    digest.Digest `json:"digest"`
	Request   EntryID       `json:"request"`   // the entry that asked for it
	Approvals []int64       `json:"approvals"` // the entries that agreed
}

// EntryKind returns the kind.
func (ErasureRequest) EntryKind() Kind { return KindErasureRequest }
func (ErasureApprove) EntryKind() Kind { return KindErasureApprove }
func (Erasure) EntryKind() Kind        { return KindErasure }
func (r ErasureRequest) check(e Entry) error {
	if r.Erasure < 1 || strings.TrimSpace(r.Authority) == "" || len(r.Authority) > MaxReasonBytes || e.Reason == "" || len(r.Entries) == 0 {
		return errors.New("want a number, an authority, a reason, and entries that name the content")
	}
	return errors.Join(nowhere(e), required(r.Digest))
}

func (a ErasureApprove) check(e Entry) error {
	if a.Erasure < 1 || a.Statement == "" || len(e.Sigs) != 1 || e.Sigs[0].Format != "sshsig" || e.Sigs[0].Namespace == "" || len(e.Sigs[0].Sig) == 0 {
		return errors.New("want a number, a statement and one signature of it")
	}
	return nowhere(e)
}

func (r Erasure) check(e Entry) error {
	if r.Erasure < 1 || r.Request == "" || len(r.Approvals) < ErasureApprovals {
		return fmt.Errorf("want a number, a request and %d approvals", ErasureApprovals)
	}
	return errors.Join(nowhere(e), required(r.Digest))
}

// ErasureStatus is where a request to erase stands.
type ErasureStatus string

// The statuses. All but ErasureOpen are for good.
const (
	ErasureOpen     ErasureStatus = "open"
	ErasureReplaced ErasureStatus = "replaced" // by a later request for the same content
	Erased          ErasureStatus = "erased"
)

// KnownErasure is a request to erase, and what became of it.
type KnownErasure struct {
	ErasureRequest
	ID        EntryID       `json:"id"` // of the request
	Entry     int64         `json:"entry"`
	By        Actor         `json:"by"` // who asked
	Reason    string        `json:"reason"`
	At        time.Time     `json:"at"`
	Approvals []Approval    `json:"approvals,omitempty"`
	Status    ErasureStatus `json:"status"`
	ErasedIn  int64         `json:"erased_in,omitempty"` // entry that says so
	ErasedAt  time.Time     `json:"erased_at,omitzero"`
}

// Approvers are those who have agreed.
func (r KnownErasure) Approvers() []platform.PrincipalName {
	var out []platform.PrincipalName
	for _, a := range r.Approvals {
		out = append(out, a.By.Principal)
	}
	return out
}

// Gone says that the content was erased, and by whom, for whoever wants to read it.
func (r KnownErasure) Gone() error {
	who := []string{r.By.Who()}
	for _, a := range r.Approvals {
		who = append(who, a.By.Who())
	}
	return fault.Errorf(fault.NotFound, "content %s was erased by entry %d at %s by %s: %s", r.Digest.Short(), r.ErasedIn,
		r.ErasedAt.Format(time.RFC3339), strings.Join(who, ", "), r.Authority)
}

// Erasure returns a request to erase. It fails with fault.NotFound.
func (s State) Erasure(n ErasureNumber) (KnownErasure, error) {
	r := get[KnownErasure](s.db.Txn(false), tableErasures, "id", erasureKey(n))
	if r == nil {
		return KnownErasure{}, fault.WithHint(fault.Errorf(fault.NotFound, "there is no erasure %d", n), "invar erase list --all")
	}
	return *r, nil
}

// Erasures yields every request to erase, by number.
func (s State) Erasures() iter.Seq[KnownErasure] {
	return all[KnownErasure](s.db.Txn(false), tableErasures, "")
}

// Erased fails with fault.NotFound when the content was erased.
func (s State) Erased(d digest.Digest) error {
	r := get[KnownErasure](s.db.Txn(false), tableErasures, indexDigest, string(d))
	if r == nil || r.Status != Erased {
		return nil
	}
	return r.Gone()
}

func erasureKey(n ErasureNumber) string { return fmt.Sprintf("%010d", n) }

// erasureDigest is what the index of content has of a request; nothing of one that was replaced.
func erasureDigest(r *KnownErasure) string {
	if r.Status == ErasureReplaced {
		return ""
	}
	return string(r.Digest)
}

func (f *fold) erasureRequest(e Entry, d ErasureRequest) error {
	if d.Erasure != f.log.LastErasure+1 {
		return fault.Errorf(fault.Conflict, "erasure %d does not follow %d", d.Erasure, f.log.LastErasure)
	}
	if slices.ContainsFunc(d.Entries, func(i int64) bool { return i < 0 || i >= f.log.Size }) {
		return fault.Errorf(fault.Conflict, "erasure %d refers to entries that are not there", d.Erasure)
	}
	if was := get[KnownErasure](f.tx, tableErasures, indexDigest, string(d.Digest)); was != nil {
		if was.Status == Erased {
			return fault.Errorf(fault.Conflict, "content %s was erased already, by entry %d", d.Digest, was.ErasedIn)
		}
		replaced := *was
		replaced.Status = ErasureReplaced
		f.put(tableErasures, &replaced)
	}
	f.log.LastErasure = d.Erasure
	f.put(tableErasures, &KnownErasure{ErasureRequest: d, ID: e.ID, Entry: f.log.Size, By: e.Actor, Reason: e.Reason, At: e.Time, Status: ErasureOpen})
	return nil
}

// openErasure returns an open request, to change a copy of it.
func (f *fold) openErasure(n ErasureNumber) (*KnownErasure, error) {
	r := get[KnownErasure](f.tx, tableErasures, "id", erasureKey(n))
	switch {
	case r == nil:
		return nil, fault.Errorf(fault.NotFound, "there is no erasure %d", n)
	case r.Status != ErasureOpen:
		return nil, fault.Errorf(fault.Conflict, "erasure %d is %s already", n, r.Status)
	}
	copied := *r
	copied.Approvals = slices.Clone(r.Approvals)
	return &copied, nil
}

func (f *fold) erasureApprove(e Entry, d ErasureApprove) error {
	r, err := f.openErasure(d.Erasure)
	switch who := e.Actor.Principal; {
	case err != nil:
		return err
	case who == "" || who == r.By.Principal:
		return fault.Errorf(fault.Denied, "whoever asked for erasure %d can't agree to it", d.Erasure)
	case slices.Contains(r.Approvers(), who):
		return fault.Errorf(fault.Conflict, "erasure %d is approved by %s already", d.Erasure, e.Actor.Who())
	}
	r.Approvals = append(r.Approvals, Approval{Entry: f.log.Size, By: e.Actor, At: e.Time, KeyID: e.Sigs[0].KeyID, Note: e.Reason})
	f.put(tableErasures, r)
	return nil
}

func (f *fold) erasure(e Entry, d Erasure) error {
	r, err := f.openErasure(d.Erasure)
	if err != nil {
		return err
	}
	var by []int64
	for _, a := range r.Approvals {
		by = append(by, a.Entry)
	}
	if r.Digest != d.Digest || r.ID != d.Request || !slices.Equal(by, d.Approvals) || len(by) < ErasureApprovals {
		return fault.Errorf(fault.Conflict, "erasure %d is another than this, or lacks approvals", d.Erasure)
	}
	r.Status, r.ErasedIn, r.ErasedAt = Erased, f.log.Size, e.Time
	f.put(tableErasures, r)
	return nil
}
