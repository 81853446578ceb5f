// Package runtime is the contract of a host that runs instances.
//
// # Life of an instance
//
//	Create ─▶ created ─Start─▶ running ─▶ exited
//	   └──────────┴───────────────┴─────────┴──Remove─▶ absent
//
// Create makes all that an instance needs (root, namespaces, network, limits, files) and a process
// that waits; Start lets that process become the component's. Between the two, sockets can be opened
// inside its network (Observation names it), so that a component finds what it uses from its first instruction on.
// An exited instance is never started again: it is removed, and another one created.
//
// A running instance can be frozen: it stands still from then on, for whoever wants to see what was done to it, and
// can only be stopped or removed.
//
// A host remembers its instances without the caller: after a restart of either, List tells all of them
// with the Spec's Identity that Create was given. A host starts nothing by itself and retires nothing
// by itself; it does run the health checks, and tells their results.
//
// Every method may be called concurrently, also for one instance. Every method can be repeated: to
// create what is created, start what is running, or remove what is absent succeeds and changes nothing.
package runtime

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/instance"
)

// Host runs instances.
type Host interface {
	// Create makes the instance. On return it survives a crash of the caller. It fails with
	// fault.Invalid for a spec that this host can't run (the cause names the field), fault.NotFound when the root
	// is not on the host, fault.Conflict when the ID exists with another spec, fault.Unavailable otherwise.
	Create(ctx context.Context, spec Spec) error

	// Start starts a created instance. It returns when the process has been let go, not when it is
	// healthy. It fails with fault.NotFound for an unknown ID and fault.Conflict for one that has exited.
	Start(ctx context.Context, id instance.ID) error

	// Stop sends the instance's stop signal, waits up to its stop timeout, then kills all that is left of it. It returns once no
	// process is left. The instance stays in List as exited until it is removed. To stop what is absent succeeds.
	Stop(ctx context.Context, id instance.ID) error

	// Remove kills what still runs and deletes everything of the instance except its volumes and its log.
	Remove(ctx context.Context, id instance.ID) error

	// List observes every instance of this host, sorted by ID. It is cheap: it reads what the host already knows.
	List(ctx context.Context) ([]instance.Observation, error)

	// Changed returns a channel that is closed at the first change of what List returns after the call.
	// It carries no data: the caller lists again.
	Changed() <-chan struct{}

	// Network returns how to reach inside an instance's network: see Network. fault.NotFound when it has none (any more).
	Network(ctx context.Context, id instance.ID) (Network, error)

	// Exec runs a command in a running instance beside its own process, as its user and within all of its limits, until it ends, and
	// returns its exit code (128+n: killed by signal n; -1: not known). It ends with ctx, with the instance, and with the caller. It fails with
	// fault.NotFound for an unknown instance, fault.Conflict for one that does not run, fault.Invalid for a command that
	// the instance does not have or a host that can't do it; then nothing ran. Whoever calls it taints the instance: that is for the caller to record.
	Exec(ctx context.Context, id instance.ID, session Session) (code int, err error)

	// Measure looks at what an instance runs on now: it reads all of it again, and takes nothing from what Create was given.
	// fault.NotFound for an instance that is not on the host.
	Measure(ctx context.Context, id instance.ID) (Measurement, error)

	// Inspect looks at a running instance from outside, and tells the facts that follow from the question and those that it found. It
	// changes nothing, and takes nothing from what Create was given. fault.NotFound for an instance that is not on the host,
	// fault.Conflict for one that does not run.
	Inspect(ctx context.Context, q Question) (Inspection, error)

	// Freeze stops all processes of a running instance where they are, for good: Stop and Remove end them as they stand, and nothing else
	// lets them go on. It returns once they stand still. Its checks end, so that its health stays what it was; it is still listed as running,
	// also by another Host. It fails with fault.NotFound for an unknown instance, fault.Conflict for one that does not run, fault.Invalid for
	// a host that can't do it.
	Freeze(ctx context.Context, id instance.ID) error

	// Evidence takes down what can be told of a running instance from outside. Of a frozen one, it is all of one moment. It changes nothing.
	// It fails as Inspect does.
	Evidence(ctx context.Context, q Question) (Evidence, error)

	// Logs writes the instance's log to w, oldest first, from the tail lines on (tail < 0: all), and with follow
	// goes on until the instance is removed or ctx ends. Logs of removed instances stay readable while they are retained.
	Logs(ctx context.Context, id instance.ID, w io.Writer, tail int, follow bool) error

	// CopyVolume makes a version or a snapshot of a volume from another's data, and returns what it holds. On return it is durable; before,
	// and after an error, nothing is at its place. To make what is there already succeeds, and tells what it held when it was made. progress,
	// unless it is nil, is told how far it is. A first version that no instance has had yet counts as empty. It fails with fault.NotFound when there
	// is nothing to copy, with fault.Conflict while an instance uses what is copied, unless it is a live copy, or while another call makes or
	// deletes the same place; fault.Unavailable otherwise, for want of space among others. It ends soon after ctx.
	CopyVolume(ctx context.Context, c VolumeCopy, progress func(done, total int64)) (Content, error)

	// DeleteVolume deletes a version or a snapshot of a volume for good; what is absent is deleted. fault.Conflict while an instance uses it, or
	// while another call makes or deletes it.
	DeleteVolume(ctx context.Context, p Place) error

	// DestroyVolumes deletes the volumes of an environment for good, with all their versions and snapshots. fault.Conflict while an
	// instance uses one.
	DestroyVolumes(ctx context.Context, env string) error
}

