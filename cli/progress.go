package cli

import (
	"fmt"
	"slices"
	"time"

	"github.com/invarhq/invar/image/bake"
	"github.com/invarhq/invar/spec"
)

// progress shows how images are baked: a line each that is drawn again where stderr is a terminal, else a line when an
// image is done.
type progress struct {
	app     *app
	live    bool
	names   []spec.ImageName
	last    map[spec.ImageName]bake.Event
	since   map[spec.ImageName]time.Time
	screen  screen
	drawnAt time.Time
}

func (a *app) newProgress(images []spec.Image) *progress {
	p := &progress{app: a, live: a.live(), screen: screen{out: a.Stderr}, last: map[spec.ImageName]bake.Event{}, since: map[spec.ImageName]time.Time{}}
	for _, img := range images {
		p.names = append(p.names, img.Name)
	}
	slices.Sort(p.names)
	return p
}

// event takes one event; bake calls it one at a time.
func (p *progress) event(e bake.Event) {
	if _, ok := p.since[e.Image]; !ok {
		p.since[e.Image] = time.Now()
	}
	before := p.last[e.Image]
	p.last[e.Image] = e
	switch {
	case p.live:
		if e.Step != before.Step || time.Since(p.drawnAt) > redrawEvery {
			p.draw()
		}
	case e.Step == bake.Finished && !e.Cached:
		fmt.Fprintln(p.app.Stderr, p.line(e.Image))
	}
}

// done leaves the last state on the screen. A terminal that would only say "nothing to do" is left empty.
func (p *progress) done() {
	if !p.live {
		return
	}
	p.draw()
	p.screen.leave()
}

func (p *progress) draw() {
	var lines []string
	for _, n := range p.names {
		if e, ok := p.last[n]; ok && !e.Cached {
			lines = append(lines, p.line(n))
		}
	}
	p.screen.draw(lines)
	p.drawnAt = time.Now()
}

func (p *progress) line(n spec.ImageName) string {
	e := p.last[n]
	text := fmt.Sprintf("image %s: %s", n, e.Step)
	if e.Detail != "" && e.Step != bake.Finished {
		text += " " + e.Detail
	}
	if e.Total > 0 && e.Step != bake.Finished {
		text += fmt.Sprintf(" %d%%", 100*e.Done/e.Total)
	}
	return text + p.app.style().dim(fmt.Sprintf("  %.1fs", time.Since(p.since[n]).Seconds()))
}
