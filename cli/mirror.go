package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// MirrorConfig is what the flags of "invar ledger mirror" say.
type MirrorConfig struct {
	Log   string // where it is read
	Token string
	Dir   string
	Key   string        // verifier key; "" is the one that the copy was made with
	Every time.Duration // again and again; 0: once
}

// Mirrored is what a turn of a mirror did.
type Mirrored struct {
	Origin   string `json:"origin"`
	Before   int64  `json:"before"` // entries that were there
	Size     int64  `json:"size"`   // entries that are there now
	Root     string `json:"root"`
	Cosigned int64  `json:"cosigned"` // up to where the log has a checkpoint with a quorum of witnesses
}

func (a *app) ledgerMirrorCommand() *cobra.Command {
	cfg := MirrorConfig{}
	var watch bool
	every := 10 * time.Second
	c := &cobra.Command{
		Use:   "mirror URL DIR",
		Short: "Copy the ledger to a directory, and watch that it only grows",
		Long: `Mirror copies a ledger into DIR, as tiles (https://c2sp.org/tlog-tiles) that "invar ledger verify DIR" checks offline. URL is a
server, unix://PATH or http(s)://HOST:PORT, with a token in INVAR_TOKEN; or, with a path, where any tiled log lies. It takes what
is new, checks every tile and entry against the signed checkpoint, and that the ledger begins with what DIR has. It can be
stopped at any time.

A ledger that was rewritten or cut back is not copied: mirror says so, keeps both checkpoints under DIR/evidence, and
ends with 6. It copies entries, not the bodies that they name by digest.`,
		Example: `  invar ledger mirror https://invar.example.com:7373 /srv/mirror --key ledger.pub --watch`,
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			token, err := a.givenToken()
			if err != nil {
				return err
			}
			cfg.Log, cfg.Dir, cfg.Token = args[0], args[1], token
			if cfg.Key != "" {
				cfg.Key = textOr(cfg.Key)
			}
			if watch {
				cfg.Every = every
			}
			return a.Daemons.Mirror(c.Context(), cfg, a.showMirrored)
		},
	}
	c.Flags().StringVar(&cfg.Key, "key", "", "the log's verifier key, or a `FILE` that holds it; needed for a new DIR")
	c.Flags().BoolVar(&watch, "watch", false, "go on until it is stopped")
	c.Flags().DurationVar(&every, "every", every, "how often to look, with --watch")
	return c
}

// showMirrored tells of a turn that brought something, and of the first.
func (a *app) showMirrored(m Mirrored) error {
	if a.output == "json" {
		return a.json(m)
	}
	cosigned := ""
	if m.Cosigned > 0 {
		cosigned = fmt.Sprintf(", cosigned up to %d", m.Cosigned)
	}
	_, err := fmt.Fprintf(a.Stdout, "%s: %s, %d new%s\n", m.Origin, entriesWord(m.Size), m.Size-m.Before, cosigned)
	return err
}
