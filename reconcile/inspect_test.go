package reconcile

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/invarhq/invar/digest"
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

// A server that was just started reads every root once, whatever an earlier one knew of it, and then each once an hour.
func TestEachRootIsReadSoonAfterTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &inspector{read: map[digest.Digest]time.Time{}}
		roots := []digest.Digest{digest.Of([]byte("a")), digest.Of([]byte("b")), digest.Of([]byte("c"))}
		began := time.Now()
		var read []time.Duration
		for range 61 * 30 { // looks of an hour and a minute
			for _, root := range roots {
				if n.dueContent(root) {
					read = append(read, time.Since(began))
				}
			}
			time.Sleep(2 * time.Second)
		}
		want := []time.Duration{0, time.Minute, 2 * time.Minute, time.Hour}
		if !slices.Equal(read, want) {
			t.Errorf("read after %v, want %v", read, want)
		}
	})
}
