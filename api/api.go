// Package api has the wire types and paths of invar's HTTP API, version 1.
//
// The API is REST with JSON over a unix socket or over TCP. It is described by an OpenAPI 3.1 document
// that the server gives out at /openapi.json. Errors are problem details (RFC 9457), see Problem.
// Live changes are server-sent events, see PathEvents. The ledger is also served as tlog-tiles
// (https://c2sp.org/tlog-tiles) under /ledger/, and releases as OCI artifacts under /v2/.
//
// Rules of the format: names are lower case with underscores; times are RFC 3339 in UTC; sizes have their
// unit in the name; digests are "sha256:" and 64 hexadecimal digits. A server refuses fields that it
// doesn't know, so that nothing that was asked for is ignored; a client ignores them, so that a server may
// tell more. Anything else that would break a client raises Level.
//
// The types here belong to the wire alone: server and client convert at the edge.
package api

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// Level is the newest level of the API that this program speaks; MinLevel is the oldest.
const (
	Level    = 1
	MinLevel = 1
)

// Headers that both sides send with every message under /v1.
const (
	HeaderVersion = "Invar-Version" // the program's version, for people: "0.1.0"
	HeaderLevel   = "Invar-Api"     // the sender's API level, an integer
)

// Content types.
const (
	TypeJSON    = "application/json"
	TypeProblem = "application/problem+json"
	TypeEvents  = "text/event-stream"
	TypeLog     = "text/plain; charset=utf-8"
)

// Paths of the operations, as patterns of net/http.
const (
	PathServer       = "/v1/server"
	PathEnvironments = "/v1/environments"
	PathEnvironment  = "/v1/environments/{env}"
	PathHistory      = "/v1/environments/{env}/history"
	PathPlan         = "/v1/environments/{env}/plan"
	PathApply        = "/v1/environments/{env}/apply"
	PathRollback     = "/v1/environments/{env}/rollback"
	PathRollbackPlan = "/v1/environments/{env}/rollback/plan"
	PathVolumes      = "/v1/environments/{env}/volumes"
	PathVolumeDelete = "/v1/environments/{env}/volumes/delete"
	PathDestroy      = "/v1/environments/{env}/destroy"
	PathFork         = "/v1/environments/{env}/fork"
	PathPromotion    = "/v1/environments/{env}/promotion"
	PathConfirm      = "/v1/environments/{env}/confirm"
	PathReview       = "/v1/environments/{env}/review"
	PathChanges      = "/v1/changes"
	PathChange       = "/v1/changes/{change}"
	PathApprove      = "/v1/changes/{change}/approve"
	PathReject       = "/v1/changes/{change}/reject"
	PathWithdraw     = "/v1/changes/{change}/withdraw"
	PathCarryOut     = "/v1/changes/{change}/apply"
	PathRevoke       = "/v1/releases/{ref}/revoke"
	PathAttest       = "/v1/releases/{ref}/attest"
	PathWhoAmI       = "/v1/whoami"
	PathMeasure      = "/v1/environments/{env}/verify"
	PathDrift        = "/v1/environments/{env}/drift"
	PathDrifts       = "/v1/drift"
	PathLogs         = "/v1/environments/{env}/logs/{component}"
	PathSecrets      = "/v1/environments/{env}/secrets"
	PathSecret       = "/v1/environments/{env}/secrets/{name}"
	PathExec         = "/v1/environments/{env}/exec/{component}"
	PathRecording    = "/v1/recordings/{digest}"
	PathRelease      = "/v1/releases/{ref}"
	PathDiff         = "/v1/diff"
	PathEvents       = "/v1/events"
	PathEntries      = "/v1/ledger/entries"
	PathEntry        = "/v1/ledger/entries/{index}"
	PathCheckpoint   = "/v1/ledger/checkpoint"
	PathVerify       = "/v1/ledger/verify"
	PathWitnesses    = "/v1/ledger/witnesses"
	PathTokens       = "/v1/tokens"
	PathToken        = "/v1/tokens/{id}"
	PathLogin        = "/v1/login"
	PathLoginSSH     = "/v1/login/ssh"
	PathLoginSession = "/v1/login/ssh/session"

	PathTiles    = "/ledger/"
	PathRegistry = "/v2/"
	PathOpenAPI  = "/openapi.json"
	PathDocs     = "/docs"
	PathHealth   = "/healthz"
	PathMetrics  = "/metrics"
)

