package launcher_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime/local/launcher"
)

// Both a checkout that make has not built in and one that it has are right.
func TestBinaryIsThereOrExplained(t *testing.T) {
	b, err := launcher.Binary()
	if err == nil && bytes.HasPrefix(b, []byte("\x7fELF")) {
		return
	}
	if !errors.Is(err, fault.Unavailable) || fault.Hint(err) == "" {
		t.Errorf("%d bytes, error %v, hint %q", len(b), err, fault.Hint(err))
	}
}
