package drift

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/instance"
)

// Response is what follows when something beside the instances is not as it should be.
type Response string

// The responses.
const (
	Restore Response = "restore" // what should be there is put back
	End     Response = "end"     // what should not be there is ended
	Alert   Response = "alert"   // the entry, and nothing else: it is not ours to end
)

// Responses has all of them.
func Responses() []Response { return []Response{Restore, End, Alert} }

// Oddity is a difference on the machine beside the instances, and what follows.
type Oddity struct {
	instance.Finding
	Response Response
}

// Odd gives findings a response.
func Odd(r Response, found []instance.Finding) []Oddity {
	var out []Oddity
	for _, f := range found {
		out = append(out, Oddity{f, r})
	}
	return out
}

// Open is an oddity that the ledger has, and that is not over.
type Open struct {
	Finding  instance.Finding `json:"finding"`
	Response Response         `json:"response"`
	Since    time.Time        `json:"since"`
	Entry    int64            `json:"entry"` // index of the entry
}

// MaxOpen bounds how many oddities are open at a time: more tell nothing new.
const MaxOpen = 256

// Beside compares what a look found with what is open of the kinds that were looked at. Fresh is what the ledger does not have yet, as far
// as there is room for it; entered is what was found and it has, once it has what is fresh; over is what is open and was not found.
func Beside(open []Open, kinds []Kind, found []Oddity) (fresh, entered []Oddity, over []Open) {
	is := map[string]bool{}
	for _, o := range open {
		is[o.Finding.Key()] = true
	}
	seen := map[string]bool{}
	for _, o := range found {
		key := o.Key()
		if seen[key] {
			continue
		}
		seen[key] = true
		if !is[key] {
			if len(open)+len(fresh) >= MaxOpen {
				continue
			}
			fresh = append(fresh, o)
		}
		entered = append(entered, o)
	}
	for _, o := range open {
		if slices.Contains(kinds, Kind(o.Finding.Kind)) && !seen[o.Finding.Key()] {
			over = append(over, o)
		}
	}
	return fresh, entered, over
}

// Bounds of how long an oddity must be away until it is over.
const (
	promptOver  = 3 // times that it comes back, until that takes longer
	maxAway     = 10 * time.Minute
	awayAtFirst = time.Minute
)

// Away returns how long an oddity that came back that many times must be away until it counts as over: somebody who does it again and again
// gets one entry, not thousands.
func Away(times int) time.Duration {
	if times < promptOver {
		return 0
	}
	return min(maxAway, awayAtFirst<<min(times-promptOver, 10))
}

// Patience returns how long to wait after that many tries to heal something that is still there.
func Patience(tries int) time.Duration {
	if tries == 0 {
		return 0
	}
	return min(time.Minute, time.Second<<min(tries-1, 10))
}

// Cause says what is odd in one sentence.
func Cause(found []Oddity) string {
	cause := found[0].String()
	if len(cause) > maxCause {
		cause = strings.ToValidUTF8(cause[:maxCause], "") + "…"
	}
	if n := len(found); n > 1 {
		cause += fmt.Sprintf(" and %d more", n-1)
	}
	return cause
}

const maxCause = 300
