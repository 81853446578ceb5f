package cli

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger/witness"
)

func (a *app) ledgerCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "ledger",
		Short: "Read, prove and verify the ledger",
		Long: `The ledger is the append-only Merkle log of all that happened. The state is its fold: what has no entry
has not happened.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.ledgerLogCommand(), a.ledgerShowCommand(), a.ledgerProveCommand(), a.ledgerVerifyCommand(), a.ledgerWitnessesCommand(), a.ledgerMirrorCommand())
	return c
}

func (a *app) ledgerLogCommand() *cobra.Command {
	var env, kind string
	var limit int
	c := &cobra.Command{
		Use:   "log",
		Short: "Show entries, newest last",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			entries, err := a.lastEntries(c, client.EntriesQuery{Env: env, Kind: kind}, limit)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(entries)
			}
			var rows [][]string
			for _, e := range entries {
				what := describe(e)
				if what == e.Kind {
					what = strings.Trim(subjects(e)+", "+e.Outcome, ", ")
				}
				if e.Reason != "" {
					what += ": " + e.Reason
				}
				rows = append(rows, []string{strconv.FormatUint(e.Index, 10), e.Time.UTC().Format(time.RFC3339), e.Kind, orDash(e.Env), e.Actor, what})
			}
			return table(a.Stdout, "ENTRY TIME KIND ENVIRONMENT ACTOR WHAT", rows)
		},
	}
	c.Flags().StringVar(&env, "env", "", "only of the environment `ENV`")
	c.Flags().StringVar(&kind, "kind", "", "only of the `KIND`; \"instance.\" takes all that begin so")
	c.Flags().IntVarP(&limit, "limit", "n", 50, "at most the last `COUNT`; 0: all")
	return c
}

// lastEntries reads all that match, page by page, and keeps the last limit of them.
func (a *app) lastEntries(c *cobra.Command, q client.EntriesQuery, limit int) ([]api.Entry, error) {
	cl, err := a.client()
	if err != nil {
		return nil, err
	}
	var all []api.Entry
	for {
		page, err := cl.Entries(c.Context(), q)
		if err != nil {
			return nil, err
		}
		all = append(all, page.Entries...)
		if limit > 0 && len(all) > limit {
			all = append([]api.Entry(nil), all[len(all)-limit:]...)
		}
		if page.Next >= page.Size || page.Next <= q.From {
			return all, nil
		}
		q.From = page.Next
	}
}

func subjects(e api.Entry) string {
	var parts []string
	for _, s := range e.Subjects {
		part := s.Name
		if s.Digest != "" {
			part += " " + s.Digest.Short()
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", ")
}

func entryIndex(arg string) (uint64, error) {
	n, err := strconv.ParseUint(arg, 10, 63)
	if err != nil {
		return 0, fault.Errorf(fault.Invalid, "%q is not the number of an entry", arg)
	}
	return n, nil
}

func (a *app) ledgerShowCommand() *cobra.Command {
	var content bool
	c := &cobra.Command{
		Use:   "show ENTRY",
		Short: "Show one entry's exact bytes",
		Long: `Show prints the entry as it is in the ledger. With --body it prints, byte by byte, the content that the entry names: a plan, a release,
the evidence of an instance. That needs the permission evidence. A session's recording is read with invar recording.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := a.proof(c, args[0])
			if err != nil {
				return err
			}
			if content {
				return a.showBody(c.Context(), p.Entry)
			}
			if a.output == "json" {
				return a.json(p.Entry)
			}
			_, err = fmt.Fprintf(a.Stdout, "%s\n", p.Entry.Leaf)
			return err
		},
	}
	c.Flags().BoolVar(&content, "body", false, "the content that the entry names")
	return c
}

