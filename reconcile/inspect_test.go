package reconcile

import (
	"testing"
	"time"
)

// Between the ends of two looks there is the least of what the cost allows and of what finds in time.
func TestRestBetweenInspections(t *testing.T) {
	const every = 2 * time.Second
	for name, c := range map[string]struct{ took, looked, want time.Duration }{
		"quick":                           {10 * time.Millisecond, 10 * time.Millisecond, every - 10*time.Millisecond},
		"a twentieth of a core":           {150 * time.Millisecond, 150 * time.Millisecond, 19 * 150 * time.Millisecond},
		"waiting for a second look":       {210 * time.Millisecond, 10 * time.Millisecond, every - 210*time.Millisecond},
		"a root was read, which is slow":  {800 * time.Millisecond, 600 * time.Millisecond, maxInspectRest},
		"it takes longer than the period": {every, 10 * time.Millisecond, every / 4},
	} {
		t.Run(name, func(t *testing.T) {
			if got := rest(every, c.took, c.looked); got != c.want {
				t.Errorf("rests %v, want %v", got, c.want)
			}
		})
	}
}
