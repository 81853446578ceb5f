package reconcile

import (
	"testing"
	"time"
)

// A round begins every so often, and looking takes half of the time at most.
func TestRestBetweenInspections(t *testing.T) {
	const every = 2 * time.Second
	for name, c := range map[string]struct{ took, looked, want time.Duration }{
		"quick":                           {10 * time.Millisecond, 10 * time.Millisecond, every - 10*time.Millisecond},
		"a thousand instances":            {400 * time.Millisecond, 400 * time.Millisecond, every - 400*time.Millisecond},
		"waiting for a second look":       {210 * time.Millisecond, 10 * time.Millisecond, every - 210*time.Millisecond},
		"half of a core":                  {1200 * time.Millisecond, 1200 * time.Millisecond, 1200 * time.Millisecond},
		"it takes longer than the period": {2 * every, 2 * every, 2 * every},
	} {
		t.Run(name, func(t *testing.T) {
			if got := rest(every, c.took, c.looked); got != c.want {
				t.Errorf("rests %v, want %v", got, c.want)
			}
		})
	}
}
