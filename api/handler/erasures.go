package handler

import (
	"context"
	"net/http"
	"slices"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/state"
)

// erasureBody names an erasure in the path, with a JSON body.
type erasureBody[T any] struct {
	Erasure string `path:"erasure" maxLength:"10" pattern:"^[1-9][0-9]*$" example:"1" doc:"Number of the erasure."`
	Body    T
}

func erasureOp(id, method, path, summary, description string) huma.Operation {
	return huma.Operation{OperationID: id, Method: method, Path: path, Tags: []string{tagErasures}, Summary: summary, Description: description,
		Errors: []int{http.StatusNotFound, http.StatusConflict}}
}

func (h *Handler) registerErasures() {
	const read, write = http.MethodGet, http.MethodPost
	register(h, erasureOp("list-erasures", read, api.PathErasures, "List erasures", "Requests to erase content, and what became of them."),
		func(_ context.Context, in *struct {
			All bool `query:"all" doc:"Also those that are closed."`
		}) (*body[api.Erasures], error) {
			return answerWith(h.erasures(in.All), nil)
		})
	register(h, erasureOp("request-erasure", write, api.PathErasures, "Ask to erase content",
		"Content that entries name, such as a recording. What an environment or the ledger needs can't be erased. Two others have to agree."),
		func(ctx context.Context, in *struct{ Body api.ErasureRequest }) (*body[api.Erasure], error) {
			b := in.Body
			n, err := h.config.Control.RequestErasure(ctx, actorFrom(ctx), control.Erasing{Digest: b.Digest, Authority: b.Authority, Law: b.Law, Reason: b.Reason})
			if err != nil {
				return nil, err
			}
			return answerWith(h.erasure(n))
		})
	register(h, erasureOp("get-erasure", read, api.PathErasure, "Show an erasure", "With the entries that name the content, and who has agreed."),
		func(_ context.Context, in *struct {
			Erasure string `path:"erasure" maxLength:"10" pattern:"^[1-9][0-9]*$" example:"1" doc:"Number of the erasure."`
		}) (*body[api.Erasure], error) {
			n, err := erasureNumber(in.Erasure)
			if err != nil {
				return nil, err
			}
			return answerWith(h.erasure(n))
		})
	register(h, erasureOp("approve-erasure", write, api.PathErasureApprove, "Agree to an erasure",
		"By a signature over a statement that names the ledger, the request and the content. With the second, the content is erased for good."),
		func(ctx context.Context, in *erasureBody[api.SignedRequest]) (*body[api.Erasure], error) {
			n, err := erasureNumber(in.Erasure)
			if err == nil {
				err = h.config.Control.ApproveErasure(ctx, actorFrom(ctx), n, signedOf(in.Body), in.Body.Note)
			}
			if err != nil {
				return nil, err
			}
			return answerWith(h.erasure(n))
		})
}

func erasureNumber(s string) (state.ErasureNumber, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || strconv.Itoa(n) != s {
		return 0, fault.WithHint(fault.Errorf(fault.Invalid, "%q is no number of an erasure", s), "invar erase list")
	}
	return state.ErasureNumber(n), nil
}

func (h *Handler) erasures(closed bool) api.Erasures {
	out := api.Erasures{Erasures: []api.Erasure{}}
	st := h.config.Control.State()
	for r := range st.Erasures() {
		if closed || r.Status == state.ErasureOpen {
			out.Erasures = append(out.Erasures, erasureOf(r, st.Log().Origin))
		}
	}
	slices.Reverse(out.Erasures)
	return out
}

func (h *Handler) erasure(n state.ErasureNumber) (api.Erasure, error) {
	st := h.config.Control.State()
	r, err := st.Erasure(n)
	return erasureOf(r, st.Log().Origin), err
}

func erasureOf(r state.KnownErasure, log string) api.Erasure {
	out := api.Erasure{
		Number: int(r.Erasure), Digest: r.Digest, Authority: r.Authority, Law: r.Law, Reason: r.Reason, By: r.By.Who(), At: r.At, Status: string(r.Status),
		Log: log, Request: string(r.ID), Entry: uint64(r.Entry), Entries: append([]int64{}, r.Entries...), Approvals: each(r.Approvals, approvalOf),
		ErasedIn: uint64(r.ErasedIn), ErasedAt: when(r.ErasedAt),
	}
	if r.Status == state.ErasureOpen {
		out.Missing = max(state.ErasureApprovals-len(r.Approvals), 0)
	}
	return out
}

func approvalOf(a state.Approval) api.Approval {
	return api.Approval{By: a.By.Who(), At: a.At, KeyID: a.KeyID, Note: a.Note, Entry: uint64(a.Entry)}
}
