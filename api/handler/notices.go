package handler

import (
	"fmt"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/state"
)

// noticesOf tells what somebody who looks at an environment ought to know of its head beside how it does: what blocks it, what
// waits, and what is due. It is pure.
func noticesOf(st state.State, e state.Environment, rules platform.Definition, now time.Time) []api.Notice {
	var out []api.Notice
	add := func(kind string, until time.Time, format string, args ...any) {
		out = append(out, api.Notice{Kind: kind, Text: fmt.Sprintf(format, args...), Until: when(until)})
	}
	if r, ok := st.Revoked(e.Head.Release); ok && e.Head.Release != "" {
		add(api.NoticeRevoked, time.Time{}, "the release was revoked by %s: %s", r.By.Who(), r.Reason)
	}
	if !e.ConfirmBy.IsZero() {
		add(api.NoticeConfirm, e.ConfirmBy, "it is reverted unless confirmed by %s: invar confirm %s", e.ConfirmBy.Format(time.RFC3339), e.Name)
	}
	for _, r := range e.Reviews {
		if now.After(r.DueAt) {
			add(api.NoticeOverdue, r.DueAt, "the review of generation %d was due at %s, and nothing else moves before it is done: invar change review %s@%d",
				r.Generation, r.DueAt.Format(time.RFC3339), e.Name, r.Generation)
			continue
		}
		add(api.NoticeReview, r.DueAt, "generation %d was made by %s in an emergency; its review is due by %s: invar change review %s@%d",
			r.Generation, r.By.Who(), r.DueAt.Format(time.RFC3339), e.Name, r.Generation)
	}
	if f, frozen := rules.Frozen(e.Name, now, false); frozen {
		add(api.NoticeFrozen, f.Until, "%s", f.Reason)
	}
	if since, _ := e.Unmeasured(); e.MeasureLate(rules.VerifyEvery(e.Name), now) {
		add(api.NoticeUnverified, time.Time{}, "not all of what runs was measured since %s: invar verify %s", since.Format(time.RFC3339), e.Name)
	}
	for _, c := range st.OpenChanges(e.Name) {
		add(api.NoticeChange, c.ExpiresAt, "change %d of %s is open: invar change show %d", c.Change, c.Author.Who(), c.Change)
	}
	return out
}
