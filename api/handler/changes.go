package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/planview"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// changeInput names a change in the path.
type changeInput struct {
	Change string `path:"change" maxLength:"10" pattern:"^[1-9][0-9]*$" example:"12" doc:"Number of the change."`
}

// changeBody is a changeInput with a JSON body.
type changeBody[T any] struct {
	Change string `path:"change" maxLength:"10" pattern:"^[1-9][0-9]*$" example:"12" doc:"Number of the change."`
	Body   T
}

func changeNumber(s string) (state.ChangeNumber, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || strconv.Itoa(n) != s {
		return 0, fault.WithHint(fault.Errorf(fault.Invalid, "%q is no number of a change", s), "invar change list")
	}
	return state.ChangeNumber(n), nil
}

type changesInput struct {
	Env string `query:"env" maxLength:"63" doc:"Only changes of this environment."`
	All bool   `query:"all" doc:"Also those that are closed."`
}

func changeOp(id, method, path, summary, description string) huma.Operation {
	return huma.Operation{OperationID: id, Method: method, Path: path, Tags: []string{tagChanges}, Summary: summary, Description: description,
		Errors: []int{http.StatusNotFound, http.StatusConflict}}
}

func (h *Handler) registerChanges() {
	const read, write = http.MethodGet, http.MethodPost
	register(h, changeOp("list-changes", read, api.PathChanges, "List changes", "Those of environments that the caller may read."),
		func(ctx context.Context, in *changesInput) (*body[api.Changes], error) {
			return answerWith(h.changes(ctx, in), nil)
		})
	register(h, changeOp("get-change", read, api.PathChange, "Show a change", "With its plan, its approvals, and what the policies say."),
		func(ctx context.Context, in *changeInput) (*body[api.ChangeDetail], error) {
			return answerWith(h.change(ctx, in.Change))
		})
	register(h, changeOp("approve-change", write, api.PathApprove, "Approve a change",
		"By a signature over a statement that names the ledger, the change, its plan and its release. It is checked against the keys that the platform's definition gives the caller, and refused when it would count for nothing."),
		func(ctx context.Context, in *changeBody[api.SignedRequest]) (*body[api.ChangeDetail], error) {
			return h.decided(ctx, in.Change, func(n state.ChangeNumber) error {
				return h.config.Control.Approve(ctx, actorFrom(ctx), n, signedOf(in.Body), in.Body.Note)
			})
		})
	register(h, changeOp("reject-change", write, api.PathReject, "Reject a change", "By a signature, as an approval is; it closes the change."),
		func(ctx context.Context, in *changeBody[api.SignedRequest]) (*body[api.ChangeDetail], error) {
			return h.decided(ctx, in.Change, func(n state.ChangeNumber) error {
				return h.config.Control.Reject(ctx, actorFrom(ctx), n, signedOf(in.Body), in.Body.Note)
			})
		})
	register(h, changeOp("withdraw-change", write, api.PathWithdraw, "Take a change back", "It is closed, and can be proposed again."),
		func(ctx context.Context, in *changeBody[api.WithdrawRequest]) (*body[api.ChangeDetail], error) {
			return h.decided(ctx, in.Change, func(n state.ChangeNumber) error {
				return h.config.Control.Withdraw(ctx, actorFrom(ctx), n, in.Body.Reason)
			})
		})
	register(h, changeOp("apply-change", write, api.PathCarryOut, "Carry an approved change out",
		"Moves the head as the change says. Unless a rule says otherwise, that is done by somebody who neither proposed nor approved it."),
		func(ctx context.Context, in *changeBody[api.CarryOutRequest]) (*body[api.Accepted], error) {
			return answerWith(h.carryOut(ctx, in))
		})
	h.registerAfterwards()
}

