package api

import "time"

// A session (GET PathExec, upgraded to a WebSocket) is messages of one byte, the kind, and what follows it. The server begins with
// ExecOpened or ExecError, and ends with ExecExit or ExecError.
const (
	ExecStdin    byte = 0 // to the command
	ExecStdinEnd byte = 1 // nothing follows: its input has ended
	ExecResize   byte = 2 // rows and columns, two bytes each, big-endian
	ExecStdout   byte = 4
	ExecStderr   byte = 5
	ExecExit     byte = 6 // ExecEnd as JSON
	ExecOpened   byte = 7 // ExecSession as JSON
	ExecError    byte = 8 // Problem as JSON
)

// MaxExecMessage is the longest message of a session in bytes.
const MaxExecMessage = 64 << 10

// ExecSession says that a session begins.
type ExecSession struct {
	ID        string    `json:"id"`
	Instance  string    `json:"instance"`
	Deadline  time.Time `json:"deadline"`
	Encrypted bool      `json:"encrypted"` // the recording, to the platform's auditors
}

// ExecEnd says how it ended: "exited", "closed", "deadline", "full", "stopped".
type ExecEnd struct {
	How      string `json:"how"`
	ExitCode int    `json:"exit_code"`
}

// ExecPath is where sessions in a component are opened. Its query has reason, instance, command (once for each argument), tty, term, rows, cols.
func ExecPath(env, component string) string {
	return fill(fill(PathExec, "{env}", env), "{component}", component)
}

// RecordingPath is where the recording of a session is.
func RecordingPath(digest string) string { return fill(PathRecording, "{digest}", digest) }
