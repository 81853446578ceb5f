package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/ledger/tiles"
	"github.com/invarhq/invar/store/sqlite"
)

// VerifyDir checks a ledger offline: a copy of a data directory, or a directory of served tiles. vkey is the log's verifier
// key; "" takes the one that lies beside the data.
func VerifyDir(ctx context.Context, dir, vkey string) (ledger.Report, error) {
	if vkey == "" {
		raw, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(publicKey)))
		if err != nil {
			return ledger.Report{}, fault.WithHint(fault.As(fault.Invalid, fmt.Errorf("no key to verify with: %w", err)), "give the log's verifier key with --key")
		}
		vkey = strings.TrimSpace(string(raw))
	}
	source, done, err := openSource(ctx, dir)
	if err != nil {
		return ledger.Report{}, err
	}
	report, err := ledger.Verify(ctx, source, vkey)
	return report, errors.Join(err, done())
}

func openSource(ctx context.Context, dir string) (ledger.Source, func() error, error) {
	if exists(filepath.Join(dir, "checkpoint")) {
		return tiles.New(os.DirFS(dir)), func() error { return nil }, nil
	}
	r, err := sqlite.OpenReadOnly(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	return r, r.Close, nil
}
