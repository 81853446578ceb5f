package state

import (
	"errors"

	"github.com/invarhq/invar/instance"
)

// KindVerify is the kind of entries that say that what runs was measured.
const KindVerify Kind = "environment.verify"

// Verify says that what every instance of an environment runs on was read again, and compared with its release.
type Verify struct {
	Instances int           `json:"instances"`        // measured
	Differ    []instance.ID `json:"differ,omitempty"` // that run on something else, or could not be measured; the first of them
	More      int           `json:"more,omitempty"`   // of those that Differ does not name
}

// MaxDiffer is how many instances an entry names.
const MaxDiffer = 100

// EntryKind returns the kind.
func (Verify) EntryKind() Kind { return KindVerify }

func (v Verify) check(e Entry) error {
	if v.Instances < 0 || v.More < 0 || len(v.Differ) > MaxDiffer || len(v.Differ)+v.More > v.Instances {
		return errors.New("its numbers do not go together")
	}
	return somewhere(e)
}
