// Package spec holds what should run: the checked values that an app's configuration evaluates to
// for one environment. It knows nothing of the language that they were written in (spec/parse does).
//
// Values are plain and immutable by convention: whoever receives one does not change it. Durations
// are written as in Go ("1m30s"), sizes in bytes. Maps are only ever ordered by key.
package spec

import "time"

// Names have a type each, so that the compiler catches swapped arguments. Each matches
// ^[a-z]([a-z0-9-]*[a-z0-9])?$ and has at most 63 characters (a DNS label, RFC 1123).
type (
	AppName       string
	EnvName       string
	ComponentName string
	ImageName     string
	PortName      string
	RouteName     string
	VolumeName    string
)

// Range is a place in a source file. Lines and columns count from 1; columns count bytes.
type Range struct {
	File      string `json:"file"`
	Line      int    `json:"line"`
	Column    int    `json:"column"`
	EndLine   int    `json:"endLine"`
	EndColumn int    `json:"endColumn"`
}

// App is one app's configuration, evaluated for one environment.
type App struct {
	Name       AppName
	Env        Environment
	Images     []Image     // sorted by name
	Components []Component // sorted by name
	Routes     []Route     // sorted by name
}

// Environment is a named place that runs one release at a time.
type Environment struct {
	Name        EnvName
	PromoteFrom EnvName // "" when none
	OnDrift     Response
	Rollout     Rollout
	Range       Range
}

// Response is what follows when an instance was measured and differs from its release.
type Response string

// The responses.
const (
	Replace Response = "replace" // as one that is tainted: beside, then retire. What an environment does that says nothing
	Alert   Response = "alert"   // the entry in the ledger, and nothing else
	Freeze  Response = "freeze"  // out of traffic, frozen, taken down as evidence; then replaced
)

// Responses has all of them.
func Responses() []Response { return []Response{Replace, Alert, Freeze} }

// Image says how an image comes to be. Exactly one of Ref, Go, Layers and Debian is set.
type Image struct {
	Name   ImageName
	Ref    string // "registry.example.com/cache:7", "oci:DIR", "oci-archive:FILE", "docker-archive:FILE"
	Go     *GoImage
	Layers *LayersImage
	Debian *DebianImage
	Range  Range
}

// GoImage is built from a main package of the Go module that holds the app's directory.
type GoImage struct {
	Package string            // "./cmd/web"
	Tags    []string          // build tags
	Ldflags string            // added to "-s -w -buildid="
	Env     map[string]string // of the build: GOEXPERIMENT and the like
}

// LayersImage adds files to a base.
type LayersImage struct {
	Base       ImageName         // "" is an empty base
	Copy       map[string]string // source in the app's directory to absolute destination in the image
	Env        map[string]string
	User       string
	WorkDir    string
	Entrypoint []string
	Command    []string
}

// DebianImage is made of packages of a Debian suite.
type DebianImage struct {
	Suite      string // "bookworm"
	Packages   []string
	Env        map[string]string
	User       string
	WorkDir    string
	Entrypoint []string
	Command    []string
}

// Component is a thing that runs. What is unset falls back to the image's configuration.
type Component struct {
	Name         ComponentName
	Image        ImageName
	Replicas     int
	Entrypoint   []string // nil: the image's
	Command      []string // nil: the image's, unless Entrypoint is set
	WorkDir      string
	User         string // "uid[:gid]" or a name in the image's passwd; "" is the image's
	Env          map[string]string
	Uses         []PortRef // the only connections that it can open
	Egress       []string  // "host:port" or "*.host:port", reached through the logging forward proxy
	Files        []File    // sorted by path
	Secrets      []Secret  // sorted by path
	Ports        []Port    // sorted by name
	Health       *Health   // nil: healthy when the process runs and every port accepts
	Scratches    []Scratch // sorted by path
	Volumes      []Volume  // sorted by name
	Resources    Resources
	StopSignal   string        // "SIGTERM" unless said
	StopTimeout  time.Duration // from the signal to SIGKILL; 10 s unless said
	Isolation    string        // "" (namespaces) or "gvisor"
	DynamicPorts bool          // it listens on ports that it chooses when it runs
	Range        Range
}

