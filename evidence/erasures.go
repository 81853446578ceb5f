package evidence

import (
	"errors"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/state"
)

// agreed checks that an agreement to erase is signed, by somebody who could give it. That it is not by who asked, and counts once, the
// fold has checked.
func (a *auditor) agreed(d state.ErasureApprove) {
	a.check("permission", a.may(platform.Erase))
	r, err := a.state.Erasure(d.Erasure)
	if err != nil {
		return // the fold refuses it
	}
	want := change.Statement{V: 1, Meaning: change.Erasure, Request: string(r.ID), Subject: r.Digest, Reason: a.entry.Reason, Signer: a.entry.Actor.Principal}
	a.signed(d.Statement, want, r.At)
}

// erasure checks that content was erased by the server. That it was asked for and agreed to, the fold has checked.
func (a *auditor) erasure(d state.Erasure) {
	if !a.system() {
		a.check("permission", errors.New("content is erased by the server, as it was agreed"))
	}
	a.find(Notice, "body", "content %s was erased, as entry %s asked", d.Digest.Short(), d.Request)
}
