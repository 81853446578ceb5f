package fault_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/invarhq/invar/fault"
)

func TestKindIsFoundHoweverDeeplyItIsWrapped(t *testing.T) {
	err := fmt.Errorf("applying: %w", fault.WithHint(fault.Errorf(fault.Conflict, "reading: %w", io.EOF), "try again"))
	if !errors.Is(err, fault.Conflict) || !errors.Is(err, io.EOF) || errors.Is(err, fault.Denied) {
		t.Errorf("%v: kinds are lost or made up", err)
	}
	if got := fault.KindOf(err); got != fault.Conflict {
		t.Errorf("kind: got %q, want %q", got, fault.Conflict)
	}
	if got, want := err.Error(), "applying: reading: EOF"; got != want {
		t.Errorf("text: got %q, want %q", got, want)
	}
	if got := fault.Hint(err); got != "try again" {
		t.Errorf("hint: got %q", got)
	}
}

func TestOutermostKindAndHintWin(t *testing.T) {
	err := fault.WithHint(fault.As(fault.Denied, fault.WithHint(fault.Errorf(fault.NotFound, "x"), "inner")), "outer %d", 1)
	if fault.KindOf(err) != fault.Denied || fault.Hint(err) != "outer 1" {
		t.Errorf("got %q, %q", fault.KindOf(err), fault.Hint(err))
	}
}

func TestNothingStaysNothing(t *testing.T) {
	if fault.As(fault.Invalid, nil) != nil || fault.WithHint(nil, "x") != nil || fault.KindOf(nil) != "" || fault.Hint(io.EOF) != "" {
		t.Error("nil became an error, or a plain error got a kind")
	}
}