// registerAfterwards adds what is done about moves that have been made.
func (h *Handler) registerAfterwards() {
	const write, missing, stale = http.MethodPost, http.StatusNotFound, http.StatusConflict
	register(h, envOp("confirm", write, api.PathConfirm, "Let a head stay", "One that was to be confirmed, and would be reverted.", missing, stale),
		func(ctx context.Context, in *envBody[api.ConfirmRequest]) (*struct{}, error) {
			return nil, h.config.Control.Confirm(ctx, actorFrom(ctx), spec.EnvName(in.Env), in.Body.Reason)
		})
	register(h, envOp("review-change", write, api.PathReview, "Review what was done in an emergency", "By a signature of somebody who had no part in it.", missing, stale),
		func(ctx context.Context, in *envBody[api.ReviewRequest]) (*struct{}, error) {
			b := in.Body
			return nil, h.config.Control.Review(ctx, actorFrom(ctx), spec.EnvName(in.Env), b.Generation, b.Verdict, signedOf(b.SignedRequest), b.Note)
		})
	register(h, huma.Operation{
		OperationID: "revoke-release", Method: write, Path: api.PathRevoke, Tags: []string{tagReleases}, Errors: []int{missing, stale},
		Summary: "Block a release for good", Description: "No head can move to it any more. Where it is the head, it is flagged, and a change is proposed that leaves it.",
	}, func(ctx context.Context, in *struct {
		Ref  string `path:"ref" maxLength:"80" example:"prod@3" doc:"A release: ENV (its head), ENV@GENERATION, or a digest."`
		Body api.RevokeRequest
	}) (*body[api.Revoked], error) {
		return answerWith(h.revoke(ctx, in.Ref, in.Body.Reason))
	})
	register(h, huma.Operation{
		OperationID: "whoami", Method: http.MethodGet, Path: api.PathWhoAmI, Tags: []string{tagTokens},
		Summary: "Tell who asks", Description: "Who the caller is in the platform's definition, and what he may do.",
	}, func(ctx context.Context, in *struct {
		Env string `query:"env" maxLength:"63" doc:"Environment to tell the permissions of; absent: those of the whole server."`
	}) (*body[api.WhoAmI], error) {
		return answerWith(h.whoAmI(ctx, spec.EnvName(in.Env)), nil)
	})
}

func signedOf(in api.SignedRequest) control.Signed {
	return control.Signed{Statement: []byte(in.Statement), Signature: []byte(in.Signature)}
}

// decided does something to a change, and shows it.
func (h *Handler) decided(ctx context.Context, text string, do func(state.ChangeNumber) error) (*body[api.ChangeDetail], error) {
	n, err := changeNumber(text)
	if err == nil {
		err = do(n)
	}
	if err != nil {
		return nil, err
	}
	return answerWith(h.change(ctx, text))
}

func (h *Handler) carryOut(ctx context.Context, in *changeBody[api.CarryOutRequest]) (api.Accepted, error) {
	n, err := changeNumber(in.Change)
	if err != nil {
		return api.Accepted{}, err
	}
	c, err := h.config.Control.State().Change(n)
	if err != nil {
		return api.Accepted{}, err
	}
	how, err := h.how(ctx, "apply-change", c.Env, api.How{OverrideFreeze: in.Body.OverrideFreeze}, c.Reason)
	if err != nil {
		return api.Accepted{}, err
	}
	moved, err := h.config.Control.CarryOut(ctx, actorFrom(ctx), n, how.Override)
	return acceptedOf(moved), err
}

// how checks what goes beyond the usual way of a move, each of which needs a permission of its own, and a reason.
func (h *Handler) how(ctx context.Context, operation string, env spec.EnvName, in api.How, reason string) (control.How, error) {
	out := control.How{Confirm: time.Duration(in.ConfirmWithinMS) * time.Millisecond, Emergency: in.Emergency, Override: in.OverrideFreeze}
	for _, special := range []struct {
		asked bool
		needs platform.Permission
	}{{in.Emergency, platform.BreakGlassUse}, {in.OverrideFreeze, platform.FreezeOverride}} {
		if !special.asked {
			continue
		}
		if err := h.authorize(ctx, operation, special.needs, env); err != nil {
			return out, err
		}
		if reason == "" {
			return out, fault.WithHint(fault.Errorf(fault.Invalid, "this needs a reason"), "say why with --reason")
		}
	}
	return out, nil
}

func (h *Handler) changes(ctx context.Context, in *changesInput) api.Changes {
	st := h.config.Control.State()
	rules, _ := st.Platform()
	out := api.Changes{Changes: []api.ChangeSummary{}}
	for c := range st.Changes() {
		if in.Env != "" && string(c.Env) != in.Env || !in.All && c.Status != state.ChangeOpen || !h.sees(ctx, c.Env) {
			continue
		}
		out.Changes = append(out.Changes, summaryOfChange(c, rules))
	}
	slices.Reverse(out.Changes)
	return out
}

