// Package image holds references to OCI images, the digests that they resolve to, and the lock.
//
// An image is known by two digests: that of its OCI manifest (image-spec 1.1), by which registries
// and tools know it, and that of its root: the one EROFS file that the manifest's layers merge into,
// deterministically, which is what instances run on.
package image

import (
	"github.com/invarhq/invar/digest"
)

// Platform is what an image is built for, as in the OCI image specification.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
}

func (p Platform) String() string { return p.OS + "/" + p.Architecture }

// Resolved is an image once nothing about it can change any more.
type Resolved struct {
	Manifest digest.Digest `json:"manifest"` // of the OCI manifest
	Size     int64         `json:"size"`     // of the OCI manifest, bytes
	// MediaType is that of the manifest where it isn't an OCI image manifest but Docker's (schema 2).
	MediaType string        `json:"media_type,omitempty"`
	Root      digest.Digest `json:"root"` // of the EROFS file
	RootSize  int64         `json:"root_size"`
	Platform  Platform      `json:"platform"`
	Config    Config        `json:"config"`
}

// Config is the part of the OCI image configuration that an instance starts from.
type Config struct {
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Command    []string          `json:"command,omitempty"`
	Env        map[string]string `json:"env,omitempty"`
	User       string            `json:"user,omitempty"`
	WorkDir    string            `json:"workdir,omitempty"`
	StopSignal string            `json:"stop_signal,omitempty"`
}

// Lock pins every mutable reference of an app. Its file is invar.lock.hcl (spec/parse reads and
// writes it); entries are sorted, so that equal locks have equal bytes.
type Lock struct {
	Images map[string]LockedImage // by image name; only images with something to pin
}

// LockedImage pins one image's mutable parts. Which fields are set depends on the image's kind.
type LockedImage struct {
	Ref      string          // the reference as configured; a lock for another reference is stale
	Digest   digest.Digest   // ref images: of the manifest or index that Ref resolved to
	Suite    string          // debian images
	Request  []string        // debian images: the packages as configured, sorted
	Packages []LockedPackage // debian images: the whole closure, sorted by name
	Date     string          // debian images: the source date, RFC 3339 UTC
}

// LockedPackage is one binary package of a Debian suite, by exact version and content.
type LockedPackage struct {
	Name         string
	Version      string
	Architecture string
	SHA256       digest.Digest
	SizeBytes    int64
}
