package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/invarhq/invar/fault"
)

// Problem is an error on the wire (RFC 9457). Type is the kind of failure as a URI reference, so that
// a program branches on it; Detail and Hint are for people.
type Problem struct {
	Type   string   `json:"type" example:"urn:invar:fault:conflict" doc:"Kind of failure: urn:invar:fault: and one of invalid, denied, not-found, conflict, corrupt, unavailable, internal."`
	Title  string   `json:"title" example:"Conflict" doc:"The kind for people; constant for a type."`
	Status int      `json:"status" example:"409" doc:"The HTTP status."`
	Detail string   `json:"detail,omitempty" doc:"What went wrong this time."`
	Hint   string   `json:"hint,omitempty" doc:"What to do next."`
	Errors []string `json:"errors,omitempty" doc:"Each thing that is wrong with the input, when there are several."`
}

const problemPrefix = "urn:invar:fault:"

// problems maps kinds to the wire; the last row is for failures without a kind.
var problems = []struct {
	kind   fault.Kind
	status int
	title  string
}{
	{fault.Invalid, 400, "Invalid input"},
	{fault.Denied, 403, "Denied"},
	{fault.NotFound, 404, "Not found"},
	{fault.Conflict, 409, "Conflict"},
	{fault.Corrupt, 500, "Corrupt data"},
	{fault.Unavailable, 503, "Unavailable"},
	{"", 500, "Internal error"},
}

// ProblemOf returns err as it goes over the wire.
func ProblemOf(err error) Problem {
	kind := fault.KindOf(err)
	for _, p := range problems {
		if p.kind == kind || p.kind == "" {
			return Problem{Type: typeOf(p.kind), Title: p.title, Status: p.status, Detail: err.Error(), Hint: fault.Hint(err)}
		}
	}
	panic("unreachable: the last row takes every kind")
}

// ProblemOfStatus returns a problem for a status that no kind stands for, such as 401 or 413.
func ProblemOfStatus(status int, title, detail, hint string) Problem {
	return Problem{Type: typeOf(kindOfStatus(status)), Title: title, Status: status, Detail: detail, Hint: hint}
}

func typeOf(kind fault.Kind) string {
	if kind == "" {
		return problemPrefix + "internal"
	}
	return problemPrefix + strings.ReplaceAll(string(kind), " ", "-")
}

// kindOfStatus is the kind that a status stands for when nothing else tells.
func kindOfStatus(status int) fault.Kind {
	switch {
	case status == 401 || status == 403:
		return fault.Denied
	case status == 404 || status == 410:
		return fault.NotFound
	case status == 409 || status == 412:
		return fault.Conflict
	case status == 429 || status >= 502 && status <= 504:
		return fault.Unavailable
	case status >= 400 && status < 500:
		return fault.Invalid
	}
	return ""
}

// Error returns the problem for people, without its hint.
func (p *Problem) Error() string {
	detail := p.Detail
	if detail == "" {
		detail = p.Title
	}
	if len(p.Errors) > 0 {
		detail += ": " + strings.Join(p.Errors, "; ")
	}
	return detail
}

// GetStatus returns the HTTP status. Its name is what huma, which writes problems, asks for.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is what huma sends a problem as.
func (p *Problem) ContentType(string) string { return TypeProblem }

// Err returns the problem as an error of its kind, with its hint.
func (p *Problem) Err() error {
	kind, known := kindOfType(p.Type)
	if !known {
		kind = kindOfStatus(p.Status)
	}
	err := errors.New(p.Error())
	if kind != "" {
		err = fault.As(kind, err)
	}
	if p.Hint != "" {
		err = fault.WithHint(err, "%s", p.Hint)
	}
	return err
}

func kindOfType(typ string) (kind fault.Kind, known bool) {
	for _, p := range problems {
		if typeOf(p.kind) == typ {
			return p.kind, true
		}
	}
	return "", false
}

// DecodeProblem reads the body of an answer with the status, whatever wrote it.
func DecodeProblem(status int, contentType string, body []byte) *Problem {
	p := new(Problem)
	if strings.HasPrefix(contentType, TypeProblem) && json.Unmarshal(body, p) == nil && p.Type != "" {
		p.Status = status
		return p
	}
	detail := fmt.Sprintf("the server answered with status %d", status)
	if text := strings.TrimSpace(string(body)); text != "" && len(text) < 500 && strings.HasPrefix(contentType, "text/plain") {
		detail += ": " + text
	}
	*p = ProblemOfStatus(status, "", detail, "")
	return p
}