// Network says how another process reaches an instance's loopback-only network.
type Network struct {
	Path string // of the network namespace, for setns(2)
}

// Session is a command that somebody talks to.
type Session struct {
	Args   []string
	Env    []string // "KEY=value", beside the instance's
	TTY    bool     // on a terminal of its own: what it writes comes on Stdout, and Stdin is typed
	Size   Size     // of that terminal
	Resize <-chan Size
	Stdin  io.Reader // read until its end, which the command then sees; nil: it is at its end. A Read may outlast Exec
	Stdout io.Writer
	Stderr io.Writer
}

// Size is a terminal's.
type Size struct{ Rows, Cols uint16 }

// Question says what an instance should be.
type Question struct {
	Spec      Spec     // as its release says, without the values of secrets
	Listeners []string // "ADDRESS:PORT", beside the Ports, where the gateway may listen in its network
	Opened    bool     // the gateway said that it opened the Listeners: they must be there
	Content   bool     // hash the root as well, all of it
}

// Inspection is what an instance should be, and what it was found to be, in the same terms.
type Inspection struct {
	Want drift.Facts
	Got  drift.Facts
}

// Measurement is what an instance was found to run on.
type Measurement struct {
	Root digest.Digest // of the bytes that its root is mounted from
}

// Spec is all that a host needs to run an instance. It is self-contained: a host reads nothing else
// but the root and the volumes.
type Spec struct {
	Identity  instance.Identity `json:"identity"`
	Root      digest.Digest     `json:"root"` // of the EROFS file
	Args      []string          `json:"args"`
	Env       []string          `json:"env"` // "KEY=value", sorted; the host adds a PATH when there is none
	WorkDir   string            `json:"workdir,omitempty"`
	User      string            `json:"user,omitempty"` // "uid[:gid]", or names that the root's /etc/passwd and group resolve
	Hosts     []HostEntry       `json:"hosts,omitempty"`
	Files     []File            `json:"files,omitempty"`
	Scratches []Scratch         `json:"scratches,omitempty"`
	Volumes   []Volume          `json:"volumes,omitempty"`
	Ports     []int             `json:"ports,omitempty"`
	Health    *Health           `json:"health,omitempty"` // nil: passing while running with all Ports accepting

	CPUMillis   int64         `json:"cpu_millis,omitempty"`
	MemoryBytes int64         `json:"memory_bytes,omitempty"`
	PIDs        int64         `json:"pids,omitempty"`
	StopSignal  string        `json:"stop_signal,omitempty"`  // "SIGTERM" unless said
	StopTimeout time.Duration `json:"stop_timeout,omitempty"` // 10 s unless said
	Isolation   string        `json:"isolation,omitempty"`    // "" or "gvisor"

	DynamicPorts bool `json:"dynamic_ports,omitempty"` // it may listen on other ports than Ports: those of its choice are no finding
}

