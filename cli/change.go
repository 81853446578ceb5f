package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/api/planview"
	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity/sshkey/signer"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
)

func (a *app) changeCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "change",
		Short: "Look at changes that wait, approve them, and carry them out",
		Long: `An apply, rollback or destroy of an environment that the platform's definition governs becomes a
change: it waits until those whose approval its rules ask for have signed it. An approval is a
signature (SSHSIG) by the approver's SSH key over the ledger, the change, its plan and its release,
so that it is good for nothing else; "ssh-keygen -Y verify" checks it without invar. A change is void
when the head moves meanwhile, and when it expires.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.changeListCommand(), a.changeShowCommand(), a.changeSignCommand(change.Approval), a.changeSignCommand(change.Rejection),
		a.changeWithdrawCommand(), a.changeApplyCommand(), a.changeReviewCommand())
	return c
}

func (a *app) changeListCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "list [ENV]",
		Short: "List the changes that wait",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			changes, err := cl.Changes(c.Context(), strings.Join(args, ""), all)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(changes)
			}
			var rows [][]string
			for _, ch := range changes {
				rows = append(rows, []string{strconv.Itoa(ch.Number), ch.Env, ch.Move, ch.Release.Short(), ch.Author, age(ch.At), standing(ch), ch.Reason})
			}
			return table(a.Stdout, "CHANGE ENV MOVE RELEASE BY AGE STATUS REASON", rows)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also those that are closed")
	return c
}

// standing is where a change stands, in a few words.
func standing(ch api.ChangeSummary) string {
	switch {
	case ch.Status != api.ChangeOpen:
		return ch.Status
	case len(ch.Missing) > 0:
		return "waits for approval"
	}
	return "approved"
}

func (a *app) changeShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show CHANGE",
		Short: "Show a change: its plan, what the policies say, and who has approved it",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			_, ch, err := a.fetchChange(c.Context(), args[0])
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(ch)
			}
			a.renderChangeDetail(a.Stdout, a.outStyle(), ch)
			return nil
		},
	}
}

// numbered reads the number of a thing that a command is about, and connects to the server.
func (a *app) numbered(text, what, list string) (*client.Client, int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return nil, 0, fault.WithHint(fault.Errorf(fault.Invalid, "%q is no number of %s", text, what), "%s", list)
	}
	cl, err := a.client()
	return cl, n, err
}

// fetchChange reads a change. Its plan is decoded from the bytes that the digest to be signed is of.
func (a *app) fetchChange(ctx context.Context, text string) (*client.Client, api.ChangeDetail, error) {
	cl, n, err := a.numbered(text, "a change", "invar change list")
	if err != nil {
		return nil, api.ChangeDetail{}, err
	}
	ch, err := cl.Change(ctx, n)
	if err != nil {
		return nil, ch, err
	}
	// What is shown, and signed, is what the digest names, whatever else the server says.
	plan, err := planview.Read(ch.PlanJSON)
	if err != nil {
		return nil, ch, fmt.Errorf("reading the plan of change %d: %w", n, err)
	}
	if plan.Digest != ch.Plan.Digest || plan.Env != ch.Env || plan.Release != ch.Release || plan.BaseGeneration != ch.Base {
		return nil, ch, fault.Errorf(fault.Corrupt, "the server says that change %d is one of %s to release %s, and its plan is of %s to %s", n, ch.Env, ch.Release, plan.Env, plan.Release)
	}
	ch.Plan = plan
	return cl, ch, nil
}

func forAtLeast(ms int64) string {
	if ms == 0 {
		return ""
	}
	return " for at least " + seconds(time.Duration(ms)*time.Millisecond)
}

func (a *app) renderChangeDetail(w io.Writer, st style, ch api.ChangeDetail) {
	fmt.Fprintf(w, "%s %d  %s of %s in %s  %s\n", st.bold("change"), ch.Number, ch.Move, ch.App, st.bold(ch.Env), standing(ch.ChangeSummary))
	if p := ch.Promoted; p != nil {
		fmt.Fprintf(w, "  promoted from %s@%d, which has to be the head there still and to run healthy%s when this is carried out\n", p.From, p.Generation, forAtLeast(p.HealthyForMS))
	}
	fmt.Fprintf(w, "  by %s at %s", ch.Author, ch.At.Local().Format(time.DateTime))
	if ch.Reason != "" {
		fmt.Fprintf(w, ": %s", ch.Reason)
	}
	fmt.Fprintln(w)
	switch {
	case ch.Status == api.ChangeApplied:
		fmt.Fprintf(w, "  carried out by %s: generation %d\n", ch.ClosedBy, ch.Applied)
	case ch.Cause != "":
		fmt.Fprintf(w, "  %s by %s: %s\n", ch.Status, ch.ClosedBy, ch.Cause)
	case ch.ExpiresAt != nil:
		fmt.Fprintf(w, "  expires at %s\n", ch.ExpiresAt.Local().Format(time.DateTime))
	}
	fmt.Fprintln(w)
	a.renderPlan(w, st, ch.Plan)
	fmt.Fprintf(w, "\nplan %s\n", ch.Plan.Digest)
	a.renderDecisions(w, st, ch.Decisions)
	renderApprovals(w, st, ch.Approvals)
	for _, m := range ch.Missing {
		fmt.Fprintf(w, "%s %s\n", st.warn("lacks"), m)
	}
}

// renderApprovals writes who has signed.
func renderApprovals(w io.Writer, st style, approvals []api.Approval) {
	for _, ap := range approvals {
		fmt.Fprintf(w, "%s by %s at %s with key %s", st.good("approved"), ap.By, ap.At.Local().Format(time.DateTime), ap.KeyID)
		if ap.Note != "" {
			fmt.Fprintf(w, ": %s", ap.Note)
		}
		fmt.Fprintln(w)
	}
}

// renderDecisions writes what the policies say, what refuses first.
func (a *app) renderDecisions(w io.Writer, st style, decisions []api.Decision) {
	for _, d := range decisions {
		verdict := st.good("allows")
		if !d.Allowed {
			verdict = st.bad("refuses")
		}
		fmt.Fprintf(w, "policy %s %s\n", d.Policy, verdict)
		if d.Erased != "" {
			fmt.Fprintf(w, "  %s\n", st.warn("its reasons are gone: "+d.Erased))
		}
		if d.Failure != "" {
			fmt.Fprintf(w, "  %s\n", d.Failure)
		}
		for _, m := range d.Messages {
			kind := m.Kind
			switch {
			case m.Exempted != "":
				kind = "exempted by " + m.Exempted
			case len(m.Expired) > 0:
				kind += ", since exception " + strings.Join(m.Expired, ", ") + " has expired"
			}
			fmt.Fprintf(w, "  %s: %s", kind, m.Message)
			if m.Subject != "" {
				fmt.Fprintf(w, " (%s)", m.Subject)
			}
			fmt.Fprintf(w, "  %s", st.dim(m.Rule))
			if len(m.Controls) > 0 {
				fmt.Fprintf(w, "  %s", st.dim(strings.Join(m.Controls, ", ")))
			}
			fmt.Fprintln(w)
		}
	}
}

// changeSignCommand approves or rejects.
func (a *app) changeSignCommand(m change.Meaning) *cobra.Command {
	var yes bool
	var key, note, verb string
	long := `The plan and the policies' reasons are shown first. What is signed names this ledger, this change, its
