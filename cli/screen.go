package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"golang.org/x/term"
)

// redrawEvery is the least time between two drawings of a screen: nobody reads faster.
const redrawEvery = 70 * time.Millisecond

// live tells whether progress can be drawn again and again, or has to go line by line.
func (a *app) live() bool {
	return isTerminal(a.Stderr) && a.output != "json" && a.Getenv("TERM") != "dumb"
}

// screen is a block of lines on a terminal that is drawn again over itself. It never has more lines than the terminal, nor
// wider ones: either would make the terminal scroll, and what scrolled can't be drawn over.
type screen struct {
	out   io.Writer
	drawn int // lines
}

// draw replaces the block.
func (s *screen) draw(lines []string) {
	width, height := s.size()
	lines = fit(lines, width, height)
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", s.drawn)
	}
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	io.WriteString(s.out, b.String())
	s.drawn = len(lines)
}

// leave keeps the block: what is printed next stands under it.
func (s *screen) leave() { s.drawn = 0 }

// size of the terminal; a usual one where it can't be told.
func (s *screen) size() (width, height int) {
	if f, ok := s.out.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
			return w, h
		}
	}
	return 80, 24
}

// fit cuts lines to the width, and leaves out of the middle what is too many for the height: beginning and end say most.
func fit(lines []string, width, height int) []string {
	most := max(height-1, 3) // the last line is the cursor's
	if len(lines) > most {
		left := len(lines) - most + 1
		end := lines[len(lines)-1]
		lines = append(append([]string{}, lines[:most-2]...), fmt.Sprintf("… %s", plural(left, "more line")), end)
	}
	cut := lipgloss.NewStyle().MaxWidth(width).Inline(true)
	out := make([]string, len(lines))
	for i, l := range lines {
		if out[i] = l; lipgloss.Width(l) > width {
			out[i] = cut.Render(l)
		}
	}
	return out
}