// HostEntry is a line of the instance's /etc/hosts.
type HostEntry struct {
	Address string   `json:"address"` // of 127.0.0.0/8
	Names   []string `json:"names"`
}

// File is put into the instance read-only.
type File struct {
	Path    string `json:"path"`
	Content []byte `json:"content"`
	Mode    uint32 `json:"mode"`           // permission bits; 0444 unless said
	User    string `json:"user,omitempty"` // owner, as in Spec; the instance's user unless said

	// Secret names the version of a secret that Content is the value of; "" for what is no secret. A host keeps the value in memory that
	// is never written to a disk, as the file that the instance reads, and nowhere else; by its name it knows it again.
	Secret digest.Digest `json:"secret,omitempty"`
}

// WithoutSecrets returns the spec without the values of secrets: what a host may remember of it. It shares nothing that is changed
// with s.
func (s Spec) WithoutSecrets() Spec {
	s.Files = slices.Clone(s.Files)
	for i := range s.Files {
		if s.Files[i].Secret != "" {
			s.Files[i].Content = nil
		}
	}
	return s
}

// ClearSecrets overwrites the values of secrets, which a host does not keep, once it has been given them.
func (s Spec) ClearSecrets() {
	for _, f := range s.Files {
		if f.Secret != "" {
			clear(f.Content)
		}
	}
}

// HasSecrets reports whether a secret is delivered to the instance.
func (s Spec) HasSecrets() bool {
	return slices.ContainsFunc(s.Files, func(f File) bool { return f.Secret != "" })
}

// Scratch is a noexec tmpfs. There is no other writable place but volumes: not /tmp, /run or /dev/shm, unless they are scratches.
type Scratch struct {
	Path      string `json:"path"`
	SizeBytes int64  `json:"size_bytes"`
	Mode      uint32 `json:"mode"` // 01777 unless said
}

// Volume is a directory of the host that outlives the instance: a version of the volume Name of Component in Env.
type Volume struct {
	Env       string `json:"env"`
	Component string `json:"component"`
	Name      string `json:"name"`
	Path      string `json:"path"`              // in the instance
	Version   int    `json:"version,omitempty"` // from 2 on; 0: 1
}

// Place is where the volume's data lie.
func (v Volume) Place() Place { return Place{v.Env, v.Component, v.Name, max(v.Version, 1), 0} }

// Place is where data of a volume lie: in a version that instances can get, or in a snapshot, which none ever gets.
type Place struct {
	Env       string
	Component string
	Name      string
	Version   int // 0: it is a snapshot
	Snapshot  int // 0: it is a version
}

// String names the place for people.
func (p Place) String() string {
	if p.Snapshot > 0 {
		return fmt.Sprintf("snapshot %d of volume %s/%s of environment %s", p.Snapshot, p.Component, p.Name, p.Env)
	}
	return fmt.Sprintf("version %d of volume %s/%s of environment %s", p.Version, p.Component, p.Name, p.Env)
}

// VolumeCopy asks for a copy of a volume's data.
type VolumeCopy struct {
	From, To Place
	Live     bool // From may be written to meanwhile: then the copy need not be of one moment
}

// Content is what a copy holds.
type Content struct {
	Bytes   int64         `json:"bytes"`             // of files, as their sizes say
	Files   int           `json:"files"`             // and directories, links, FIFOs
	Digest  digest.Digest `json:"digest"`            // of all of it, owners and times included
	Changed int           `json:"changed,omitempty"` // of a live copy: entries that still changed when it ended; 0: it is of one moment
}

// Health is a check that the host runs. With Exec it is a command in the instance; with HTTPPath a GET
// on Port that passes on 200..399; else a TCP connect to Port.
type Health struct {
	Port     int           `json:"port,omitempty"`
	HTTPPath string        `json:"http_path,omitempty"`
	Exec     []string      `json:"exec,omitempty"`
	Interval time.Duration `json:"interval"`
	Timeout  time.Duration `json:"timeout"`
	Failures int           `json:"failures"`
}
