package control

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/state"
)

// Erasing asks to erase content that entries name.
type Erasing struct {
	Digest    digest.Digest
	Authority string
	Law       bool // the authority is a law: it goes before the platform's retention
	Reason    string
}

// maxErasureEntries bounds the entries that a request lists.
const maxErasureEntries = 100

// RequestErasure asks that content is erased. It fails with fault.NotFound when no entry names it; with fault.Denied when it is
// needed, or is to be kept.
func (s *Service) RequestErasure(ctx context.Context, by Actor, x Erasing) (state.ErasureNumber, error) {
	n, err := s.requestErasure(ctx, by, x)
	if err != nil {
		return 0, fmt.Errorf("asking to erase %s: %w", x.Digest.Short(), err)
	}
	return n, nil
}

func (s *Service) requestErasure(ctx context.Context, by Actor, x Erasing) (n state.ErasureNumber, err error) {
	if err := x.check(by); err != nil {
		return 0, err
	}
	if cause := needed(s.State(), x.Digest); cause != "" {
		return 0, fault.Errorf(fault.Denied, "it is needed: %s", cause)
	}
	if err := s.partOfImage(ctx, x.Digest); err != nil {
		return 0, err
	}
	named, err := s.naming(ctx, x.Digest)
	if err != nil {
		return 0, err
	}
	if len(named) == 0 {
		return 0, fault.WithHint(fault.Errorf(fault.NotFound, "no entry of the ledger names it as content"), "invar ledger log -o json has the digests of bodies")
	}
	_, err = s.append(ctx, func(now state.State) ([]state.Entry, error) {
		e := s.entry(by, "", nil)
		rules, _ := definition(now)
		if err := now.Erased(x.Digest); err != nil {
			return nil, fault.As(fault.Conflict, err)
		}
		if err := mayErase(now, rules, x, named, e.Time); err != nil {
			return nil, err
		}
		n = now.Log().LastErasure + 1
		d := state.ErasureRequest{Erasure: n, Digest: x.Digest, Authority: x.Authority, Law: x.Law, Entries: []int64{}}
		for _, at := range named[:min(len(named), maxErasureEntries)] {
			d.Entries = append(d.Entries, at.Index)
		}
		e.Data, e.Reason, e.Subject = d, x.Reason, erasureSubject(x.Digest)
		return []state.Entry{e}, nil
	})
	return n, err
}

func (x Erasing) check(by Actor) error {
	if _, err := digest.Parse(string(x.Digest)); err != nil {
		return fault.As(fault.Invalid, err)
	}
	switch {
	case by.Principal == "":
		return fault.Errorf(fault.Denied, "%s is no principal of the platform's definition", by)
	case strings.TrimSpace(x.Authority) == "":
		return fault.WithHint(fault.Errorf(fault.Invalid, "an erasure needs an authority"), `name a law or a ticket: --authority "GDPR Art. 17, case 12"`)
	case strings.TrimSpace(x.Reason) == "":
		return fault.WithHint(fault.Errorf(fault.Invalid, "an erasure needs a reason"), "say why with --reason")
	}
	return nil
}

// naming returns the entries that name the content, in order. It reads the whole ledger, since no state has what is said once.
func (s *Service) naming(ctx context.Context, d digest.Digest) ([]Indexed, error) {
	var out []Indexed
	i, end := int64(0), s.State().Size()
	for raw, err := range s.log.Entries(ctx, 0, end) {
		if err != nil {
			return nil, err
		}
		if bytes.Contains(raw, []byte(`"`+string(d)+`"`)) {
			e, err := state.Decode(raw)
			if err != nil {
				return nil, fmt.Errorf("entry %d: %w", i, err)
			}
			if contentOf(e, d) {
				out = append(out, Indexed{Index: i, Entry: e})
			}
		}
		i++
	}
	return out, nil
}

