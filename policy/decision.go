package policy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/spec"
)

// TypeDecision is the media type of a decision's canonical JSON.
const TypeDecision = "application/vnd.invar.policy-decision.v1+json"

// MaxDecisionBytes is the largest decision.
const MaxDecisionBytes = 16 << 20

// Decision is what a bundle said of an input, whole: with what is needed to come to it again. It is written as canonical
// JSON (RFC 8785) and has exactly one spelling.
type Decision struct {
	V          int           `json:"v"` // 1
	Allowed    bool          `json:"allowed"`
	BundleName string        `json:"bundle_name"`
	Bundle     digest.Digest `json:"bundle"` // of the archive
	Data       digest.Digest `json:"data"`   // of the canonical JSON of the bundle's data
	Input      digest.Digest `json:"input"`  // of the canonical JSON of the input
	Engine     string        `json:"engine"` // "opa v1.22.2"
	Query      string        `json:"query"`
	Output     digest.Digest `json:"output,omitempty"`     // of the canonical JSON of what the query gave; absent with a failure to evaluate
	Results    []Result      `json:"results"`              // sorted: what refuses first
	Exceptions []Exception   `json:"exceptions,omitempty"` // those that match a result, expired ones too, sorted by id
	Failure    *Failure      `json:"failure,omitempty"`    // why there was no whole answer; it refuses
	At         time.Time     `json:"at"`                   // the input's now
}

// Kind says what a result means.
type Kind string

// The kinds. A deny and a violation refuse alike.
const (
	Deny      Kind = "deny"
	Violation Kind = "violation"
	Warn      Kind = "warn"
)

// Result is one message of a rule.
type Result struct {
	Rule     string          `json:"rule"` // "invar.images.deny", and "/" with the message's id when it has one
	Kind     Kind            `json:"kind"`
	Message  string          `json:"message"`
	Subject  string          `json:"subject,omitempty"` // what it is about, as the rule names it: "component web"
	Controls []string        `json:"controls,omitempty"`
	Details  json.RawMessage `json:"details,omitempty"`  // whatever else the rule said: an object
	Exempted string          `json:"exempted,omitempty"` // id of the exception by which it does not refuse
	Expired  []string        `json:"expired,omitempty"`  // ids of exceptions that would have, had they not expired
}

// Refuses reports whether the result alone refuses the change.
func (r Result) Refuses() bool { return r.Kind != Warn && r.Exempted == "" }

// Failure says why a policy gave no whole answer.
type Failure struct {
	Kind  FailureKind `json:"kind"`
	Cause string      `json:"cause"`
}

// FailureKind is a kind of failure.
type FailureKind string

// The kinds of failure.
const (
	FailedTime   FailureKind = "timeout" // it depends on the machine, and is not replayed
	FailedEval   FailureKind = "error"   // the rules ended with an error
	FailedResult FailureKind = "result"  // a rule said something that is no message
	FailedLimit  FailureKind = "limit"   // the rules said too much; Results are the first of it
)

// Exception lets a change pass although a rule refuses it: known, with a reason, and for a time.
type Exception struct {
	ID           string    `json:"id"`
	Rule         string    `json:"rule"`              // exactly as in Result.Rule
	Subject      string    `json:"subject,omitempty"` // exactly as in Result.Subject; "" is any
	Environments []string  `json:"environments"`      // patterns, as in grants: "prod-*"
	Ticket       string    `json:"ticket"`
	Reason       string    `json:"reason"`
	Expires      time.Time `json:"expires"` // from then on it does not count
	GrantedBy    string    `json:"granted_by"`
}

// Check says what is wrong with an exception by itself. Its errors are of kind fault.Invalid.
func (e Exception) Check() error {
	for _, f := range []struct{ name, value string }{{"an id", e.ID}, {"a rule", e.Rule}, {"a ticket", e.Ticket}, {"a reason", e.Reason}, {"who granted it", e.GrantedBy}} {
		if strings.TrimSpace(f.value) == "" {
			return fault.Errorf(fault.Invalid, "exception %q is without %s", e.ID, f.name)
		}
	}
	if len(e.Environments) == 0 {
		return fault.Errorf(fault.Invalid, "exception %q names no environment", e.ID)
	}
	for _, p := range e.Environments {
		if p == "" || strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789-*") != "" {
			return fault.Errorf(fault.Invalid, "exception %q: environment %q is not a pattern", e.ID, p)
		}
	}
	if err := checkTime(e.Expires); err != nil {
		return fmt.Errorf("exception %q: %w", e.ID, err)
	}
	return nil
}

// Matches reports whether the exception is about a result in an environment, whether it has expired or not.
func (e Exception) Matches(r Result, env spec.EnvName) bool {
	if r.Kind == Warn || e.Rule != r.Rule || e.Subject != "" && e.Subject != r.Subject {
		return false
	}
	return slices.ContainsFunc(e.Environments, func(p string) bool { return identity.Glob(p, string(env)) })
}

// Expired reports whether the exception does not count any more.
func (e Exception) Expired(now time.Time) bool { return !now.Before(e.Expires) }

// Refusals are the results that refuse.
func (d Decision) Refusals() []Result {
	return slices.DeleteFunc(slices.Clone(d.Results), func(r Result) bool { return !r.Refuses() })
}

// Digest is the decision's identity.
func (d Decision) Digest() (digest.Digest, error) { return digest.OfValue(d) }

