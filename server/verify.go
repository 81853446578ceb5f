package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/ledger/tiles"
	"github.com/invarhq/invar/ledger/witness"
	"github.com/invarhq/invar/store/sqlite"
)

// Verified says what VerifyDir has checked.
type Verified struct {
	ledger.Report
	Witnessed witness.Result // the newest checkpoint that a quorum cosigned; Quorum is false when there is none
}

// VerifyDir checks a ledger offline: a copy of a data directory, or a directory of served tiles. vkey is the log's verifier
// key; "" takes the one that lies beside the data. The newest checkpoint with a quorum, where it lies beside them, must fit. When the
// policy asks for a quorum, it must hold for all that is there: fault.Corrupt when it does not.
func VerifyDir(ctx context.Context, dir, vkey string, policy witness.Policy) (Verified, error) {
	if vkey == "" {
		raw, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(publicKey)))
		if err != nil {
			return Verified{}, fault.WithHint(fault.As(fault.Invalid, fmt.Errorf("no key to verify with: %w", err)), "give the log's verifier key with --key")
		}
		vkey = strings.TrimSpace(string(raw))
	}
	notes, err := cosignedNotes(dir) // before the ledger, which may grow
	if err != nil {
		return Verified{}, err
	}
	source, done, err := openSource(ctx, dir)
	if err != nil {
		return Verified{}, err
	}
	report, err := ledger.Verify(ctx, source, vkey, notes...)
	if err := errors.Join(err, done()); err != nil {
		return Verified{}, err
	}
	verifier, err := ledger.ParseVerifierKey(vkey)
	if err != nil {
		return Verified{}, err
	}
	newest, err := witness.Vouched(report.Size, verifier, policy, notes...)
	return Verified{report, newest}, err
}

// cosignedNotes reads the checkpoints in a directory that may have cosignatures.
func cosignedNotes(dir string) ([][]byte, error) {
	var out [][]byte
	for _, name := range []string{cosignedFile, tiles.Checkpoint} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		switch {
		case err == nil:
			out = append(out, b)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return out, nil
}

func openSource(ctx context.Context, dir string) (ledger.Source, func() error, error) {
	if exists(filepath.Join(dir, tiles.Checkpoint)) {
		return tiles.New(os.DirFS(dir)), func() error { return nil }, nil
	}
	r, err := sqlite.OpenReadOnly(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	return r, r.Close, nil
}