// contentOf reports whether an entry names the digest as that of content which is its own: its body, or what a decision was made on.
func contentOf(e state.Entry, d digest.Digest) bool {
	if e.Body != nil && e.Body.Digest == d {
		return true
	}
	p, ok := e.Data.(state.PolicyDecision)
	return ok && slices.Contains([]digest.Digest{p.Input, p.Plan, p.Bundle}, d)
}

// mayErase refuses what is needed, and what the rules have kept.
func mayErase(now state.State, rules platform.Definition, x Erasing, named []Indexed, at time.Time) error {
	if cause := needed(now, x.Digest); cause != "" {
		return fault.Errorf(fault.Denied, "it is needed: %s", cause)
	}
	for _, n := range named {
		if p, ok := n.Entry.Data.(state.PolicyDecision); ok && p.Bundle == x.Digest {
			return fault.Errorf(fault.Denied, "it is needed: it is the bundle of policy %s, which decisions are replayed with", p.Policy)
		}
	}
	if x.Law {
		return nil
	}
	for _, n := range named {
		until, rule := rules.KeepUntil(string(n.Entry.Kind()), n.Entry.Time)
		if at.Before(until) {
			return fault.WithHint(fault.Errorf(fault.Denied, "entry %d, %s, names it, and retention %s has that kept until %s", n.Index, n.Entry.Kind(), rule, until.Format(time.RFC3339)),
				"where a law asks for it: --law, with the law as --authority")
		}
	}
	return nil
}

// needed says what needs the content, or "". It is pure.
func needed(now state.State, d digest.Digest) string {
	if b, err := now.Bundle(d); err == nil {
		return fmt.Sprintf("it is a bundle of app %s, which releases are evaluated from", b.App)
	}
	if r, err := now.Release(d); err == nil {
		return fmt.Sprintf("it is a release of environment %s, which the ledger is folded with", r.Env)
	}
	for b := range now.Bundles() {
		if b.Source == d {
			return "it is the source of bundle " + b.Digest.Short()
		}
	}
	for v := range now.AllSecrets() {
		if v.Version == d {
			return fmt.Sprintf("it is a version of secret %s/%s", v.Env, v.Name)
		}
	}
	for env := range now.Environments() {
		if g, err := now.Generation(env.Name, env.Head.Number); err == nil && g.Plan == d {
			return fmt.Sprintf("it is the plan of environment %s's head", env.Name)
		}
	}
	for c := range now.Changes() {
		if c.Status == state.ChangeOpen && slices.Contains(changeReferences(c), d) {
			return fmt.Sprintf("change %d, which is open, names it", c.Change)
		}
	}
	return ""
}

// partOfImage refuses what a bundle's images consist of, and what is attached to them.
func (s *Service) partOfImage(ctx context.Context, d digest.Digest) error {
	for known := range s.State().Bundles() {
		b, err := s.Bundle(ctx, known.Digest)
		if err != nil {
			return err
		}
		refs, err := s.bundleReferences(known, b)
		if err != nil {
			return err
		}
		if slices.Contains(refs, d) {
			return fault.Errorf(fault.Denied, "it is needed: it is part of bundle %s of app %s, its sources or its images", known.Digest.Short(), known.App)
		}
	}
	return nil
}

// ErasureStatement returns what the principal would have to sign to agree to the erasure, without the time of signing.
func (s *Service) ErasureStatement(r state.KnownErasure, by platform.PrincipalName, note string) change.Statement {
	return change.Statement{V: 1, Log: s.config.Origin, Meaning: change.Erasure, Request: string(r.ID), Subject: r.Digest, Reason: note, Signer: by}
}

