// Package fault has the kinds of failure that a caller can act on, and hints for people.
//
// A kind is found with errors.Is(err, fault.NotFound), however deeply it is wrapped. One table in
// the API maps kinds to HTTP statuses and one in the command line maps them to exit statuses.
package fault

import (
	"errors"
	"fmt"
)

// Kind is a kind of failure. It is an error, so that errors.Is finds it.
type Kind string

// The kinds. A failure with none of them is internal.
const (
	Invalid     Kind = "invalid"     // the input is wrong: change it
	NotFound    Kind = "not found"   // what was named does not exist
	Conflict    Kind = "conflict"    // the state has moved on: read again, then retry
	Denied      Kind = "denied"      // the caller may not do this
	Unavailable Kind = "unavailable" // something needed can't be reached now: retry later
	Corrupt     Kind = "corrupt"     // stored data is not what was written
)

func (k Kind) Error() string { return string(k) }

type kinded struct {
	kind Kind
	err  error
}

func (e *kinded) Error() string { return e.err.Error() }
func (e *kinded) Unwrap() []error {
	return []error{e.kind, e.err}
}

// Errorf returns an error of the kind, formatted as by fmt.Errorf.
func Errorf(kind Kind, format string, args ...any) error {
	return &kinded{kind, fmt.Errorf(format, args...)}
}

// As gives err a kind. It returns nil for nil.
func As(kind Kind, err error) error {
	if err == nil {
		return nil
	}
	return &kinded{kind, err}
}

// KindOf returns the outermost kind of err, or "" when it has none.
func KindOf(err error) Kind {
	if k, ok := errors.AsType[Kind](err); ok {
		return k
	}
	return ""
}

type hinted struct {
	error
	hint string
}

func (e *hinted) Unwrap() error { return e.error }

// WithHint adds to err what the user can do next, one sentence or command. It returns nil for nil.
func WithHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// Hint returns the outermost hint of err, or "".
func Hint(err error) string {
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.hint
	}
	return ""
}
