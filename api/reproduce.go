package api

import (
	"github.com/invarhq/invar/digest"
)

// Reproduction is what came of making a release, or one of its images, again.
type Reproduction struct {
	Parts       []ReproducedPart `json:"parts" minItems:"1" maxItems:"1000" doc:"What was compared."`
	Differences []string         `json:"differences,omitempty" maxItems:"200" doc:"Where and in what they differ, in sentences."`
	Builder     Builder          `json:"builder" doc:"Where it was made again, and with what."`
}

// ReproducedPart is something that was compared.
type ReproducedPart struct {
	Name     string        `json:"name" maxLength:"100" doc:"release, bundle, image NAME or root NAME." example:"image web"`
	Recorded digest.Digest `json:"recorded" doc:"Its digest as it is recorded."`
	Made     digest.Digest `json:"made,omitempty" doc:"Its digest as it was made again; absent: there is none."`
}

// Same reports whether it was made again to the last byte.
func (p ReproducedPart) Same() bool { return p.Recorded == p.Made }

// Builder is where something was made again, and with what.
type Builder struct {
	Version  string `json:"version" minLength:"1" maxLength:"100" doc:"Version of invar."`
	Go       string `json:"go,omitempty" maxLength:"100" doc:"Version of the go command; absent: it was not needed."`
	Platform string `json:"platform" minLength:"1" maxLength:"100" doc:"Platform of the machine." example:"linux/amd64"`
	Host     string `json:"host,omitempty" maxLength:"253" doc:"Name of the machine."`
	Sources  string `json:"sources" enum:"bundle,directory" doc:"Whether the bundle alone was needed, or files of a directory that it does not hold."`
}

// Attested is an attestation that is recorded.
type Attested struct {
	Entry     uint64        `json:"entry" doc:"Index of the entry in the ledger."`
	Statement digest.Digest `json:"statement" doc:"Digest of the signed statement (an in-toto statement in a DSSE envelope), the entry's body."`
	Result    string        `json:"result" enum:"same,different" doc:"What is attested."`
}
