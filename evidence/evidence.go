// Package evidence turns a ledger into a directory that an auditor can check without its server, and checks such a directory.
//
// # A bundle
//
// Export writes, and Verify reads, a directory that is complete by itself:
//
//	manifest.json            what is here: scope, tree, and the SHA-256 of every other file
//	manifest.note            the log's own signature of the manifest (a signed note), with the entry that recorded the export
//	checkpoint, tile/…       the whole ledger as served (https://c2sp.org/tlog-tiles)
//	checkpoints/             the signed tree heads at the scope's begin and end, and the newest that a quorum of witnesses cosigned
//	entries.jsonl            every entry's exact bytes, one a line: line N+1 is entry N
//	proofs/                  tlog-proofs of the entries that matter most, and the proof that the ledger only grew
//	trust/                   the log's key, the witnesses' policy, allowed_signers with the times of every key
//	approvals/               what people signed, and their signatures (SSHSIG)
//	policy/                  decisions, with the bundles and inputs to come to them again
//	releases/, bundles/, plans/, sbom/, provenance/, attestations/, recordings/, bodies/
//	population.csv, population.json, controls.json, oscal/, report.html, VERIFY.md: what follows from all of these
//
// Leaves of the whole ledger are always there, since the state is their fold; bodies are there for the scope. Of an environment
// alone, entries of the others are there too, without their bodies.
//
// # What Verify trusts
//
// Nothing but the log's verifier key, which an auditor has from elsewhere, and the keys that the platform's definition gave people.
// Not the exporter, and not the server: Verify folds the ledger again, and asks of every change whether the rules that were in force
// at its place in the ledger were kept. A server that wrote what it should not have is found out, although its log is well signed.
//
// A Failure says that something is not what it claims to be. A Gap is something that the rules ask for and that did not happen, or not in
// time; a Notice is what an auditor wants to look at. Gaps and notices are results, and no reason for Verify to fail.
package evidence

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// Files of a bundle.
const (
	FileManifest   = "manifest.json"
	FileNote       = "manifest.note"
	FileEntries    = "entries.jsonl"
	FileCheckpoint = "checkpoint"
	FileFrom       = "checkpoints/from"
	FileTo         = "checkpoints/to"
	FileCosigned   = "checkpoints/cosigned"
	FileGrowth     = "proofs/consistency.json"
	FileKey        = "trust/ledger.vkey"
	FileWitnesses  = "trust/witnesses.policy"
	FileSigners    = "trust/allowed_signers"
	FilePopulation = "population.csv"
	FileStatement  = "population.json"
	FileControls   = "controls.json"
	FileResults    = "oscal/assessment-results.json"
	FileComponents = "oscal/component-definition.json"
	FileReport     = "report.html"
	FileGuide      = "VERIFY.md"
	FileSums       = "SHA256SUMS"
)

// Scope is the part of a ledger that a bundle is about: entries From up to but not including To, of an environment or of all.
type Scope struct {
	From int64        `json:"from"`
	To   int64        `json:"to"`
	Env  spec.EnvName `json:"env,omitempty"` // "": all. The platform's own always belongs to it, and what belongs to no environment
}

// has reports whether an entry belongs to the scope.
func (s Scope) has(index int64, env spec.EnvName) bool {
	return index >= s.From && index < s.To && (s.Env == "" || env == s.Env || env == "" || env == platform.Env)
}

// File is a file of a bundle.
type File struct {
	Path   string        `json:"path"`
	Digest digest.Digest `json:"digest"`
	Bytes  int64         `json:"bytes"`
}

// Manifest says what a bundle holds. It is written as canonical JSON (RFC 8785) and has one spelling.
type Manifest struct {
	V     int       `json:"v"` // 1
	Log   string    `json:"log"`
	VKey  string    `json:"vkey"`
	Scope Scope     `json:"scope"`
	Size  int64     `json:"size"` // entries of the tree that is here
	Root  string    `json:"root"` // its hash, base64
	At    time.Time `json:"at"`
	Tool  string    `json:"tool"`  // version of invar
	Files []File    `json:"files"` // all but the manifest and its note, by path
}

// maxManifestBytes bounds a manifest: some hundred thousand files.
const maxManifestBytes = 64 << 20

// Encode returns the manifest's one spelling.
func (m Manifest) Encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fault.As(fault.Invalid, fmt.Errorf("encoding a manifest of evidence: %w", err))
	}
	return digest.Canonical(m)
}