plan and its release. The key is one of your ssh-agent, or a private key file.`
	if verb = "approve"; m == change.Rejection {
		verb = "reject"
	}
	c := &cobra.Command{
		Use:   verb + " CHANGE",
		Short: map[string]string{"approve": "Approve a change, by a signature", "reject": "Reject a change, by a signature, which closes it"}[verb],
		Long:  long,
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			cl, ch, err := a.fetchChange(ctx, args[0])
			if err != nil {
				return err
			}
			a.renderChangeDetail(a.Stderr, a.style(), ch)
			if !yes {
				if err := a.confirm(capitalised(verb)+" this?", fmt.Sprintf("invar change %s %d --yes", verb, ch.Number)); err != nil {
					return err
				}
			}
			signed, err := a.sign(ctx, cl, key, change.Statement{V: 1, Log: ch.Log, Meaning: m, Env: spec.EnvName(ch.Env), Change: ch.Number,
				Request: ch.Request, Plan: ch.Plan.Digest, Release: ch.Release, Reason: note})
			if err != nil {
				return err
			}
			send := cl.Approve
			if m == change.Rejection {
				send = cl.Reject
			}
			if ch, err = send(ctx, ch.Number, signed); err != nil {
				return err
			}
			return a.signedChange(ch)
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().StringVar(&key, "key", "", "what to sign with: a private key `FILE`, its *.pub, or the fingerprint or comment of a key of the agent")
	c.Flags().StringVar(&note, "reason", "", "why; part of what is signed")
	return c
}

// signedChange says where a change stands after a decision.
func (a *app) signedChange(ch api.ChangeDetail) error {
	if a.output == "json" {
		return a.json(ch)
	}
	fmt.Fprintf(a.Stderr, "change %d: %s\n", ch.Number, standing(ch.ChangeSummary))
	for _, m := range ch.Missing {
		fmt.Fprintf(a.Stderr, "  lacks %s\n", m)
	}
	if ch.Status == api.ChangeOpen && len(ch.Missing) == 0 {
		fmt.Fprintf(a.Stderr, "next: invar change apply %d\n", ch.Number)
	}
	return nil
}

// sign signs a statement as the caller's principal.
func (a *app) sign(ctx context.Context, cl *client.Client, key string, s change.Statement) (api.SignedRequest, error) {
	me, err := cl.WhoAmI(ctx, "")
	if err != nil {
		return api.SignedRequest{}, err
	}
	s.Signer = platform.PrincipalName(me.Principal)
	s.SignedAt = time.Now().UTC().Truncate(time.Millisecond)
	with, err := signer.Open(ctx, signer.Config{Key: key, AgentSocket: a.Getenv("SSH_AUTH_SOCK"), Passphrase: a.passphrase})
	if err != nil {
		return api.SignedRequest{}, err
	}
	defer with.Close()
	text, err := s.Encode()
	if err != nil {
		return api.SignedRequest{}, err
	}
	if with.Key().SecurityKey() {
		fmt.Fprintln(a.Stderr, "touch your security key")
	}
	sig, err := with.Sign(ctx, s.Meaning.Namespace(), text)
	if err != nil {
		return api.SignedRequest{}, fmt.Errorf("signing the %s: %w", s.Meaning, err)
	}
	return api.SignedRequest{Statement: string(text), Signature: sig.String(), Note: s.Reason}, nil
}

// passphrase asks for the passphrase of a private key on the terminal.
func (a *app) passphrase(file string) ([]byte, error) {
	f, ok := a.Stdin.(interface{ Fd() uintptr })
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, fault.WithHint(fault.Errorf(fault.Invalid, "%s has a passphrase, and there is no terminal to ask for it", file), "ssh-add %s", file)
	}
	fmt.Fprintf(a.Stderr, "passphrase of %s: ", file)
	defer fmt.Fprintln(a.Stderr)
	return term.ReadPassword(int(f.Fd()))
}

func capitalised(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func (a *app) changeWithdrawCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "withdraw CHANGE",
		Short: "Take a change back",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, ch, err := a.fetchChange(c.Context(), args[0])
			if err != nil {
				return err
			}
			if ch, err = cl.Withdraw(c.Context(), ch.Number, api.WithdrawRequest{Reason: reason}); err != nil {
				return err
			}
			return a.signedChange(ch)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why; recorded in the ledger")
	return c
}

func (a *app) changeApplyCommand() *cobra.Command {
	var detach, override bool
	c := &cobra.Command{
		Use:   "apply CHANGE",
		Short: "Carry out a change that is approved",
		Long: `The head moves exactly as the change says, and the rollout is followed to its end. Unless a rule says
