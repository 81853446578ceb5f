package state

import (
	"errors"
	"fmt"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// KindAttestReproduced is the kind of an entry about a release that was made again. docs/ledger.md describes it.
const KindAttestReproduced Kind = "attest.reproduced"

// Results of making something again.
const (
	Same      = "same"      // to the last byte
	Different = "different" // the body says in what
)

// Sources that something was made of.
const (
	SourcesBundle    = "bundle"    // of the bundle alone
	SourcesDirectory = "directory" // files of a directory too, which the bundle does not hold
)

// AttestReproduced says that the actor has made a release again from its bundle, as he says, and what came of it. The entry's body is
// an in-toto statement in a DSSE envelope that the server signed; its subjects are what was compared.
type AttestReproduced struct {
	Release digest.Digest `json:"release"`
	Bundle  digest.Digest `json:"bundle"`
	Result  string        `json:"result"` // Same or Different
	Builder Builder       `json:"builder"`
}

// Builder is where something was made again, and with what, as whoever did it says.
type Builder struct {
	Version  string `json:"version"`        // of invar
	Go       string `json:"go,omitempty"`   // version of the go command; unset: it was not needed
	Platform string `json:"platform"`       // of the machine
	Host     string `json:"host,omitempty"` // name of the machine
	Sources  string `json:"sources"`        // SourcesBundle or SourcesDirectory
}

// EntryKind returns the kind.
func (AttestReproduced) EntryKind() Kind { return KindAttestReproduced }

func (a AttestReproduced) check(e Entry) error {
	switch {
	case e.Body == nil:
		return errors.New("want the statement as body")
	case a.Result != Same && a.Result != Different:
		return fmt.Errorf("result %q: want %s or %s", a.Result, Same, Different)
	case a.Builder.Sources != SourcesBundle && a.Builder.Sources != SourcesDirectory:
		return fmt.Errorf("sources %q: want %s or %s", a.Builder.Sources, SourcesBundle, SourcesDirectory)
	case a.Builder.Version == "" || a.Builder.Platform == "":
		return errors.New("a builder has a version and a platform")
	}
	return errors.Join(somewhere(e), required(a.Release, a.Bundle))
}

// reproduced changes nothing: it is what somebody says of a release that is known.
func (f *fold) reproduced(e Entry, d AttestReproduced) error {
	r := get[KnownRelease](f.tx, tableReleases, "id", string(d.Release))
	if r == nil || r.Env != e.Env || r.Bundle != d.Bundle {
		return fault.Errorf(fault.Conflict, "release %s of bundle %s is not known in environment %s", d.Release, d.Bundle, e.Env)
	}
	return nil
}
