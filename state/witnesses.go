package state

import (
	"errors"

	"github.com/invarhq/invar/digest"
)

// KindWitnessAlarm is the kind of entries about witnesses that know the ledger otherwise than it is.
const KindWitnessAlarm Kind = "witness.alarm"

// WitnessAlarm says that the ledger and what its witnesses have seen do not go together.
type WitnessAlarm struct {
	Witness  string        `json:"witness,omitempty"` // unset: about the newest cosigned checkpoint that this server kept
	Alarm    string        `json:"alarm"`             // its kind
	Size     int64         `json:"size"`              // entries of the ledger when it was found
	Cause    string        `json:"cause"`
	Evidence digest.Digest `json:"evidence,omitempty"` // what was answered or kept, which is the entry's body
}

func (WitnessAlarm) EntryKind() Kind { return KindWitnessAlarm }

func (w WitnessAlarm) check(e Entry) error {
	if w.Alarm == "" || w.Cause == "" || w.Size < 0 || (w.Evidence != "") != (e.Body != nil) || e.Body != nil && e.Body.Digest != w.Evidence {
		return errors.New("want a kind, a cause, a size, and the evidence as body where there is some")
	}
	return errors.Join(nowhere(e), optional(w.Evidence))
}
