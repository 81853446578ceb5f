package handler

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"github.com/invarhq/invar/api"
)

// useProblems makes huma describe and write its own errors, which are all about malformed requests, as
// problems of ours. The function to replace is a variable of huma's, so it is done once for the program.
var useProblems = sync.OnceFunc(func() {
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return problemOfHuma(status, msg, errs)
	}
})

// problemOfHuma names what is wrong with each field of a request. That a request does not validate is
// fault.Invalid, hence 400, and not huma's 422.
func problemOfHuma(status int, msg string, errs []error) *api.Problem {
	if status == http.StatusUnprocessableEntity {
		status = http.StatusBadRequest
	}
	title := http.StatusText(status)
	if status == http.StatusBadRequest {
		title = "Invalid input"
	}
	p := api.ProblemOfStatus(status, title, msg, "")
	for _, err := range errs {
		text := textOf(err)
		p.Errors = append(p.Errors, text)
		if strings.Contains(text, "unexpected property") {
			p.Hint = "the client may be newer than the server: see GET " + api.PathServer
		}
	}
	return &p
}

// textOf tells a detail of huma's without the value, which may be long or a secret.
func textOf(err error) string {
	d, ok := errors.AsType[*huma.ErrorDetail](err)
	if !ok {
		return err.Error()
	}
	if d.Location == "" {
		return d.Message
	}
	return d.Location + ": " + d.Message
}

// register adds an operation whose errors become problems by their kind. Its Errors are the statuses that it can
// answer with beside those that every operation can.
func register[I, O any](h *Handler, op huma.Operation, do func(context.Context, *I) (*O, error)) {
	if _, ok := needs[op.OperationID]; !ok { // program text, not data
		panic("handler: the gate does not know what operation " + op.OperationID + " needs")
	}
	op.MaxBodyBytes = maxRequestBytes
	op.BodyReadTimeout = bodyReadTimeout
	h.documentProblems(&op)
	huma.Register(h.api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := do(ctx, in)
		if err != nil {
			return nil, h.problem(ctx, op.OperationID, err)
		}
		return out, nil
	})
}

// problemMeanings says when an operation answers with a status.
var problemMeanings = map[int]string{
	http.StatusBadRequest:          "The input is wrong, or the client is too old or too new.",
	http.StatusUnauthorized:        "Over TCP: no token, or one that is not valid.",
	http.StatusForbidden:           "The caller may not do this.",
	http.StatusNotFound:            "What was named does not exist.",
	http.StatusConflict:            "The state has moved on: read again, then retry.",
	http.StatusInternalServerError: "Stored data is not what was written, or the server is at fault.",
	http.StatusServiceUnavailable:  "Something needed can't be reached now: retry later.",
}

// documentProblems describes the operation's errors.
func (h *Handler) documentProblems(op *huma.Operation) {
	problem := h.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Problem](), true, "")
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	statuses := append([]int{400, 401, 403, 500, 503}, op.Errors...)
	op.Errors = nil // else huma adds those that it thinks of
	for _, status := range statuses {
		if op.Responses[strconv.Itoa(status)] == nil {
			op.Responses[strconv.Itoa(status)] = &huma.Response{
				Description: problemMeanings[status],
				Content:     map[string]*huma.MediaType{api.TypeProblem: {Schema: problem}},
			}
		}
	}
}

// problem turns err into a problem, and logs it when it is ours to mend.
func (h *Handler) problem(ctx context.Context, operation string, err error) error {
	p := api.ProblemOf(err)
	if p.Status == http.StatusInternalServerError && ctx.Err() == nil {
		h.log.ErrorContext(ctx, "request failed", "operation", operation, "actor", actorFrom(ctx).String(), "error", err)
	}
	return &p
}

// body is an answer of JSON.
type body[T any] struct{ Body T }

func answerWith[T any](v T, err error) (*body[T], error) {
	if err != nil {
		return nil, err
	}
	return &body[T]{v}, nil
}