otherwise this is for somebody who neither proposed nor approved the change.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, ch, err := a.fetchChange(c.Context(), args[0])
			if err != nil {
				return err
			}
			acc, err := cl.CarryOut(c.Context(), ch.Number, api.CarryOutRequest{OverrideFreeze: override})
			if err != nil {
				return err
			}
			return a.accepted(c.Context(), cl, acc, detach)
		},
	}
	c.Flags().BoolVar(&detach, "detach", false, "do not wait for the rollout")
	c.Flags().BoolVar(&override, "override-freeze", false, "in spite of a freeze (permission freeze.override)")
	return c
}

func (a *app) changeReviewCommand() *cobra.Command {
	var key, note string
	var objected bool
	c := &cobra.Command{
		Use:   "review ENV@GENERATION",
		Short: "Review what was done in an emergency, by a signature",
		Long: `A head that was moved with --break-glass is to be looked at by somebody else, within the time that the
platform's definition gives. While a review is late, nothing else moves there.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			ref, err := api.ParseRef(args[0])
			if err != nil || ref.Env == "" || ref.Generation == 0 {
				return fault.WithHint(fault.Errorf(fault.Invalid, "%q names no generation", args[0]), "write ENV@GENERATION")
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			s, err := a.reviewStatement(ctx, cl, ref)
			if err != nil {
				return err
			}
			if s.Verdict, s.Reason = "accepted", note; objected {
				s.Verdict = "objected"
			}
			signed, err := a.sign(ctx, cl, key, s)
			if err != nil {
				return err
			}
			return cl.Review(ctx, ref.Env, api.ReviewRequest{Generation: ref.Generation, Verdict: s.Verdict, SignedRequest: signed})
		},
	}
	c.Flags().StringVar(&key, "key", "", "what to sign with, as in change approve")
	c.Flags().StringVar(&note, "reason", "", "what was found; part of what is signed")
	c.Flags().BoolVar(&objected, "object", false, "it should not have been done")
	return c
}

// reviewStatement is what a review of a generation is about.
func (a *app) reviewStatement(ctx context.Context, cl *client.Client, ref api.Ref) (change.Statement, error) {
	history, err := cl.History(ctx, ref.Env)
	if err != nil {
		return change.Statement{}, err
	}
	for _, g := range history {
		if g.Number != ref.Generation {
			continue
		}
		cp, err := cl.Checkpoint(ctx)
		if err != nil {
			return change.Statement{}, err
		}
		return change.Statement{V: 1, Log: cp.Origin, Meaning: change.Review, Env: spec.EnvName(ref.Env), Generation: g.Number, Request: g.Change,
			Release: g.Release, Plan: g.Plan}, nil
	}
	return change.Statement{}, fault.WithHint(fault.Errorf(fault.NotFound, "environment %s has no generation %d", ref.Env, ref.Generation), "invar history %s", ref.Env)
}

func (a *app) confirmCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "confirm ENV",
		Short: "Let a head stay that was applied with --confirm-within",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			return cl.Confirm(c.Context(), args[0], api.ConfirmRequest{Reason: reason})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why; recorded in the ledger")
	return c
}

func (a *app) releaseCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "release",
		Short: "Block releases",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	var reason string
	revoke := &cobra.Command{
		Use:   "revoke RELEASE",
		Short: "Block a release for good, and propose to leave it where it runs",
		Long: `RELEASE is ENV (its head), ENV@GENERATION, or a digest. No head can move to it any more. Where it is the
head it goes on running, flagged in status; a change is proposed that goes back to the newest release
that completed there and is not revoked.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ref, err := api.ParseRef(args[0])
			if err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			out, err := cl.Revoke(c.Context(), ref, api.RevokeRequest{Reason: reason})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(out)
			}
			fmt.Fprintf(a.Stderr, "release %s is revoked\n", out.Release.Short())
			for _, h := range out.Heads {
				fmt.Fprintf(a.Stderr, "it still is the head of %s, generation %d\n", h.Env, h.Generation)
			}
			for _, n := range out.Changes {
				fmt.Fprintf(a.Stderr, "proposed to leave it: invar change show %d\n", n)
			}
			return nil
		},
	}
	revoke.Flags().StringVar(&reason, "reason", "", "why; recorded in the ledger")
	c.AddCommand(revoke)
	return c
}

// how adds the flags of a move that goes beyond the usual way, and returns what they say.
func howFlags(c *cobra.Command, confirmable bool) func() (api.How, error) {
	var confirm string
	var how api.How
	if confirmable {
		c.Flags().StringVar(&confirm, "confirm-within", "", "revert it unless \"invar confirm ENV\" comes within this `DURATION` of its being made")
	}
	c.Flags().BoolVar(&how.Emergency, "break-glass", false, "at once, without approvals, to be reviewed afterwards (permission breakglass)")
	c.Flags().BoolVar(&how.OverrideFreeze, "override-freeze", false, "in spite of a freeze (permission freeze.override)")
	return func() (api.How, error) {
		if confirm != "" {
			d, err := spec.ParseDuration(confirm)
			if err != nil || d <= 0 {
				return how, fault.Errorf(fault.Invalid, "--confirm-within %q is no duration", confirm)
			}
			how.ConfirmWithinMS = d.Milliseconds()
		}
		return how, nil
	}
}
