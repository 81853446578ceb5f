package policy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// Decide asks every rule of the bundle about the input, at the input's own time. A policy that fails gives a decision that
// refuses; an error means that there is no decision: the input or an exception is not valid (fault.Invalid), or ctx ended.
func (b *Bundle) Decide(ctx context.Context, in Input, exceptions []Exception) (Decision, error) {
	encoded, err := EncodeInput(in)
	if err != nil {
		return Decision{}, err
	}
	d, err := b.decide(ctx, encoded, in, exceptions)
	if err != nil {
		return Decision{}, fmt.Errorf("asking policy %s: %w", b.Name, err)
	}
	return d, nil
}

// decide is Decide for an input whose encoding is known.
func (b *Bundle) decide(ctx context.Context, encoded []byte, in Input, exceptions []Exception) (Decision, error) {
	exceptions, err := sortedExceptions(exceptions)
	if err != nil {
		return Decision{}, err
	}
	d := Decision{V: 1, BundleName: b.Name, Bundle: b.digest, Data: b.data, Input: digest.Of(encoded),
		Engine: Engine, Query: b.query, Results: []Result{}, At: in.Now}
	output, failure, err := b.evaluate(ctx, encoded)
	if err != nil {
		return Decision{}, err
	}
	if failure == nil {
		d.Output, d.Results, failure = b.read(output)
	}
	d.Failure = failure
	d.exempt(exceptions, in.Environment.Name)
	d.Allowed = failure == nil && len(d.Refusals()) == 0
	return d, nil
}

func sortedExceptions(in []Exception) ([]Exception, error) {
	out := slices.SortedFunc(slices.Values(in), func(a, b Exception) int { return strings.Compare(a.ID, b.ID) })
	for i, e := range out {
		if err := e.Check(); err != nil {
			return nil, err
		}
		if i > 0 && out[i-1].ID == e.ID {
			return nil, fault.Errorf(fault.Invalid, "exception %q is given twice", e.ID)
		}
	}
	return out, nil
}

// exempt marks the results that an exception is about, and keeps the exceptions that are about a result.
func (d *Decision) exempt(exceptions []Exception, env spec.EnvName) {
	for _, e := range exceptions {
		used := false
		for i := range d.Results {
			r := &d.Results[i]
			switch {
			case !e.Matches(*r, env):
			case e.Expired(d.At):
				r.Expired, used = append(r.Expired, e.ID), true
			case r.Exempted == "":
				r.Exempted, used = e.ID, true
			}
		}
		if used {
			d.Exceptions = append(d.Exceptions, e)
		}
	}
}

// evaluate runs the query on the input's bytes and returns the canonical JSON of what it gave.
func (b *Bundle) evaluate(ctx context.Context, encoded []byte) ([]byte, *Failure, error) {
	input, err := ast.ValueFromReader(strings.NewReader(string(encoded)))
	if err != nil {
		return nil, nil, fault.As(fault.Invalid, err)
	}
	limited, cancel := context.WithTimeout(ctx, b.limits.Time)
	defer cancel()
	got, err := b.ready.Eval(limited, rego.EvalParsedInput(input))
	switch {
	case ctx.Err() != nil:
		return nil, nil, context.Cause(ctx)
	case limited.Err() != nil:
		return nil, &Failure{FailedTime, fmt.Sprintf("the rules took more than %s", b.limits.Time)}, nil
	case err != nil:
		return nil, &Failure{FailedEval, short(causeOf(err))}, nil
	case len(got) != 1 || len(got[0].Expressions) != 1:
		return nil, &Failure{FailedEval, fmt.Sprintf("the query has %d values instead of one", len(got))}, nil
	}
	output, err := digest.Canonical(got[0].Expressions[0].Value)
	if err != nil {
		return nil, &Failure{FailedResult, err.Error()}, nil
	}
	return output, nil, nil
}

// causeOf is an error of the rules, file and line first.
func causeOf(err error) string {
	e, ok := errors.AsType[*topdown.Error](err)
	if !ok || e.Location == nil {
		return err.Error()
	}
	return fmt.Sprintf("%s:%d: %s", e.Location.File, e.Location.Row, e.Message)
}

// read makes results of the query's output.
func (b *Bundle) read(output []byte) (digest.Digest, []Result, *Failure) {
	if len(output) > b.limits.Bytes {
		return digest.Of(output), []Result{}, &Failure{FailedLimit, fmt.Sprintf("the rules said %d bytes, %d are allowed", len(output), b.limits.Bytes)}
	}
	var said map[string][]json.RawMessage
	if err := json.Unmarshal(output, &said); err != nil {
		return "", []Result{}, &Failure{FailedResult, "a rule is not a set: " + err.Error()}
	}
	results := []Result{}
	for _, name := range slices.Sorted(maps.Keys(said)) {
		for _, one := range said[name] {
			r, err := b.result(name, one)
			if err != nil {
				return "", []Result{}, &Failure{FailedResult, fmt.Sprintf("rule %s: %v", name, err)}
			}
			results = append(results, r)
		}
	}
	slices.SortFunc(results, compareResults)
	if n := len(results); n > b.limits.Results {
		return digest.Of(output), results[:b.limits.Results], &Failure{FailedLimit, fmt.Sprintf("the rules have %d results, %d are allowed", n, b.limits.Results)}
	}
	return digest.Of(output), results, nil
}

// message is an element of a rule's set.
type message struct {
	Msg      *string   `json:"msg"`
	ID       *string   `json:"id"`
	Subject  *string   `json:"subject"`
	Controls *[]string `json:"controls"`
}

