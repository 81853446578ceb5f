package cli

import (
	"bytes"
	"testing"
	"time"

	"github.com/invarhq/invar/api"
)

// exampleChange is one that waits, judged by three policies.
func exampleChange() api.ChangeDetail {
	at := func(hour int) time.Time { return time.Date(2026, 11, 25, hour, 30, 0, 0, time.Local) } // as it is shown
	expires := at(23)
	plan := examplePlan()
	plan.Digest = named("plan")
	return api.ChangeDetail{
		ChangeSummary: api.ChangeSummary{Number: 12, Env: "prod", App: "shop", Move: "apply", Base: 1, Release: named("release"), Status: api.ChangeOpen,
			Author: "alice", Reason: "autumn sale", At: at(9), ExpiresAt: &expires, Missing: []string{"prod: 1 of group.managers and 1 of group.security"},
			Approvals: []api.Approval{{By: "bob", At: at(10), KeyID: "SHA256:AAAA", Note: "read the plan", Entry: 42}}},
		Plan: plan,
		Decisions: []api.Decision{
			{Policy: "baseline", Phase: "request", Allowed: false, Messages: []api.DecisionReason{
				{Kind: "deny", Rule: "no_root", Subject: "web", Message: "web runs as root", Controls: []string{"AC-6"}},
				{Kind: "deny", Rule: "limits", Subject: "db", Message: "db has no memory limit", Expired: []string{"db-limits"}},
				{Kind: "violation", Rule: "base", Message: "debian is not on the list", Exempted: "old-base"},
				{Kind: "warn", Rule: "reason", Message: "no ticket in the reason"}}},
			{Policy: "broken", Phase: "request", Failure: "rules.rego:7: division by zero", Messages: []api.DecisionReason{}},
			{Policy: "freeze-calendar", Phase: "request", Allowed: true, Messages: []api.DecisionReason{}},
		},
	}
}

func TestRenderingOfChanges(t *testing.T) {
	waits := exampleChange()
	applied, void, destroy := exampleChange(), exampleChange(), exampleChange()
	applied.Status, applied.ClosedBy, applied.Applied, applied.Missing, applied.Decisions = api.ChangeApplied, "dave", 2, nil, nil
	void.Status, void.ClosedBy, void.Cause, void.Missing, void.Decisions = "void", "erin", "the head moved to generation 2", nil, nil
	destroy.Decisions, destroy.Move, destroy.Approvals, destroy.Missing, destroy.Reason = nil, "destroy", nil, []string{}, ""
	for name, ch := range map[string]api.ChangeDetail{"change": waits, "change-applied": applied, "change-void": void, "change-approved": destroy} {
		var b bytes.Buffer
		new(app).renderChangeDetail(&b, style{}, ch)
		upToDate(t, "testdata/"+name+".txt", b.Bytes())
	}
}
