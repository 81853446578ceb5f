// Package bisect finds the first bad one of a row of things by binary search.
//
// The things are numbered 0 … n-1 in their order. 0 is known to be good and n-1 to be bad, so the first bad one is among
// 1 … n-1. Each Point that is asked for is tried by whoever asks, and its verdict marked; what can't be tried is skipped. Without
// skips it takes ceil(log2(n-1)) tries. A Search is a value: Mark returns another one.
//
//	s := bisect.New(5)                  // good ? ? ? bad
//	s.Points(1)                         // [2]
//	s = s.Mark(2, bisect.Bad)           // good ? bad
//	s.Points(1)                         // [1]
//	s.Mark(1, bisect.Good).Candidates() // [2]
package bisect

import "slices"

// Verdict is what a try found.
type Verdict string

// The verdicts.
const (
	Good Verdict = "good"
	Bad  Verdict = "bad"
	Skip Verdict = "skip" // nothing can be said of it
)

// Search is a search under way. The zero value is of no use; New makes one.
type Search struct {
	good, bad int   // the last known good below the first known bad
	skipped   []int // sorted
}

// New begins a search in a row of n things, n at least 2.
func New(n int) Search { return Search{good: 0, bad: max(n-1, 1)} }

// Candidates returns what may be the first bad one, in order: a single one when the search has found it. Several when Points returns none:
// all before the last of them were skipped.
func (s Search) Candidates() []int {
	var out []int
	for i := s.good + 1; i <= s.bad; i++ {
		out = append(out, i)
	}
	return out
}

// Points returns up to most things to try next, in order, that split what is left into parts as equal as can be; none when there is
// nothing left to try. For one that was skipped, the nearest that was not takes its place.
func (s Search) Points(most int) []int {
	var free []int
	for i := s.good + 1; i < s.bad; i++ {
		if _, skipped := slices.BinarySearch(s.skipped, i); !skipped {
			free = append(free, i)
		}
	}
	if most = min(most, len(free)); most < 1 {
		return nil
	}
	var out []int
	for k := 1; k <= most; k++ {
		want := s.good + (s.bad-s.good)*k/(most+1)
		i := nearest(free, want)
		out = append(out, free[i])
		free = slices.Delete(free, i, i+1)
	}
	slices.Sort(out)
	return out
}

// nearest returns the index of the value that is nearest to want, the lower of two.
func nearest(sorted []int, want int) int {
	i, _ := slices.BinarySearch(sorted, want)
	switch {
	case i == len(sorted):
		return i - 1
	case i > 0 && want-sorted[i-1] <= sorted[i]-want:
		return i - 1
	}
	return i
}

// Mark returns the search with the verdict on one of its points. What lies outside of what is left changes nothing: where good and bad take
// turns, the search keeps to the first bad one that it saw, and what is good before that.
func (s Search) Mark(i int, v Verdict) Search {
	if i <= s.good || i >= s.bad {
		return s
	}
	switch v {
	case Good:
		s.good = i
	case Bad:
		s.bad = i
	case Skip:
		at, found := slices.BinarySearch(s.skipped, i)
		if !found {
			s.skipped = slices.Insert(slices.Clone(s.skipped), at, i)
		}
	}
	return s
}
