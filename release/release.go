// Package release holds bundles and releases: the content-addressed records that everything else
// refers to.
//
// A bundle is an app's sources with its lock and the digests of its images; a release is a bundle
// evaluated for one environment. Both are OCI artifacts (image-spec 1.1). A release is an image
// index: its manifests are the component images, and its record, a blob of canonical JSON
// (RFC 8785), holds every component fully resolved. The digest of that record identifies
// the release everywhere in invar.
//
// Rules of the format: a field's name and meaning never change; an unset field adds no bytes; there
// are no floats and no nulls; lists whose order means nothing are sorted; no time says when something
// was made. V says which rules a record follows.
package release

import (
	"cmp"
	"slices"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
)

// Media types of the artifacts.
const (
	TypeBundle = "application/vnd.invar.bundle.v1+json"     // config of a bundle's manifest
	TypeSource = "application/vnd.invar.source.v1.tar+gzip" // a bundle's layer: deterministic tar of its sources
	TypeRecord = "application/vnd.invar.release.v1+json"    // the canonical JSON of a Record
	TypeRoot   = "application/vnd.invar.root.v1.erofs"      // an EROFS root, referrer of its image
)

// Bundle is the unit of promotion: sources, lock and images, the same for every environment.
// Its digest is that of its canonical JSON.
type Bundle struct {
	V      int                               `json:"v"` // 1
	App    spec.AppName                      `json:"app"`
	Source digest.Digest                     `json:"source"` // of the deterministic tar of all that evaluation reads
	Images map[spec.ImageName]image.Resolved `json:"images"`
}

// Record is a release: what one environment runs. Its digest is that of its canonical JSON.
type Record struct {
	V          int           `json:"v"` // 1
	App        spec.AppName  `json:"app"`
	Env        spec.EnvName  `json:"env"`
	Bundle     digest.Digest `json:"bundle"`
	Components []Placed      `json:"components"` // sorted by name
	Routes     []Route       `json:"routes"`     // sorted by name
	Rollout    Rollout       `json:"rollout"`

	// OnDrift is what follows when an instance differs from this; unset: replace, which is spelled in no other way.
	OnDrift spec.Response `json:"on_drift,omitempty"`

	// Platform is the platform's own definition, which is what the environment "platform" has instead of components and
	// routes; nil in every other.
	Platform *platform.Definition `json:"platform,omitempty"`
}

// Response is what follows when an instance differs from the release.
func (r Record) Response() spec.Response { return cmp.Or(r.OnDrift, spec.Replace) }

// Placed is a component with what does not belong to its identity.
type Placed struct {
	Component Component `json:"component"`
	Replicas  int       `json:"replicas"`

	// Snapshots are the volumes that are copied before another version of the component gets them, sorted. They say how the
	// component is replaced, not what it is: to ask for one replaces nothing.
	Snapshots []spec.VolumeName `json:"snapshots,omitempty"`
}

// HasVolume reports whether a component of the release has such a volume.
func (r Record) HasVolume(c spec.ComponentName, name spec.VolumeName) bool {
	for _, p := range r.Components {
		if p.Component.Name == c {
			return slices.ContainsFunc(p.Component.Volumes, func(v Volume) bool { return v.Name == name })
		}
	}
	return false
}

// Component is a component fully resolved. The digest of its canonical JSON is its identity: two
// instances with one component digest are interchangeable.
type Component struct {
	Name       spec.ComponentName `json:"name"`
	Image      digest.Digest      `json:"image"` // of the OCI manifest
	Root       digest.Digest      `json:"root"`  // of the EROFS file
	Args       []string           `json:"args"`  // the whole argument vector
	Env        map[string]string  `json:"env,omitempty"`
	WorkDir    string             `json:"workdir,omitempty"`
	User       string             `json:"user,omitempty"` // as the image names it
	Uses       []Use              `json:"uses,omitempty"`
	Egress     []string           `json:"egress,omitempty"`
	Files      []File             `json:"files,omitempty"`
	Secrets    []Secret           `json:"secrets,omitempty"`
	Ports      []Port             `json:"ports,omitempty"`
	Health     *Health            `json:"health,omitempty"` // nil: healthy while it runs and all Ports accept
	Scratches  []Scratch          `json:"scratches,omitempty"`
	Volumes    []Volume           `json:"volumes,omitempty"`
	Resources  Resources          `json:"resources"`
	StopSignal string             `json:"stop_signal,omitempty"`
	StopMillis int64              `json:"stop_ms,omitempty"`
	Isolation  string             `json:"isolation,omitempty"`

	DynamicPorts bool `json:"dynamic_ports,omitempty"` // it listens on ports that it chooses when it runs, beside Ports
}

