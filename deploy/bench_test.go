package deploy

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkNext decides for an environment of 1,000 instances in which nothing differs, and in which every component changed.
func BenchmarkNext(b *testing.B) {
	quick := settings
	quick.MaxParallel, quick.MinHealthyMillis = 1000, 0
	release := func(version string) (list []string) {
		for n := range 50 {
			list = append(list, fmt.Sprintf("c%d×20=%s", n, version))
		}
		return list
	}
	s := newScene()
	s.head(quick, release("a")...)
	s.thrive(time.Minute)
	have := s.have()
	if len(have) != 1000 {
		b.Fatal(len(have))
	}
	b.Run("nothing", func(b *testing.B) {
		for b.Loop() {
			if steps := Next(s.env, have, s.now, s.newID); len(steps) != 0 {
				b.Fatal(len(steps))
			}
		}
	})
	s.head(quick, release("b")...)
	b.Run("everything", func(b *testing.B) {
		for b.Loop() {
			if steps := Next(s.env, have, s.now, s.newID); len(steps) != 1000 {
				b.Fatal(len(steps))
			}
		}
	})
}
