package evidence

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"strings"
	"time"

	"github.com/invarhq/invar/state"
)

//go:embed report.html.tmpl
var reportFile string

var reportTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"time":     func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"at":       func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
	"controls": func(controls []string) string { return shortly.Replace(strings.Join(controls, ", ")) },
	"who":      func(a state.Actor) string { return a.Who() },
}).Parse(reportFile))

// shortly shortens the names of frameworks where many stand in a row.
var shortly = strings.NewReplacer("NIST SP 800-53r5 ", "", "PCI DSS 4.0.1 ", "PCI ", "ISO/IEC 27001:2022 ", "ISO ", "DORA RTS 2024/1774 ", "DORA ", "21 CFR Part 11 ", "CFR ")

// reportView is what the report shows.
type reportView struct {
	Log, Tool, Env, Root string
	At, Began, Ended     time.Time
	From, Last, Size     int64
	Failures, Gaps       []Finding
	Notices              []Finding // the first of them
	More                 int       // notices that are not shown
	All                  int       // notices
	Checks               []Checked
	Moves                []Move
	Signed               []Signed
	Decisions            []Decided
	Population           Population
	Frameworks           []frameworkView
}

// frameworkView is a framework with its controls, and what was found about each.
type frameworkView struct {
	Name     string
	Controls []controlView
}

type controlView struct {
	Control
	Entries        int // of the scope
	Failures, Gaps int
}

// Meaning is a signature's meaning in words.
func (s Signed) Meaning() string {
	switch s.Statement.Meaning {
	case "approval":
		return "has seen the plan, and agrees that it is carried out"
	case "rejection":
		return "has seen the plan, and does not agree"
	case "review":
		return "has looked at what was done in an emergency: " + s.Statement.Verdict
	case "erasure":
		return "agrees that the content is erased for good"
	}
	return string(s.Statement.Meaning)
}

// maxNotices is how many notices papers show: a flood of refusals must not hide the rest. The report of Verify has all of them.
const maxNotices = 500

// report writes report.html: one file, no script, nothing from elsewhere.
func (d *dataset) report(m *made) ([]byte, error) {
	a := m.audit
	v := reportView{Log: d.log, Tool: d.tool, Env: string(d.scope.Env), Root: m.root.String(), At: d.at, Began: a.Began, Ended: a.Ended,
		From: d.scope.From, Last: d.scope.To - 1, Size: int64(len(d.leaves)), Checks: a.Checks, Moves: a.Moves, Signed: a.Signed, Decisions: a.Decisions, Population: m.pop}
	for _, f := range a.Findings {
		switch f.Severity {
		case Failure:
			v.Failures = append(v.Failures, f)
		case Gap:
			v.Gaps = append(v.Gaps, f)
		default:
			v.All++
			if len(v.Notices) < maxNotices {
				v.Notices = append(v.Notices, f)
			}
		}
	}
	v.More = v.All - len(v.Notices)
	v.Frameworks = frameworksOf(a)
	var b bytes.Buffer
	if err := reportTemplate.Execute(&b, v); err != nil {
		return nil, fmt.Errorf("filling in the template: %w", err)
	}
	return b.Bytes(), nil
}

func frameworksOf(a *Audit) []frameworkView {
	var out []frameworkView
	for _, c := range mapping().Controls {
		if len(out) == 0 || out[len(out)-1].Name != c.Framework {
			out = append(out, frameworkView{Name: c.Framework})
		}
		v := controlView{Control: c}
		for _, k := range c.Kinds {
			v.Entries += a.Kinds[k]
		}
		for _, f := range a.Findings {
			for _, name := range f.Controls {
				if name != c.Name() {
					continue
				}
				switch f.Severity {
				case Failure:
					v.Failures++
				case Gap:
					v.Gaps++
				}
			}
		}
		last := &out[len(out)-1]
		last.Controls = append(last.Controls, v)
	}
	return out
}