func (a *app) showBody(ctx context.Context, e api.Entry) error {
	if e.Body == nil {
		return fault.Errorf(fault.NotFound, "entry %d names no content", e.Index)
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	b, err := cl.Content(ctx, e.Body.Digest)
	if err != nil {
		return err
	}
	if got := digest.Of(b); got != e.Body.Digest {
		return fault.Errorf(fault.Corrupt, "the content of entry %d has digest %s, not %s", e.Index, got, e.Body.Digest)
	}
	_, err = a.Stdout.Write(b)
	return err
}

func (a *app) proof(c *cobra.Command, arg string) (api.Proof, error) {
	n, err := entryIndex(arg)
	if err != nil {
		return api.Proof{}, err
	}
	cl, err := a.client()
	if err != nil {
		return api.Proof{}, err
	}
	return cl.Entry(c.Context(), n)
}

func (a *app) ledgerProveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "prove ENTRY",
		Short: "Prove that the ledger holds an entry",
		Long: `Prove prints a C2SP tlog-proof (https://c2sp.org/tlog-proof): the entry's index, the hashes of its audit path
(RFC 6962, 2.1.1), and the signed checkpoint that they lead to. Public tools check it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := a.proof(c, args[0])
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(p)
			}
			_, err = io.WriteString(a.Stdout, p.TLogProof)
			return err
		},
	}
}

// VerifyReport is what checking a ledger found.
type VerifyReport struct {
	Origin string        `json:"origin"`
	Size   int64         `json:"size"`
	Root   string        `json:"root"` // hash of the tree, base64
	Took   time.Duration `json:"-"`

	Cosigned []Cosigned `json:"cosigned,omitempty"` // by witnesses that were asked for
}

// Cosigned is a witness that cosigned all that was verified.
type Cosigned struct {
	Name string    `json:"name"`
	Time time.Time `json:"time"` // by its clock
}

// CosignedBy tells who vouches for a checkpoint.
func CosignedBy(r witness.Result) []Cosigned {
	var out []Cosigned
	for _, c := range r.By {
		out = append(out, Cosigned{c.Witness.Name(), c.Time})
	}
	return out
}

func (a *app) sayCosigned(by []Cosigned) {
	for _, c := range by {
		fmt.Fprintf(a.Stdout, "cosigned by %s at %s\n", c.Name, c.Time.Format(time.RFC3339))
	}
}

func (a *app) ledgerVerifyCommand() *cobra.Command {
	var key string
	var witnesses witnessFlags
	c := &cobra.Command{
		Use:   "verify [DIR]",
		Short: "Check every entry, hash and checkpoint",
		Long: `Verify hashes every entry again, compares the tree and every checkpoint with it, and checks the signatures.
It names the first bad entry, and then exits with 6.

With DIR, a copy of a data directory or a directory of served tiles, it works offline: no server, no
network. --key is the log's verifier key, which an auditor keeps apart from the data; without it the key
that lies beside the data is used, which shows damage but not forgery.

With --witness, a quorum of these witnesses must have cosigned the newest checkpoint: that the log showed others the same
history. Where it does not reach so far, verify exits with 6 and says up to where it holds.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			policy, err := witnesses.policy()
			if err != nil {
				return err
			}
			if key != "" {
				key = textOr(key)
			}
			if len(args) == 1 {
				return a.verifyDir(c, args[0], key, policy)
			}
			return a.verifyServer(c, key, policy)
		},
	}
	c.Flags().StringVar(&key, "key", "", "the log's verifier key, or a `FILE` that holds it")
	witnesses.add(c.Flags(), "quorum", "verifier key of a `WITNESS`, or a file of C2SP tlog-policy")
	return c
}

func (a *app) verifyDir(c *cobra.Command, dir, key string, policy witness.Policy) error {
	started := time.Now()
	r, err := a.Daemons.VerifyDir(c.Context(), dir, key, policy)
	if err != nil {
		return err
	}
	r.Took = time.Since(started)
	if a.output == "json" {
		return a.json(r)
	}
	_, err = fmt.Fprintf(a.Stdout, "%s: %s verified in %s\nlog %s\nroot %s\n", a.outStyle().good("ok"), entriesWord(r.Size), r.Took.Round(time.Millisecond), r.Origin, r.Root)
	a.sayCosigned(r.Cosigned)
	return err
}

// vouched checks that a quorum of witnesses vouches for what the server has.
func (a *app) vouched(c *cobra.Command, cl *client.Client, key string, size uint64, policy witness.Policy) ([]Cosigned, error) {
	if !policy.Asks() {
		return nil, nil
	}
	newest, err := cl.Checkpoint(c.Context())
	if err != nil {
		return nil, err
	}
	w, err := cl.Witnesses(c.Context())
	if err != nil {
		return nil, err
	}
	if key == "" {
		key = newest.VKey
	}
	l, err := witness.ParseLog(key)
	if err != nil {
		return nil, err
	}
	notes := [][]byte{[]byte(newest.Note)}
	if w.Cosigned != "" {
		notes = append(notes, []byte(w.Cosigned))
	}
	r, err := witness.Vouched(int64(size), l.Verifier, policy, notes...)
	return CosignedBy(r), err
}

func (a *app) verifyServer(c *cobra.Command, key string, policy witness.Policy) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	v, err := cl.Verify(c.Context())
	if err != nil {
		return err
	}
	if a.output == "json" {
		if err := a.json(v); err != nil {
			return err
		}
	}
	if !v.OK {
		return exit(ExitUntrue, badSpot(v.Problem))
	}
	by, err := a.vouched(c, cl, key, v.Size, policy)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return nil
	}
	_, err = fmt.Fprintf(a.Stdout, "%s: %s verified in %d ms\nlog %s\nroot %s\n", a.outStyle().good("ok"), entriesWord(int64(v.Size)), v.Millis, v.Origin,
		base64.StdEncoding.EncodeToString(v.RootHash))
	a.sayCosigned(by)
	return err
}

func badSpot(b *api.BadSpot) error {
	switch {
	case b == nil:
		return fmt.Errorf("the ledger does not verify")
	case b.Index != nil:
		return fmt.Errorf("the ledger does not verify: entry %d: %s", *b.Index, b.Cause)
	}
	return fmt.Errorf("the ledger does not verify: %s", b.Cause)
}

func entriesWord(n int64) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}
