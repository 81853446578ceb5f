package parse

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// Severity tells an error, which stops, from a warning, which doesn't.
type Severity string

// The severities.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

// Diagnostic is one problem of a configuration. Summary is one of few constant texts, so that it can be
// searched; Detail is a full sentence about this case; Suggestion says what to write instead.
type Diagnostic struct {
	Severity   Severity   `json:"severity"`
	Summary    string     `json:"summary"`
	Detail     string     `json:"detail"`
	Suggestion string     `json:"suggestion,omitempty"`
	Range      spec.Range `json:"range"`
	Excerpt    string     `json:"excerpt,omitempty"` // the source line, and carets under the place
}

// String renders the diagnostic for people: place and summary, excerpt, cause, suggestion.
func (d Diagnostic) String() string {
	var b strings.Builder
	if d.Range.File != "" {
		b.WriteString(d.Range.File + ":")
		if d.Range.Line > 0 {
			fmt.Fprintf(&b, "%d:", d.Range.Line)
		}
		b.WriteByte(' ')
	}
	if d.Severity == Warning {
		b.WriteString("warning: ")
	}
	b.WriteString(d.Summary + "\n" + d.Excerpt)
	for _, text := range []string{d.Detail, d.Suggestion} {
		for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
			if line != "" {
				b.WriteString("  " + line + "\n")
			}
		}
	}
	return b.String()
}

// Diagnostics are all problems found in one run, in the order of their places.
type Diagnostics []Diagnostic

// String renders all of them, with an empty line between two.
func (ds Diagnostics) String() string {
	parts := make([]string, len(ds))
	for i, d := range ds {
		parts[i] = d.String()
	}
	return strings.Join(parts, "\n")
}

// HasErrors reports whether one of them is an error.
func (ds Diagnostics) HasErrors() bool {
	return slices.ContainsFunc(ds, func(d Diagnostic) bool { return d.Severity == Error })
}

// Error makes Diagnostics usable as an error; see Err.
func (ds Diagnostics) Error() string { return strings.TrimRight(ds.String(), "\n") }

// Err returns the diagnostics as an error of kind fault.Invalid, or nil when none of them is an error. The
// caller finds them again with errors.AsType[Diagnostics].
func (ds Diagnostics) Err() error {
	if !ds.HasErrors() {
		return nil
	}
	return fault.As(fault.Invalid, ds)
}

// sorted returns the diagnostics by place, each once: environments share most of their problems.
func (ds Diagnostics) sorted() Diagnostics {
	out := slices.Clone(ds)
	slices.SortStableFunc(out, func(a, b Diagnostic) int {
		return cmp.Or(strings.Compare(a.Range.File, b.Range.File), cmp.Compare(a.Range.Line, b.Range.Line),
			cmp.Compare(a.Range.Column, b.Range.Column), strings.Compare(a.Summary, b.Summary), strings.Compare(a.Detail, b.Detail))
	})
	return slices.CompactFunc(out, func(a, b Diagnostic) bool {
		return a.Range == b.Range && a.Summary == b.Summary && a.Detail == b.Detail
	})
}

// sources are the texts that ranges point into, by file name.
type sources map[string][]byte

// rangeOf converts a range of the HCL library, which counts columns in characters, to bytes.
func (s sources) rangeOf(r hcl.Range) spec.Range {
	src := s[r.Filename]
	return spec.Range{File: r.Filename, Line: r.Start.Line, Column: column(src, r.Start), EndLine: r.End.Line, EndColumn: column(src, r.End)}
}

func column(src []byte, p hcl.Pos) int {
	if p.Byte < 0 || p.Byte > len(src) {
		return p.Column
	}
	return p.Byte - bytes.LastIndexByte(src[:p.Byte], '\n')
}

const maxExcerpt = 160 // bytes of a line

// excerpt shows the first line of r with carets under it.
func excerpt(src []byte, r spec.Range) string {
	lines := bytes.SplitN(src, []byte("\n"), r.Line+1)
	if r.Line < 1 || len(lines) < r.Line {
		return ""
	}
	line := bytes.TrimRight(lines[r.Line-1], " \t\r")
	line = line[:min(len(line), maxExcerpt)]
	from := min(max(r.Column-1, 0), max(len(line)-1, 0))
	to := len(line)
	if r.EndLine == r.Line {
		to = min(max(r.EndColumn-1, from), len(line))
	}
	num := fmt.Sprint(r.Line)
	return fmt.Sprintf("  %s | %s\n  %s | %s%s\n", num, printable(line), strings.Repeat(" ", len(num)),
		blanks(line[:from]), strings.Repeat("^", max(utf8.RuneCount(line[from:to]), 1)))
}

