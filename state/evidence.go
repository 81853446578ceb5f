package state

import (
	"errors"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/spec"
)

// KindEvidenceExport is the kind of entries that say what was handed to an auditor.
const KindEvidenceExport Kind = "evidence.export"

// EvidenceExport says that a part of the ledger was exported as evidence.
type EvidenceExport struct {
	From     int64         `json:"from"`            // index of the first entry
	To       int64         `json:"to"`              // index after the last
	Scope    spec.EnvName  `json:"scope,omitempty"` // the environment that it is of; unset: all
	Size     int64         `json:"size"`            // entries of the tree that went with it
	Moves    int           `json:"moves"`           // heads that moved: the population
	Manifest digest.Digest `json:"manifest"`        // of all files
}

// EntryKind returns the kind.
func (EvidenceExport) EntryKind() Kind { return KindEvidenceExport }

func (x EvidenceExport) check(e Entry) error {
	if x.From < 0 || x.To < x.From || x.Size < x.To || x.Moves < 0 {
		return errors.New("its range is none")
	}
	return errors.Join(nowhere(e), required(x.Manifest))
}