// ApproveErasure records a signed agreement, and with the last that it needs the erasure itself. Whoever deletes reads that from State.
// It fails with fault.Denied when the signature does not hold, or would count for nothing; with fault.Conflict when the request is not open.
func (s *Service) ApproveErasure(ctx context.Context, by Actor, n state.ErasureNumber, got Signed, note string) error {
	r, err := s.State().Erasure(n)
	var named []Indexed
	if err == nil {
		named, err = s.naming(ctx, r.Digest)
	}
	if err == nil {
		err = s.partOfImage(ctx, r.Digest)
	}
	if err == nil {
		_, err = s.append(ctx, func(now state.State) ([]state.Entry, error) { return s.approveErasure(now, by, n, got, note, named) })
	}
	if err != nil {
		return fmt.Errorf("agreeing to erasure %d: %w", n, err)
	}
	return nil
}

func (s *Service) approveErasure(now state.State, by Actor, n state.ErasureNumber, got Signed, note string, named []Indexed) ([]state.Entry, error) {
	r, err := now.Erasure(n)
	if err != nil {
		return nil, err
	}
	if r.Status != state.ErasureOpen {
		return nil, fault.Errorf(fault.Conflict, "it is %s already", r.Status)
	}
	e := s.entry(by, "", state.ErasureApprove{Erasure: n, Statement: string(got.Statement)})
	rules, _ := definition(now)
	if err := mayAgree(rules, r, by.Principal, e.Time); err != nil {
		return nil, err
	}
	if err := mayErase(now, rules, Erasing{Digest: r.Digest, Law: r.Law}, named, e.Time); err != nil {
		return nil, err
	}
	sig, err := s.signature(now, s.ErasureStatement(r, by.Principal, note), got, r.At, e.Time)
	if err != nil {
		return nil, err
	}
	e.Reason, e.Sigs, e.Subject = note, []state.Signature{sig}, erasureSubject(r.Digest)
	out := []state.Entry{e}
	approvals := []int64{}
	for _, a := range r.Approvals {
		// Whoever lost the permission since, or is disabled now, agreed to nothing that is done now.
		if err := mayAgree(rules, state.KnownErasure{ErasureRequest: r.ErasureRequest, By: r.By}, a.By.Principal, e.Time); err != nil {
			return nil, fault.WithHint(fault.Errorf(fault.Denied, "an earlier approval does not count any more: %w", err), "ask for it anew: invar erase request")
		}
		approvals = append(approvals, a.Entry)
	}
	if approvals = append(approvals, now.Size()); len(approvals) >= state.ErasureApprovals {
		gone := s.entry(operator, "", state.Erasure{Erasure: n, Digest: r.Digest, Request: r.ID, Approvals: approvals})
		gone.Time, gone.Subject, gone.Reason = e.Time, e.Subject, r.Authority
		out = append(out, gone)
	}
	return out, nil
}

// mayAgree refuses an approval that would count for nothing.
func mayAgree(rules platform.Definition, r state.KnownErasure, who platform.PrincipalName, at time.Time) error {
	p, ok := rules.Principal(who)
	switch {
	case !ok || p.Disabled:
		return fault.Errorf(fault.Denied, "the platform's definition has no principal %q", who)
	case p.Machine:
		return fault.Errorf(fault.Denied, "%s is a machine, which agrees to nothing", who)
	case !rules.Allows(who, platform.Erase, "", at):
		return fault.Errorf(fault.Denied, "%s lacks the permission %s", who, platform.Erase)
	case who == r.By.Principal:
		return fault.WithHint(fault.Errorf(fault.Denied, "%s asked for it: two others have to agree", who), "invar erase show %d", r.Erasure)
	case slices.Contains(r.Approvers(), who):
		return fault.Errorf(fault.Conflict, "%s has agreed already", who)
	}
	return nil
}

func erasureSubject(d digest.Digest) []state.Subject {
	return []state.Subject{{Name: "content", Digest: d}}
}

// Erased fails with fault.NotFound, and says by which entry, when the content was erased.
func (s *Service) Erased(d digest.Digest) error {
	if s.live == nil { // while the ledger is being folded: nothing that it needs can be erased
		return nil
	}
	return s.State().Erased(d)
}