// result makes a result of one element of a rule's set: a string, or an object with msg.
func (b *Bundle) result(name string, element json.RawMessage) (Result, error) {
	rule := b.rules[name]
	r := Result{Rule: name, Kind: rule.kind}
	if json.Unmarshal(element, &r.Message) == nil && element[0] == '"' {
		r.Controls = rule.controlsOf("")
		return r, nil
	}
	var m message
	if err := json.Unmarshal(element, &m); err != nil || m.Msg == nil {
		return Result{}, fmt.Errorf("%s is neither a string nor an object with the strings msg, id and subject, and a list of controls", short(element))
	}
	r.Message, r.Subject = *m.Msg, deref(m.Subject)
	if m.ID != nil && *m.ID != "" {
		r.Rule += "/" + *m.ID
	}
	if r.Controls = rule.controlsOf(deref(m.ID)); m.Controls != nil {
		r.Controls = sortedSet(*m.Controls)
	}
	var err error
	r.Details, err = detailsOf(element)
	return r, err
}

// controlsOf are the controls of a message: of the rules annotated with its id, else of all with this name.
func (r rule) controlsOf(id string) []string {
	if c, ok := r.controls[id]; ok && id != "" {
		return slices.Clone(c)
	}
	var all []string
	for _, c := range r.controls {
		all = append(all, c...)
	}
	return sortedSet(all)
}

// detailsOf is what a message has beside the fields that have a place of their own; nil when there is nothing.
func detailsOf(element json.RawMessage) (json.RawMessage, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(element, &all); err != nil {
		return nil, err
	}
	for _, known := range []string{"msg", "id", "subject", "controls"} {
		delete(all, known)
	}
	if len(all) == 0 {
		return nil, nil
	}
	return digest.Canonical(all)
}

func deref(s *string) string { return *cmp.Or(s, new("")) }

// short cuts what a rule said to what fits into a message.
func short[T ~[]byte | string](s T) string {
	const most = 500
	if len(s) <= most {
		return string(s)
	}
	return strings.ToValidUTF8(string(s[:most]), "") + "…"
}

// Replay comes to a decision again from its bundle and input, and says where it is not the same: fault.Corrupt. It needs
// nothing else, no server and no network. Where a policy ran out of time, only what the decision is bound to is checked,
// since another machine may be quicker: the decision refuses in any case. A decision of another version of the engine is
// not replayed (fault.Unavailable): its Command is for that version.
func Replay(ctx context.Context, d Decision, bundle, input []byte) error {
	if err := d.Check(); err != nil {
		return fault.As(fault.Corrupt, fmt.Errorf("replaying a decision: %w", err))
	}
	if digest.Of(bundle) != d.Bundle {
		return fault.Errorf(fault.Corrupt, "replaying a decision: the bundle is %s, it was made with %s", digest.Of(bundle), d.Bundle)
	}
	if digest.Of(input) != d.Input {
		return fault.Errorf(fault.Corrupt, "replaying a decision: the input is %s, it was made on %s", digest.Of(input), d.Input)
	}
	if d.Engine != Engine {
		return fault.WithHint(fault.Errorf(fault.Unavailable, "replaying a decision: it was made by %s, this is %s", d.Engine, Engine),
			"run with %s: %s", d.Engine, strings.Join(d.Command("bundle.tar.gz", "input.json"), " "))
	}
	b, err := Open(d.BundleName, bundle)
	if err != nil {
		return fmt.Errorf("replaying a decision: %w", err)
	}
	in, err := DecodeInput(input)
	if err != nil {
		return fmt.Errorf("replaying a decision: %w", err)
	}
	return b.replay(ctx, d, input, in)
}

func (b *Bundle) replay(ctx context.Context, d Decision, encoded []byte, in Input) error {
	if d.Failure != nil && d.Failure.Kind == FailedTime {
		if d.Data != b.data || d.Query != b.query || !d.At.Equal(in.Now) || len(d.Exceptions) > 0 {
			return fault.Errorf(fault.Corrupt, "replaying a decision: data, query or time are not those of its bundle and input")
		}
		return nil
	}
	const patience = 10 // a slow machine must not make a decision look false
	limits := b.limits
	limits.Time = patience * limits.Time
	again, err := b.Within(limits).decide(ctx, encoded, in, d.Exceptions)
	if err != nil {
		return fmt.Errorf("replaying a decision: %w", err)
	}
	if again.Failure != nil && again.Failure.Kind == FailedTime {
		return fault.Errorf(fault.Unavailable, "replaying a decision: the rules took more than %s", limits.Time.Round(time.Second))
	}
	return same(d, again)
}

// same says where two decisions differ.
func same(was, now Decision) error {
	a, err := digest.Canonical(was)
	if err != nil {
		return err
	}
	b, err := digest.Canonical(now)
	if err != nil {
		return err
	}
	if string(a) == string(b) {
		return nil
	}
	if was.Allowed != now.Allowed {
		return fault.Errorf(fault.Corrupt, "replaying a decision: it says allowed: %t, the policy says %t", was.Allowed, now.Allowed)
	}
	for i, r := range was.Results {
		if i >= len(now.Results) || compareResults(r, now.Results[i]) != 0 || r.Exempted != now.Results[i].Exempted {
			return fault.Errorf(fault.Corrupt, "replaying a decision: its result %d, %s (%s), is not what the policy says", i+1, r.Rule, r.Message)
		}
	}
	return fault.Errorf(fault.Corrupt, "replaying a decision: it is not what the policy says: %s", a)
}