func summaryOfChange(c state.Change, rules platform.Definition) api.ChangeSummary {
	out := api.ChangeSummary{
		Number: int(c.Change), Env: string(c.Env), App: string(c.App), Move: string(c.Move), Base: c.Base, To: c.To, Release: c.Release,
		Status: string(c.Status), Cause: c.Cause, Author: c.Author.Who(), Reason: c.Reason, At: c.At, ExpiresAt: when(c.ExpiresAt),
		Applied: c.Applied, Missing: []string{}, Approvals: []api.Approval{}, Promoted: promotedFrom(c.Promoted),
	}
	if c.ClosedBy.Name != "" {
		out.ClosedBy = c.ClosedBy.Who()
	}
	if c.Status == state.ChangeOpen {
		out.Missing = append(out.Missing, rules.Missing(control.Standing(rules, c, time.Now()))...)
	}
	for _, a := range c.Approvals {
		out.Approvals = append(out.Approvals, approvalOf(a))
	}
	return out
}

func (h *Handler) change(ctx context.Context, text string) (api.ChangeDetail, error) {
	n, err := changeNumber(text)
	if err != nil {
		return api.ChangeDetail{}, err
	}
	st := h.config.Control.State()
	c, err := st.Change(n)
	if err != nil {
		return api.ChangeDetail{}, err
	}
	planned, raw, err := h.config.Control.PlanOf(c)
	if err != nil {
		return api.ChangeDetail{}, fmt.Errorf("reading the plan of change %d: %w", n, err)
	}
	rules, _ := st.Platform()
	verdicts, err := h.config.Control.Decisions(ctx, c)
	if err != nil {
		return api.ChangeDetail{}, err
	}
	return api.ChangeDetail{
		ChangeSummary: summaryOfChange(c, rules), Log: st.Log().Origin, Request: string(c.ID), Entry: uint64(c.Entry), Bundle: c.Bundle,
		Plan: planview.Of(planned.Plan, planned.Digest), PlanJSON: json.RawMessage(raw), Decisions: each(verdicts, decisionOf),
	}, nil
}

func decisionOf(v control.Verdict) api.Decision {
	out := api.Decision{Policy: v.Policy, Phase: v.Phase, Allowed: v.Decision.Allowed, Digest: v.Digest, Entry: uint64(v.Entry), Messages: []api.DecisionReason{}}
	out.Erased = v.Erased
	if v.Decision.Failure != nil {
		out.Failure = v.Decision.Failure.Cause
	}
	for _, r := range v.Decision.Results {
		out.Messages = append(out.Messages, api.DecisionReason{Kind: string(r.Kind), Rule: r.Rule, Subject: r.Subject, Message: r.Message,
			Controls: r.Controls, Exempted: r.Exempted, Expired: r.Expired})
	}
	return out
}

func (h *Handler) revoke(ctx context.Context, ref, reason string) (api.Revoked, error) {
	d, _, err := h.resolve(ctx, ref)
	if err != nil {
		return api.Revoked{}, err
	}
	changes, err := h.config.Control.Revoke(ctx, actorFrom(ctx), d, reason)
	if err != nil {
		return api.Revoked{}, err
	}
	out := api.Revoked{Release: d, Changes: []int{}, Heads: []api.Head{}}
	for _, n := range changes {
		out.Changes = append(out.Changes, int(n))
	}
	st := h.config.Control.State()
	for env := range st.Environments() {
		if env.Head.Release == d {
			out.Heads = append(out.Heads, api.Head{Env: string(env.Name), Generation: env.Head.Number, Current: true})
		}
	}
	return out, nil
}

func (h *Handler) whoAmI(ctx context.Context, env spec.EnvName) api.WhoAmI {
	c := callerFrom(ctx)
	rules, _ := h.config.Control.State().Platform()
	out := api.WhoAmI{Principal: string(c.Actor.Principal), Method: string(c.Actor.Kind), Name: c.Actor.Name, Environment: string(env),
		Groups: []string{}, Permissions: []string{}, SSHKeys: []string{}}
	if ends := c.ExpiresAt(); !ends.IsZero() {
		out.ExpiresAt = &ends
	}
	for _, g := range rules.GroupsOf(c.Actor.Principal) {
		out.Groups = append(out.Groups, string(g))
	}
	for _, p := range platform.Permissions() {
		if h.config.Control.Allows(c.Caller, p, env) {
			out.Permissions = append(out.Permissions, string(p))
		}
	}
	if who, ok := rules.Principal(c.Actor.Principal); ok {
		out.SSHKeys = append(out.SSHKeys, who.SSHKeys...)
	}
	return out
}
