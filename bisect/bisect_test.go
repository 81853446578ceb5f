package bisect_test

import (
	"fmt"
	"math/bits"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/invarhq/invar/bisect"
)

func Example() {
	s := bisect.New(5)
	for p := s.Points(1); len(p) > 0; p = s.Points(1) {
		verdict := bisect.Good
		if p[0] >= 2 {
			verdict = bisect.Bad
		}
		fmt.Println(p[0], verdict)
		s = s.Mark(p[0], verdict)
	}
	fmt.Println(s.Candidates())
	// Output:
	// 2 bad
	// 1 good
	// [2]
}

// search runs a search whose first bad one is known, and returns what it found, and in how many rounds and tries.
func search(n, first, parallel int, skip map[int]bool) (found []int, rounds, tries int) {
	s := bisect.New(n)
	for points := s.Points(parallel); len(points) > 0; points = s.Points(parallel) {
		rounds++
		for _, p := range points {
			tries++
			switch {
			case skip[p]:
				s = s.Mark(p, bisect.Skip)
			case p >= first:
				s = s.Mark(p, bisect.Bad)
			default:
				s = s.Mark(p, bisect.Good)
			}
		}
	}
	return s.Candidates(), rounds, tries
}

func TestAHundredGenerationsTakeSevenRuns(t *testing.T) {
	most := 0
	for first := 1; first < 100; first++ {
		found, _, tries := search(100, first, 1, nil)
		if !slices.Equal(found, []int{first}) {
			t.Fatalf("found %v, want %d", found, first)
		}
		most = max(most, tries)
	}
	if most != 7 {
		t.Errorf("it took up to %d tries, want 7", most)
	}
}

func TestTriesAreTheLogarithm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 5000).Draw(t, "n")
		first := rapid.IntRange(1, n-1).Draw(t, "first")
		found, _, tries := search(n, first, 1, nil)
		if want := bits.Len(uint(n - 2)); !slices.Equal(found, []int{first}) || tries > want {
			t.Fatalf("%d things, %d the first bad: found %v in %d tries, at most %d are needed", n, first, found, tries, want)
		}
	})
}

// Whatever is skipped and however many are tried at a time: the first bad one is among the candidates, and all of these before the last
// were skipped.
func TestSkipsLeaveNoDoubt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 200).Draw(t, "n")
		first := rapid.IntRange(1, n-1).Draw(t, "first")
		parallel := rapid.IntRange(1, 5).Draw(t, "parallel")
		skip := map[int]bool{}
		for _, i := range rapid.SliceOf(rapid.IntRange(1, n-1)).Draw(t, "skip") {
			skip[i] = true
		}
		found, _, tries := search(n, first, parallel, skip)
		if !slices.Contains(found, first) {
			t.Fatalf("%d is not among %v", first, found)
		}
		for _, i := range found[:len(found)-1] {
			if !skip[i] {
				t.Fatalf("%d was left in doubt in %v, and was not skipped", i, found)
			}
		}
		if tries > n-2+1 {
			t.Fatalf("%d tries of %d things", tries, n)
		}
	})
}

func TestTriesBesideEachOtherTakeFewerRounds(t *testing.T) {
	for first := 1; first < 64; first++ {
		found, rounds, _ := search(64, first, 3, nil)
		if !slices.Equal(found, []int{first}) || rounds > 3 { // quarters: 64 = 4^3
			t.Errorf("first bad %d: found %v in %d rounds", first, found, rounds)
		}
	}
}
