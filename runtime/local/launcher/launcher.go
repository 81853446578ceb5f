// Package launcher carries the program cmd/invar-launcher inside invar.
//
// `make launcher` builds it, static and stripped, to bin/invar-launcher, which is not in version control. Without it this
// package still compiles, and Binary says what is missing.
package launcher

import (
	"embed"
	"errors"
	"io/fs"

	"github.com/invarhq/invar/fault"
)

//go:embed all:bin
var files embed.FS

// Binary returns the program. It is fault.Unavailable in an invar that was built without it.
func Binary() ([]byte, error) {
	b, err := files.ReadFile("bin/invar-launcher")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.WithHint(fault.Errorf(fault.Unavailable, "this invar was built without its launcher"), "run `make launcher`, then build invar again")
	}
	return b, err
}
