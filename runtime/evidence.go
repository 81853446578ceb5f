package runtime

import (
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/instance"
)

// TypeEvidence is the media type of Evidence, as canonical JSON (RFC 8785).
const TypeEvidence = "application/vnd.invar.evidence.v1+json"

// Evidence is what a host can tell of an instance from outside, at one time. Rules of the format: a field's name and meaning never change, an
// unset field adds no bytes, V says which rules it follows. It is bounded: Truncated names what is not there in full, and Missing what
// could not be read. It has no content of memory, of files or of secrets, no environment of a process, and of secrets no digest; what a
// process has in its arguments and in its log is there as it is.
type Evidence struct {
	V         int                `json:"v"` // 1
	Instance  instance.Identity  `json:"instance"`
	At        time.Time          `json:"at"`     // when it was complete
	Frozen    bool               `json:"frozen"` // all processes in the instance's cgroup stood still meanwhile
	Want      drift.Facts        `json:"want"`   // what follows from the release
	Got       drift.Facts        `json:"got"`    // what was measured
	Findings  []instance.Finding `json:"findings,omitempty"`
	Processes []Process          `json:"processes"`         // in the instance's cgroup or namespaces, by PID
	Foreign   []instance.Foreign `json:"foreign,omitempty"` // processes that were found in it and are not its own
	Sockets   []Socket           `json:"sockets,omitempty"` // of its network: listening, connected, bound
	Mounts    []string           `json:"mounts,omitempty"`  // lines of /proc/PID/mountinfo of the first process
	Cgroup    map[string]string  `json:"cgroup,omitempty"`  // limits and counters, by file
	Scratches []FileFact         `json:"scratches,omitempty"`
	Files     []FileFact         `json:"files,omitempty"` // that were put into it
	Log       []string           `json:"log,omitempty"`   // the last lines
	Truncated []string           `json:"truncated,omitempty"`
	Missing   []string           `json:"missing,omitempty"`
}

// Process is a process as the machine sees it: PIDs, users and paths are the machine's.
type Process struct {
	PID        int               `json:"pid"`
	Parent     int               `json:"parent"`
	StartedAt  time.Time         `json:"started_at"`
	Program    string            `json:"program,omitempty"` // its file
	Args       []string          `json:"args,omitempty"`
	User       string            `json:"user,omitempty"`  // real, effective, saved and file system's
	Group      string            `json:"group,omitempty"` // the same
	Threads    int               `json:"threads,omitempty"`
	InCgroup   bool              `json:"in_cgroup,omitempty"`  // of the instance
	Namespaces map[string]string `json:"namespaces,omitempty"` // by kind: "net:[4026531840]"
	WorkDir    string            `json:"workdir,omitempty"`
	Open       []string          `json:"open,omitempty"`   // "NUMBER TARGET" of each file descriptor
	Mapped     []string          `json:"mapped,omitempty"` // files in its memory
}

// Socket is a socket in the instance's network.
type Socket struct {
	Network string `json:"network"` // "tcp", "tcp6", "udp", "udp6"
	State   string `json:"state"`
	Local   string `json:"local"`
	Remote  string `json:"remote,omitempty"`
	UID     int    `json:"uid"`
	Inode   uint64 `json:"inode,omitempty"` // as in Open of its process: "socket:[INODE]"
}

// FileFact is a file without its content.
type FileFact struct {
	Path   string        `json:"path"` // in the instance
	Mode   string        `json:"mode"` // "-rw-r--r--"
	User   int           `json:"user"` // owner, on the machine
	Group  int           `json:"group"`
	Size   int64         `json:"size"`
	SHA256 digest.Digest `json:"sha256,omitempty"` // of a regular file that holds no secret, while it is not too large
	Target string        `json:"target,omitempty"` // of a symbolic link
	Secret bool          `json:"secret,omitempty"`
}
