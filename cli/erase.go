package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
)

func (a *app) eraseCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "erase",
		Short: "Erase content that the ledger names, such as recordings",
		Long: `What entries name by digest can be erased for good, when somebody asks for it and two others agree. The
entries stay, and all proofs verify as before. What runs, could run again or waits for approval is needed, and
can't be erased.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.eraseRequestCommand(), a.eraseListCommand(), a.eraseShowCommand(), a.eraseApproveCommand())
	return c
}

func (a *app) eraseRequestCommand() *cobra.Command {
	var req api.ErasureRequest
	c := &cobra.Command{
		Use:   "request DIGEST",
		Short: "Ask to erase content",
		Long: `Two others with the permission erase have to agree. While a retention rule of the platform's definition has the
content kept, only a law goes before it (--law).`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var err error
			if req.Digest, err = digest.Parse(args[0]); err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			r, err := cl.RequestErasure(c.Context(), req)
			if err != nil {
				return err
			}
			return a.answerErasure(r)
		},
	}
	c.Flags().StringVar(&req.Authority, "authority", "", "a law with its article, or a ticket: \"GDPR Art. 17, case 12\"")
	c.Flags().BoolVar(&req.Law, "law", false, "the authority is a law: it goes before retention")
	c.Flags().StringVar(&req.Reason, "reason", "", "why; recorded in the ledger")
	return c
}

func (a *app) eraseListCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the erasures that wait",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			erasures, err := cl.Erasures(c.Context(), all)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(erasures)
			}
			var rows [][]string
			for _, r := range erasures {
				rows = append(rows, []string{strconv.Itoa(r.Number), r.Digest.Short(), r.By, age(r.At), erasureStanding(r), r.Authority})
			}
			return table(a.Stdout, "ERASURE CONTENT BY AGE STATUS AUTHORITY", rows)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also those that are closed")
	return c
}

// erasureStanding is where an erasure stands, in a few words.
func erasureStanding(r api.Erasure) string {
	if r.Status == api.ErasureOpen {
		return fmt.Sprintf("lacks %d of %d", r.Missing, r.Missing+len(r.Approvals))
	}
	return r.Status
}

func (a *app) eraseShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show ERASURE",
		Short: "Show an erasure: which entries name the content, and who has agreed",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			_, r, err := a.fetchErasure(c.Context(), args[0])
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(r)
			}
			renderErasure(a.Stdout, a.outStyle(), r)
			return nil
		},
	}
}

func (a *app) fetchErasure(ctx context.Context, text string) (*client.Client, api.Erasure, error) {
	cl, n, err := a.numbered(text, "an erasure", "invar erase list")
	if err != nil {
		return nil, api.Erasure{}, err
	}
	r, err := cl.Erasure(ctx, n)
	return cl, r, err
}

func renderErasure(w io.Writer, st style, r api.Erasure) {
	fmt.Fprintf(w, "%s %d  %s  %s\n", st.bold("erasure"), r.Number, r.Digest, erasureStanding(r))
	fmt.Fprintf(w, "  by %s at %s: %s\n", r.By, r.At.Local().Format(time.DateTime), r.Reason)
	authority := "authority"
	if r.Law {
		authority = "law"
	}
	fmt.Fprintf(w, "  %s: %s\n", authority, r.Authority)
	var entries []string
	for _, i := range r.Entries {
		entries = append(entries, strconv.FormatInt(i, 10))
	}
	fmt.Fprintf(w, "  named by entry %s\n", strings.Join(entries, ", "))
	renderApprovals(w, st, r.Approvals)
	switch {
	case r.Status == api.ErasureErased && r.ErasedAt != nil:
		fmt.Fprintf(w, "%s by entry %d at %s\n", st.bad("erased"), r.ErasedIn, r.ErasedAt.Local().Format(time.DateTime))
	case r.Missing > 0:
		fmt.Fprintf(w, "%s %d more who agree\n", st.warn("lacks"), r.Missing)
	}
}

func (a *app) eraseApproveCommand() *cobra.Command {
	var yes bool
	var key, note string
	c := &cobra.Command{
		Use:   "approve ERASURE",
		Short: "Agree to an erasure, by a signature",
		Long: `What is signed names this ledger, the request and the content. With the second approval the content is
erased at once, and for good.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			cl, r, err := a.fetchErasure(ctx, args[0])
			if err != nil {
				return err
			}
			renderErasure(a.Stderr, a.style(), r)
			if !yes {
				if err := a.confirm("Agree to this?", fmt.Sprintf("invar erase approve %d --yes", r.Number)); err != nil {
					return err
				}
			}
			signed, err := a.sign(ctx, cl, key, change.Statement{V: 1, Log: r.Log, Meaning: change.Erasure, Request: r.Request, Subject: r.Digest, Reason: note})
			if err != nil {
				return err
			}
			if r, err = cl.ApproveErasure(ctx, r.Number, signed); err != nil {
				return err
			}
			return a.answerErasure(r)
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().StringVar(&key, "key", "", "what to sign with: a private key `FILE`, its *.pub, or the fingerprint or comment of a key of the agent")
	c.Flags().StringVar(&note, "reason", "", "why; part of what is signed")
	return c
}

// answerErasure says where an erasure stands after something was done about it.
func (a *app) answerErasure(r api.Erasure) error {
	if a.output == "json" {
		return a.json(r)
	}
	fmt.Fprintf(a.Stderr, "erasure %d of %s: %s\n", r.Number, r.Digest.Short(), erasureStanding(r))
	if r.Status == api.ErasureOpen {
		fmt.Fprintf(a.Stderr, "next: invar erase approve %d\n", r.Number)
	}
	return nil
}