// EnvironmentPath fills in one of the patterns that name an environment.
func EnvironmentPath(pattern, env string) string { return fill(pattern, "{env}", env) }

// ChangePath fills in one of the patterns that name a change.
func ChangePath(pattern string, number int) string {
	return fill(pattern, "{change}", strconv.Itoa(number))
}

// RevokePath is where a release is revoked.
func RevokePath(ref string) string { return fill(PathRevoke, "{ref}", ref) }

// AttestPath is where it is attested that a release was made again.
func AttestPath(ref string) string { return fill(PathAttest, "{ref}", ref) }

// LogsPath is where the log of a component is.
func LogsPath(env, component string) string {
	return fill(fill(PathLogs, "{env}", env), "{component}", component)
}

// SecretPath is where the versions of a secret are.
func SecretPath(env, name string) string {
	return fill(fill(PathSecret, "{env}", env), "{name}", name)
}

// ReleasePath is where a release is.
func ReleasePath(ref string) string { return fill(PathRelease, "{ref}", ref) }

// EntryPath is where a ledger entry is.
func EntryPath(index uint64) string {
	return fill(PathEntry, "{index}", strconv.FormatUint(index, 10))
}

// TokenPath is where a token is.
func TokenPath(id string) string { return fill(PathToken, "{id}", id) }

// fill replaces a wildcard by an escaped segment.
func fill(pattern, wildcard, segment string) string {
	return strings.Replace(pattern, wildcard, url.PathEscape(segment), 1)
}

// Levels are the API levels that a server speaks.
type Levels struct {
	Min int `json:"min" doc:"The oldest API level that the server speaks." example:"1"`
	Max int `json:"max" doc:"The newest API level that the server speaks." example:"1"`
}

// Check says whether a client of the level can talk to a server of these levels, and if not, who has to be
// upgraded. The versions are those of the two programs. Its errors are of kind fault.Invalid.
func (l Levels) Check(level int, clientVersion, serverVersion string) error {
	switch {
	case level > l.Max:
		return fault.WithHint(
			fault.Errorf(fault.Invalid, "the client (invar %s) speaks API level %d, the server (invar %s) only up to %d: the client is newer than the server",
				clientVersion, level, serverVersion, l.Max),
			"upgrade the server to invar %s, or use the client of invar %s", clientVersion, serverVersion)
	case level < l.Min:
		return fault.WithHint(
			fault.Errorf(fault.Invalid, "the client (invar %s) speaks API level %d, the server (invar %s) only from %d on: the client is older than the server",
				clientVersion, level, serverVersion, l.Min),
			"upgrade the client to invar %s", serverVersion)
	}
	return nil
}

// ParseLevel reads a HeaderLevel. Its errors are of kind fault.Invalid.
func ParseLevel(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || strconv.Itoa(n) != s {
		return 0, fault.Errorf(fault.Invalid, "header %s: %q is not an API level", HeaderLevel, s)
	}
	return n, nil
}

// Ref names a release, on the command line and in paths: ENV (its head), ENV@GENERATION, or a digest.
type Ref struct {
	Env        string
	Generation int // 0: the head
	Digest     digest.Digest
}

// ParseRef reads a Ref. Its errors are of kind fault.Invalid.
func ParseRef(s string) (Ref, error) {
	if strings.HasPrefix(s, "sha256:") {
		d, err := digest.Parse(s)
		return Ref{Digest: d}, err
	}
	env, gen, at := strings.Cut(s, "@")
	r := Ref{Env: env}
	if at {
		n, err := strconv.Atoi(gen)
		if err != nil || n < 1 {
			return Ref{}, fault.Errorf(fault.Invalid, "%q: %q is not a generation", s, gen)
		}
		r.Generation = n
	}
	if env == "" || strings.ContainsAny(env, "/:@ ") || r.String() != s {
		return Ref{}, fault.WithHint(fault.Errorf(fault.Invalid, "%q names no release", s), "write ENV, ENV@GENERATION or a digest")
	}
	return r, nil
}

func (r Ref) String() string {
	switch {
	case r.Digest != "":
		return string(r.Digest)
	case r.Generation != 0:
		return fmt.Sprintf("%s@%d", r.Env, r.Generation)
	}
	return r.Env
}