// PortRef names a port of a component of the same app.
type PortRef struct {
	Component ComponentName `json:"component"`
	Port      PortName      `json:"port"`
}

// File is put into the instance read-only.
type File struct {
	Path    string // absolute
	Content []byte
	Mode    uint32 // permission bits; 0444 unless said
	User    string // "uid[:gid]"; "" is root's
	Range   Range
}

// Secret is a named secret of the environment, delivered as a file. A release pins a version of it.
type Secret struct {
	Path  string
	Name  string
	Mode  uint32 // 0400 unless said
	User  string // owner, "uid[:gid]" or a name; "" is the component's user
	Range Range
}

// Port is a port that the component listens on, inside its own network.
type Port struct {
	Name     PortName
	Number   int    // 1..65535
	Protocol string // "tcp"
	Range    Range
}

// Health says when an instance may have traffic. Exactly one of HTTP, TCP and Exec is set.
type Health struct {
	HTTP     *HTTPCheck
	TCP      *TCPCheck
	Exec     *ExecCheck
	Interval time.Duration // between checks; 1 s unless said
	Timeout  time.Duration // of one check; 1 s unless said
	Failures int           // consecutive failures that make it unhealthy; 3 unless said
}

// HTTPCheck passes on a status from 200 to 399.
type HTTPCheck struct {
	Port PortName
	Path string
}

// TCPCheck passes when the port accepts.
type TCPCheck struct{ Port PortName }

// ExecCheck passes when the command exits 0 inside the instance.
type ExecCheck struct{ Command []string }

// Scratch is memory-backed (tmpfs), noexec, and gone with the instance.
type Scratch struct {
	Path      string
	SizeBytes int64 // 64 MiB unless said
	Mode      uint32
}

// Volume is the one place where data outlives an instance.
type Volume struct {
	Name     VolumeName
	Path     string
	Snapshot string // BeforeChange, or "": none
}

// BeforeChange asks for a copy of a volume before another version of its component gets it.
const BeforeChange = "before-change"

// Resources are limits. Zero is the default: no CPU limit, 512 MiB, 512 processes.
type Resources struct {
	CPUMillis   int64 // thousandths of a core
	MemoryBytes int64
	PIDs        int64
}

// Route brings traffic from outside to a component's port.
type Route struct {
	Name  RouteName
	Host  string // "shop.localhost"; "" with Listen
	Path  string // prefix, "/" unless said
	TLS   string // "" (plain HTTP), "internal" (own authority) or "acme"
	TCP   string // listen address "127.0.0.1:5432" of a TCP route; Host and Path are "" then
	To    PortRef
	Range Range
}

// Rollout says how an environment goes from one release to the next. DESIGN names its defaults.
type Rollout struct {
	MaxParallel      int           `json:"max_parallel"`      // instances that start at a time, per component; 1 or more
	Canary           []int         `json:"canary,omitempty"`  // percent of traffic, step by step; empty: blue/green
	MinHealthyTime   time.Duration `json:"min_healthy_time"`  // healthy this long before it counts
	HealthyDeadline  time.Duration `json:"healthy_deadline"`  // from start to healthy, per instance
	ProgressDeadline time.Duration `json:"progress_deadline"` // without progress this long, the rollout failed
	AutoRevert       bool          `json:"auto_revert"`
	KeepWarm         time.Duration `json:"keep_warm"` // old instances stay this long after the switch
	Drain            time.Duration `json:"drain"`     // from out of traffic to stopped, at most
}

// DefaultRollout is what an environment without a rollout block has.
func DefaultRollout() Rollout {
	return Rollout{
		MaxParallel:      1,
		MinHealthyTime:   10 * time.Second,
		HealthyDeadline:  5 * time.Minute,
		ProgressDeadline: 10 * time.Minute,
		AutoRevert:       true,
		KeepWarm:         15 * time.Minute,
		Drain:            30 * time.Second,
	}
}
