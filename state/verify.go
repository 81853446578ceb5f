package state

import (
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/platform"
)

// KindVerify is the kind of entries that say that what runs was measured.
const KindVerify Kind = "environment.verify"

// Verify says that what every instance of an environment runs on was read again, and compared with its release. The entry's body is
// the server's statement of it (attest.Verification); old entries have none, and neither Generation nor Result.
type Verify struct {
	Instances  int           `json:"instances"`            // measured
	Differ     []instance.ID `json:"differ,omitempty"`     // that run on something else, could not be measured, or are missing; the first of them
	More       int           `json:"more,omitempty"`       // of those that Differ does not name
	Generation int           `json:"generation,omitempty"` // the environment's head
	Result     string        `json:"result,omitempty"`     // one of package attest
}

// MaxDiffer is how many instances an entry names.
const MaxDiffer = 100

// EntryKind returns the kind.
func (Verify) EntryKind() Kind { return KindVerify }

func (v Verify) check(e Entry) error {
	if v.Instances < 0 || v.More < 0 || len(v.Differ) > MaxDiffer || len(v.Differ)+v.More > v.Instances {
		return errors.New("its numbers do not go together")
	}
	if v.Result != "" {
		return errors.Join(somewhere(e), v.attested(e))
	}
	if v.Generation != 0 {
		return errors.New("it has a generation and no result")
	}
	return somewhere(e)
}

// attested says whether the fields of an entry with a statement go together.
func (v Verify) attested(e Entry) error {
	good := false
	switch v.Result {
	case attest.AsReleased:
		good = len(v.Differ) == 0
	case attest.Differs:
		good = len(v.Differ) > 0
	case attest.NotMeasured: // some instances, or none at all
		good = true
	}
	if !good || v.Generation < 1 {
		return fmt.Errorf("result %q of generation %d, with %d instances that differ", v.Result, v.Generation, len(v.Differ)+v.More)
	}
	if e.Body == nil || e.Body.Type != attest.TypeEnvelope {
		return errors.New("want the statement as body")
	}
	return nil
}

// outcome is the result, also of an old entry.
func (v Verify) outcome() string {
	switch {
	case v.Result != "":
		return v.Result
	case len(v.Differ) > 0:
		return attest.Differs
	}
	return attest.AsReleased
}

// Measured is what came of measuring what an environment runs.
type Measured struct {
	At        time.Time `json:"at"` // when it was recorded
	Entry     int64     `json:"entry"`
	Result    string    `json:"result"`
	Instances int       `json:"instances"`
	Bad       int       `json:"bad,omitempty"`     // of these, not as released
	WholeAt   time.Time `json:"whole_at,omitzero"` // when all of it was measured last; zero: never
}

// Unmeasured is since when not all of what the environment runs was measured; false when it runs nothing that could be.
func (e Environment) Unmeasured() (since time.Time, runs bool) {
	since = e.Since
	if e.Measured != nil && e.Measured.WholeAt.After(since) {
		since = e.Measured.WholeAt
	}
	return since, e.Name != platform.Env && e.Head.Number > 0 && !e.Destroyed()
}

// MeasureLate reports whether what runs was not measured for twice as long as it should have been, or for a week.
func (e Environment) MeasureLate(every time.Duration, now time.Time) bool {
	since, runs := e.Unmeasured()
	return runs && now.Sub(since) > min(2*every, platform.MaxVerify)
}

// retryMeasure is when a measurement is tried again of which nothing, or not all, came.
const retryMeasure = time.Hour

// MeasureAt is when what runs is to be measured next, so that no two times lie further apart than every, the time that it waits for others
// included. The first times of environments that began together lie apart. It is zero when there is nothing to measure.
func (e Environment) MeasureAt(every time.Duration) time.Time {
	if _, runs := e.Unmeasured(); !runs {
		return time.Time{}
	}
	soon := every - every/10
	switch m := e.Measured; {
	case m == nil:
		h := fnv.New64a()
		h.Write([]byte(e.Name))
		return e.Since.Add(time.Duration(h.Sum64() % uint64(soon)))
	case m.Result == attest.NotMeasured:
		return m.At.Add(min(soon, retryMeasure))
	default:
		return m.At.Add(soon)
	}
}

// measured notes on the environment that it was measured.
func (f *fold) measured(e Entry, d Verify) {
	env := f.environment(e.Env)
	if env.Head.Number == 0 {
		return // an entry of an environment that never was has no place
	}
	m := Measured{At: e.Time, Entry: f.log.Size, Result: d.outcome(), Instances: d.Instances, Bad: len(d.Differ) + d.More}
	if m.WholeAt = e.Time; m.Result == attest.NotMeasured {
		m.WholeAt = time.Time{}
		if env.Measured != nil {
			m.WholeAt = env.Measured.WholeAt
		}
	}
	env.Measured = &m
	f.put(tableEnvironments, &env)
}