// Encode returns the canonical JSON of a decision, after checking it.
func Encode(d Decision) ([]byte, error) {
	if err := d.Check(); err != nil {
		return nil, fmt.Errorf("encoding a decision: %w", err)
	}
	b, err := digest.Canonical(d)
	if err != nil {
		return nil, fault.As(fault.Invalid, fmt.Errorf("encoding a decision: %w", err))
	}
	if len(b) > MaxDecisionBytes {
		return nil, fault.Errorf(fault.Invalid, "encoding a decision: %d bytes, %d are allowed", len(b), MaxDecisionBytes)
	}
	return b, nil
}

// Decode reads what Encode wrote, and nothing else. Its errors are of kind fault.Invalid.
func Decode(b []byte) (Decision, error) {
	var d Decision
	if err := digest.DecodeExact(b, &d, MaxDecisionBytes, func() ([]byte, error) { return Encode(d) }); err != nil {
		return Decision{}, fault.As(fault.Invalid, fmt.Errorf("reading a decision: %w", err))
	}
	return d, nil
}

// Check says where the decision contradicts itself: one that allows although a result refuses, say. Its errors are of kind
// fault.Invalid.
func (d Decision) Check() error {
	if d.V != 1 {
		return fault.Errorf(fault.Invalid, "version %d is not known", d.V)
	}
	for _, one := range []digest.Digest{d.Bundle, d.Data, d.Input} {
		if _, err := digest.Parse(string(one)); err != nil {
			return err
		}
	}
	if d.Engine == "" || d.Query == "" || d.Results == nil {
		return fault.Errorf(fault.Invalid, "engine, query or results are missing")
	}
	if err := cmp.Or(checkTime(d.At), d.checkFailure(), d.checkExceptions(), d.checkResults()); err != nil {
		return err
	}
	if want := d.Failure == nil && len(d.Refusals()) == 0; d.Allowed != want {
		return fault.Errorf(fault.Invalid, "it says allowed: %t, and its results say %t", d.Allowed, want)
	}
	return nil
}

func (d Decision) checkFailure() error {
	if d.Failure == nil {
		_, err := digest.Parse(string(d.Output))
		return err
	}
	switch d.Failure.Kind {
	case FailedTime, FailedEval, FailedResult:
		if len(d.Results) > 0 || d.Output != "" {
			return fault.Errorf(fault.Invalid, "results of a policy that failed")
		}
	case FailedLimit:
		_, err := digest.Parse(string(d.Output))
		return err
	default:
		return fault.Errorf(fault.Invalid, "failure %q is not known", d.Failure.Kind)
	}
	return nil
}

func (d Decision) checkExceptions() error {
	for i, e := range d.Exceptions {
		if err := e.Check(); err != nil {
			return err
		}
		if i > 0 && d.Exceptions[i-1].ID >= e.ID {
			return fault.Errorf(fault.Invalid, "exceptions are not sorted, or %q is twice", e.ID)
		}
		named := func(r Result) bool { return r.Exempted == e.ID || slices.Contains(r.Expired, e.ID) }
		if !slices.ContainsFunc(d.Results, named) {
			return fault.Errorf(fault.Invalid, "exception %q matches no result", e.ID)
		}
	}
	return nil
}

func (d Decision) checkResults() error {
	byID := map[string]Exception{}
	for _, e := range d.Exceptions {
		byID[e.ID] = e
	}
	for i, r := range d.Results {
		if i > 0 && compareResults(d.Results[i-1], r) > 0 {
			return fault.Errorf(fault.Invalid, "results are not sorted")
		}
		if r.Kind != Deny && r.Kind != Violation && r.Kind != Warn {
			return fault.Errorf(fault.Invalid, "a result of kind %q is not known", r.Kind)
		}
		if len(r.Details) > 0 && !bytes.HasPrefix(r.Details, []byte("{")) {
			return fault.Errorf(fault.Invalid, "details are not an object")
		}
		if e, ok := byID[r.Exempted]; r.Exempted != "" && (!ok || e.Expired(d.At) || e.Rule != r.Rule || r.Kind == Warn) {
			return fault.Errorf(fault.Invalid, "rule %s is exempted by %q, which is not so", r.Rule, r.Exempted)
		}
		for _, id := range r.Expired {
			if e, ok := byID[id]; !ok || !e.Expired(d.At) || e.Rule != r.Rule {
				return fault.Errorf(fault.Invalid, "rule %s had the expired exception %q, which is not so", r.Rule, id)
			}
		}
	}
	return nil
}

// compareResults orders results: what refuses first, then by rule and what it is about.
func compareResults(a, b Result) int {
	weight := map[Kind]int{Deny: 0, Violation: 1, Warn: 2}
	return cmp.Or(weight[a.Kind]-weight[b.Kind], strings.Compare(a.Rule, b.Rule), strings.Compare(a.Subject, b.Subject),
		strings.Compare(a.Message, b.Message), bytes.Compare(a.Details, b.Details), slices.Compare(a.Controls, b.Controls))
}

// Command is what an auditor runs to come to the decision's output with stock opa of the same version, given the files of
// bundle and input. What it prints is, as canonical JSON, what Output is the digest of.
func (d Decision) Command(bundleFile, inputFile string) []string {
	return []string{"opa", "eval", "--strict-builtin-errors", "--format", "raw", "--bundle", bundleFile, "--input", inputFile, d.Query}
}
