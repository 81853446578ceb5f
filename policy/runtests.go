package policy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/invarhq/invar/fault"
)

// Outcome is how one test of a policy ended.
type Outcome struct {
	Name   string `json:"name"` // "invar.file_modes_test.test_plain_modes_are_allowed"
	File   string `json:"file"`
	Line   int    `json:"line"`
	Passed bool   `json:"passed"`
	// Skipped: its name begins with todo_.
	Skipped bool   `json:"skipped,omitempty"`
	Cause   string `json:"cause,omitempty"`  // why it did not pass, where that is an error
	Output  string `json:"output,omitempty"` // what it printed
}

// maxTestTime is the longest that one test may take.
const maxTestTime = 10 * time.Second

// Test runs the tests (rules named test_… of *_test.rego) of a policy's files, and returns how each ended, sorted. The
// files must also compile without them, as they do for a decision. An error means that they did not run.
func Test(ctx context.Context, files Files) ([]Outcome, error) {
	if _, err := Compile("under test", files); err != nil {
		return nil, err
	}
	src, err := parseFiles(files)
	if err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	if len(src.problems) > 0 {
		_, err := src.compile()
		return nil, fault.As(fault.Invalid, err)
	}
	store := inmem.NewFromObject(src.data)
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Abort(ctx, txn)
	runner := tester.NewRunner().SetCompiler(newCompiler(src.data).WithEnablePrintStatements(true)).SetStore(store).
		SetModules(src.modules).CapturePrintOutput(true).EnableTracing(true).RaiseBuiltinErrors(true).SetTimeout(maxTestTime)
	results, err := runner.RunTests(ctx, txn)
	if err != nil {
		return nil, fault.As(fault.Invalid, problemsOf(err).err())
	}
	out := []Outcome{}
	for r := range results {
		out = append(out, outcomeOf(r))
	}
	slices.SortFunc(out, func(a, b Outcome) int { return strings.Compare(a.Name, b.Name) })
	return out, context.Cause(ctx)
}

func outcomeOf(r *tester.Result) Outcome {
	o := Outcome{Name: strings.TrimPrefix(r.Package, "data.") + "." + r.Name, Passed: r.Pass(), Skipped: r.Skip, Output: string(r.Output)}
	if r.Location != nil {
		o.File, o.Line = r.Location.File, r.Location.Row
	}
	var failed []string
	for _, name := range slices.Sorted(maps.Keys(r.SubResults)) {
		if r.SubResults[name].Fail {
			failed = append(failed, name)
		}
	}
	switch {
	case r.Error != nil:
		o.Cause = r.Error.Error()
	case len(failed) > 0:
		o.Cause = "cases " + strings.Join(failed, ", ")
	case r.Fail:
		o.Cause = failedAt(r.Trace, o.File)
	}
	return o
}

// failedAt is the last line of the test's own file that was not true, "" when no line is to blame.
func failedAt(trace []*topdown.Event, file string) string {
	for _, e := range slices.Backward(trace) {
		if _, isExpr := e.Node.(*ast.Expr); isExpr && e.Op == topdown.FailOp && e.Location != nil && e.Location.File == file {
			return fmt.Sprintf("line %d: %s", e.Location.Row, short(e.Location.Text))
		}
	}
	return ""
}