// Use is a connection that the component may open: to Component's port, at its name and Number.
type Use struct {
	Component spec.ComponentName `json:"component"`
	Port      spec.PortName      `json:"port"`
	Number    int                `json:"number"`
}

// File is a file of configuration. Exactly one of Text and Base64 is set, unless it is empty.
type File struct {
	Path   string `json:"path"`
	Text   string `json:"text,omitempty"`
	Base64 string `json:"base64,omitempty"`
	Mode   uint32 `json:"mode"`
	User   string `json:"user,omitempty"`
}

// Secret pins a version of a secret, by the digest of its ciphertext; never its value.
type Secret struct {
	Path    string        `json:"path"`
	Name    string        `json:"name"`
	Version digest.Digest `json:"version,omitempty"`
	Mode    uint32        `json:"mode"`
	User    string        `json:"user,omitempty"` // owner, as in File; unset: the component's user
}

// Port is a port inside the instance's network.
type Port struct {
	Name   spec.PortName `json:"name"`
	Number int           `json:"number"`
}

// Health is a check. Exactly one of HTTPPath with Port, Port alone (TCP), and Exec is used.
type Health struct {
	Port           int      `json:"port,omitempty"`
	HTTPPath       string   `json:"http_path,omitempty"`
	Exec           []string `json:"exec,omitempty"`
	IntervalMillis int64    `json:"interval_ms"`
	TimeoutMillis  int64    `json:"timeout_ms"`
	Failures       int      `json:"failures"`
}

// Scratch is a tmpfs.
type Scratch struct {
	Path      string `json:"path"`
	SizeBytes int64  `json:"size_bytes"`
	Mode      uint32 `json:"mode"`
}

// Volume is a directory that outlives instances, one per environment, component and name.
type Volume struct {
	Name spec.VolumeName `json:"name"`
	Path string          `json:"path"`
}

// Resources are limits; zero is none.
type Resources struct {
	CPUMillis   int64 `json:"cpu_millis,omitempty"`
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	PIDs        int64 `json:"pids,omitempty"`
}

// Route brings traffic from outside to a component's port.
type Route struct {
	Name      spec.RouteName     `json:"name"`
	Host      string             `json:"host,omitempty"`
	Path      string             `json:"path,omitempty"`
	TLS       string             `json:"tls,omitempty"`
	TCP       string             `json:"tcp,omitempty"`
	Component spec.ComponentName `json:"component"`
	Port      spec.PortName      `json:"port"`
	Number    int                `json:"number"`
}

// Rollout is spec.Rollout with integer milliseconds.
type Rollout struct {
	MaxParallel            int   `json:"max_parallel"`
	Canary                 []int `json:"canary,omitempty"`
	MinHealthyMillis       int64 `json:"min_healthy_ms"`
	HealthyDeadlineMillis  int64 `json:"healthy_deadline_ms"`
	ProgressDeadlineMillis int64 `json:"progress_deadline_ms"`
	AutoRevert             bool  `json:"auto_revert"`
	KeepWarmMillis         int64 `json:"keep_warm_ms"`
	DrainMillis            int64 `json:"drain_ms"`
}

// Digest returns the component's identity.
func (c Component) Digest() (digest.Digest, error) { return digest.OfValue(c) }

// Digest returns the release's identity.
func (r Record) Digest() (digest.Digest, error) { return digest.OfValue(r) }

// Digest returns the bundle's identity.
func (b Bundle) Digest() (digest.Digest, error) { return digest.OfValue(b) }