func (m Manifest) check() error {
	switch {
	case m.V != 1:
		return fmt.Errorf("version %d is not known", m.V)
	case m.Log == "" || m.VKey == "" || m.Tool == "":
		return fmt.Errorf("it lacks the log, its key or the tool")
	case m.Scope.From < 0 || m.Scope.To < m.Scope.From || m.Size < m.Scope.To:
		return fmt.Errorf("entries %d to %d of %d", m.Scope.From, m.Scope.To, m.Size)
	case m.At != state.Millis(m.At):
		return fmt.Errorf("time %s: want UTC and whole milliseconds", m.At)
	}
	for i, f := range m.Files {
		if _, err := digest.Parse(string(f.Digest)); err != nil || f.Bytes < 0 || !validPath(f.Path) {
			return fmt.Errorf("file %q is not described as it should be", f.Path)
		}
		if i > 0 && m.Files[i-1].Path >= f.Path {
			return fmt.Errorf("file %q is not in order", f.Path)
		}
	}
	return nil
}

// validPath accepts clean relative paths of plain characters.
func validPath(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return !strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`\"'*?$&;|<>`+"`", r) })
}

// DecodeManifest reads what Encode wrote, and nothing else. Its errors are of kind fault.Corrupt.
func DecodeManifest(b []byte) (Manifest, error) {
	var m Manifest
	if err := digest.DecodeExact(b, &m, maxManifestBytes, func() ([]byte, error) { return m.Encode() }); err != nil {
		return Manifest{}, fault.As(fault.Corrupt, fmt.Errorf("reading a manifest of evidence: %w", err))
	}
	return m, nil
}

// Receipt is what the server signs of an export, when it has recorded it.
type Receipt struct {
	Log      string
	Entry    int64 // index of its evidence.export
	Manifest digest.Digest
}

// receiptTitle tells the note from a checkpoint, of which the first line is the log's name.
const receiptTitle = "invar evidence"

// Sign returns the receipt as a signed note.
func (r Receipt) Sign(signer note.Signer) ([]byte, error) {
	signed, err := note.Sign(&note.Note{Text: r.text()}, signer)
	if err != nil {
		return nil, fmt.Errorf("signing the manifest of an export: %w", err)
	}
	return signed, nil
}

func (r Receipt) text() string {
	return fmt.Sprintf("%s\n%s\n%d\n%s\n", receiptTitle, r.Log, r.Entry, r.Manifest)
}

// OpenReceipt reads and checks what Sign returned. Its errors are of kind fault.Corrupt.
func OpenReceipt(signed []byte, v note.Verifier) (Receipt, error) {
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return Receipt{}, fault.Errorf(fault.Corrupt, "checking the signature of a manifest: %w", err)
	}
	r := Receipt{Log: v.Name()}
	lines := strings.Split(n.Text, "\n")
	if len(lines) == 5 {
		if _, err := fmt.Sscanf(lines[2], "%d", &r.Entry); err == nil {
			r.Manifest = digest.Digest(lines[3])
		}
	}
	if r.text() != n.Text {
		return Receipt{}, fault.Errorf(fault.Corrupt, "checking the signature of a manifest: what is signed is none")
	}
	return r, nil
}

// Severity says what a finding means.
type Severity string

// The severities.
const (
	Failure Severity = "failure" // something is not what it claims to be: the bundle does not verify
	Gap     Severity = "gap"     // something that the rules ask for did not happen, or not in time
	Notice  Severity = "notice"  // worth a look: an emergency, an override, a refusal
)

// Finding is something that an auditor should know.
type Finding struct {
	Severity Severity      `json:"severity"`
	Check    string        `json:"check"` // which one found it: "approval"
	Entry    int64         `json:"entry"` // index; -1: of no single entry
	ID       state.EntryID `json:"id,omitempty"`
	Kind     state.Kind    `json:"kind,omitempty"`
	Env      spec.EnvName  `json:"env,omitempty"`
	Time     time.Time     `json:"time,omitzero"`
	Controls []string      `json:"controls,omitempty"` // that the kind of entry answers
	Message  string        `json:"message"`
}

// String is the finding in one line.
func (f Finding) String() string {
	if f.Entry < 0 {
		return f.Message
	}
	return fmt.Sprintf("entry %d (%s, %s): %s", f.Entry, f.Kind, f.ID, f.Message)
}

// Checked counts what a check looked at.
type Checked struct {
	Check string `json:"check"`
	What  string `json:"what"` // a sentence for people
	Count int    `json:"count"`
}

func sortFindings(fs []Finding) {
	weight := map[Severity]int{Failure: 0, Gap: 1, Notice: 2}
	slices.SortStableFunc(fs, func(a, b Finding) int {
		if w := weight[a.Severity] - weight[b.Severity]; w != 0 {
			return w
		}
		return int(a.Entry - b.Entry)
	})
}
