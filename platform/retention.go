package platform

import (
	"slices"
	"time"
)

// KeepUntil returns until when content that an entry of the kind named at a time is kept, by the rule that keeps it longest; zero: no
// rule is about the kind.
func (d Definition) KeepUntil(kind string, at time.Time) (until time.Time, rule string) {
	for _, r := range d.Retentions {
		if end := at.Add(time.Duration(r.KeepMillis) * time.Millisecond); slices.Contains(r.Kinds, kind) && end.After(until) {
			until, rule = end, r.Name
		}
	}
	return until, rule
}