func printable(line []byte) string {
	return strings.Map(func(c rune) rune {
		if c == '\t' || unicode.IsPrint(c) {
			return c
		}
		return '\uFFFD'
	}, strings.ToValidUTF8(string(line), "\uFFFD"))
}

// blanks is as wide as line: its tabs stay, all else becomes a space.
func blanks(line []byte) string {
	return strings.Map(func(c rune) rune {
		if c == '\t' {
			return c
		}
		return ' '
	}, string(line))
}

// similar returns the name nearest to given, or "" when none is near. Swapped letters count once.
func similar(given string, names []string) string {
	best, bestDist := "", min(1+len(given)/4, len(given)-1)+1
	for _, n := range slices.Sorted(slices.Values(names)) {
		d := levenshtein.Distance(given, n, nil)
		if d > 1 && anagram(given, n) {
			d = 1
		}
		if d < bestDist {
			best, bestDist = n, d
		}
	}
	return best
}

func anagram(a, b string) bool {
	return len(a) == len(b) && slices.Equal(slices.Sorted(slices.Values([]byte(a))), slices.Sorted(slices.Values([]byte(b))))
}

// didYouMean suggests the nearest of names, or lists them when they are few.
func didYouMean(given string, names []string) string {
	if s := similar(given, names); s != "" {
		return fmt.Sprintf("Did you mean %q?", s)
	}
	if len(names) == 0 || len(names) > 12 {
		return ""
	}
	return "There is: " + strings.Join(slices.Sorted(slices.Values(names)), ", ") + "."
}

// sink collects diagnostics and knows the sources that they quote.
type sink struct {
	sources sources
	list    Diagnostics
}

func (s *sink) put(d Diagnostic) {
	d.Excerpt = excerpt(s.sources[d.Range.File], d.Range)
	s.list = append(s.list, d)
}

func (s *sink) errorf(r hcl.Range, summary, suggestion, format string, args ...any) {
	s.put(Diagnostic{Severity: Error, Summary: summary, Suggestion: suggestion, Range: s.sources.rangeOf(r), Detail: fmt.Sprintf(format, args...)})
}

func (s *sink) warnf(r hcl.Range, summary, suggestion, format string, args ...any) {
	s.put(Diagnostic{Severity: Warning, Summary: summary, Suggestion: suggestion, Range: s.sources.rangeOf(r), Detail: fmt.Sprintf(format, args...)})
}

// hcl takes the diagnostics of the HCL library. A call that failed in a template brings those of the template.
func (s *sink) hcl(ds hcl.Diagnostics) {
	for _, d := range ds {
		if nested, ok := templateErrors(d); ok {
			s.list = append(s.list, nested...)
			continue
		}
		out := Diagnostic{Severity: Error, Summary: d.Summary, Detail: d.Detail}
		if d.Severity == hcl.DiagWarning {
			out.Severity = Warning
		}
		if d.Subject != nil {
			out.Range = s.sources.rangeOf(*d.Subject)
		}
		out.Detail, out.Suggestion = splitSuggestion(d.Detail)
		if name, ok := unknownFunction(d); ok {
			out.Detail, out.Suggestion = fmt.Sprintf("There is no function %q.", name), didYouMean(name, functionNames())
			if on := impureNames[name]; on != "" {
				out.Summary = "Impure function"
				out.Detail = fmt.Sprintf("%s would depend on %s; the same files must give the same release on any machine.", name, on)
				out.Suggestion = "Give the value as a variable of the environment."
			}
		}
		s.put(out)
	}
}

// splitSuggestion moves the library's own suggestion to where ours are.
func splitSuggestion(detail string) (string, string) {
	i := strings.LastIndex(detail, "Did you mean ")
	if i < 0 {
		return detail, ""
	}
	return strings.TrimSpace(detail[:i]), detail[i:]
}
