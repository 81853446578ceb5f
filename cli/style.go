package cli

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"charm.land/lipgloss/v2"
	"golang.org/x/term"
)

// style colours words. Colour never carries a meaning alone: without it the same words are printed.
type style struct{ on bool }

func (a *app) style() style {
	return style{!a.noColor && a.output != "json" && isTerminal(a.Stderr)}
}

// outStyle is for text on stdout.
func (a *app) outStyle() style {
	return style{!a.noColor && a.output != "json" && isTerminal(a.Stdout)}
}

// isTerminal tells whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (s style) paint(st lipgloss.Style, text string) string {
	if !s.on {
		return text
	}
	return st.Render(text)
}

func (s style) err(t string) string {
	return s.paint(lipgloss.NewStyle().Foreground(lipgloss.Red).Bold(true), t)
}
func (s style) hint(t string) string {
	return s.paint(lipgloss.NewStyle().Foreground(lipgloss.Cyan), t)
}
func (s style) good(t string) string {
	return s.paint(lipgloss.NewStyle().Foreground(lipgloss.Green), t)
}
func (s style) warn(t string) string {
	return s.paint(lipgloss.NewStyle().Foreground(lipgloss.Yellow), t)
}
func (s style) bad(t string) string  { return s.paint(lipgloss.NewStyle().Foreground(lipgloss.Red), t) }
func (s style) dim(t string) string  { return s.paint(lipgloss.NewStyle().Faint(true), t) }
func (s style) bold(t string) string { return s.paint(lipgloss.NewStyle().Bold(true), t) }

// json prints v as indented JSON on stdout.
func (a *app) json(v any) error {
	enc := json.NewEncoder(a.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table prints rows in columns. Cells must not be coloured: their widths are counted in bytes.
func table(w io.Writer, header string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if header != "" {
		io.WriteString(tw, strings.ReplaceAll(header, " ", "\t")+"\n")
	}
	for _, r := range rows {
		io.WriteString(tw, strings.Join(r, "\t")+"\n")
	}
	return tw.Flush()
}
