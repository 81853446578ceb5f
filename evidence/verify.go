package evidence

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/ledger/tiles"
	"github.com/invarhq/invar/ledger/witness"
	"github.com/invarhq/invar/state"
)

// Options say what an auditor has from elsewhere.
type Options struct {
	VKey      string         // the log's verifier key; "": the one in the bundle, which shows damage, but not forgery
	Witnesses witness.Policy // whose quorum must have cosigned the scope; the zero Policy: that of the bundle, of which a lack is a gap
	Known     [][]byte       // checkpoints that were got earlier or elsewhere: the ledger must begin with them
	Tool      string         // version of this program: papers that the same one wrote must be the same again
}

// Report is what Verify found.
type Report struct {
	Log        string      `json:"log"`
	Size       int64       `json:"size"`
	Root       string      `json:"root"`
	Scope      Scope       `json:"scope"`
	At         time.Time   `json:"at"` // of the export
	Tool       string      `json:"tool"`
	Recorded   int64       `json:"recorded"` // index of the entry that recorded the export
	Population Population  `json:"population"`
	Checks     []Checked   `json:"checks"`
	Findings   []Finding   `json:"findings"`
	Cosigned   []Cosigning `json:"cosigned,omitempty"`
	TrustedKey bool        `json:"trusted_key"` // the key was given, and not taken from the bundle
}

// Cosigning is a witness that cosigned a checkpoint of the log.
type Cosigning struct {
	Name string    `json:"name"`
	Size int64     `json:"size"`
	Time time.Time `json:"time"` // by its clock
}

// OK reports whether the bundle verifies: no finding is a Failure.
func (r Report) OK() bool { return len(r.Of(Failure)) == 0 }

// Of returns the findings of a severity.
func (r Report) Of(s Severity) []Finding {
	var out []Finding
	for _, f := range r.Findings {
		if f.Severity == s {
			out = append(out, f)
		}
	}
	return out
}

// Verify checks a bundle, with no network, no server, and no trust in who exported it. What is wrong with it is in the report; an error
// means that it could not be checked: it is no bundle (fault.Invalid), its manifest can't be read (fault.Corrupt), or ctx ended.
func Verify(ctx context.Context, fsys fs.FS, o Options) (Report, error) {
	v := &verification{fsys: fsys, options: o, files: map[string][]byte{}}
	if err := v.run(ctx); err != nil {
		return v.report, fmt.Errorf("verifying evidence: %w", err)
	}
	v.report.Checks = append(v.own, v.report.Checks...)
	for i, f := range v.report.Findings {
		v.report.Findings[i].Controls = bearing(f.Check)
	}
	sortFindings(v.report.Findings)
	return v.report, nil
}

type verification struct {
	fsys     fs.FS
	options  Options
	manifest Manifest
	verifier note.Verifier
	files    map[string][]byte // all that the manifest lists, but tiles
	report   Report
	own      []Checked
}

func (v *verification) fail(check, format string, args ...any) {
	v.report.Findings = append(v.report.Findings, Finding{Severity: Failure, Check: check, Entry: -1, Message: fmt.Sprintf(format, args...)})
}

func (v *verification) checked(check, what string, n int) {
	v.own = append(v.own, Checked{check, what, n})
}

func (v *verification) run(ctx context.Context) error {
	if err := v.open(); err != nil {
		return err
	}
	if err := v.readFiles(ctx); err != nil {
		return err
	}
	leaves, whole, err := v.ledger(ctx)
	if err != nil {
		return err
	}
	v.lines(leaves)
	if !whole {
		return nil // nothing more can be told of a ledger that is not what was signed
	}
	if err := v.cosigned(); err != nil {
		return err
	}
	return v.audit(ctx, leaves)
}

// open reads the manifest and its signature.
func (v *verification) open() error {
	raw, err := fs.ReadFile(v.fsys, FileManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.WithHint(fault.Errorf(fault.Invalid, "there is no %s", FileManifest), "give the directory that invar evidence export wrote")
	}
	if err != nil {
		return err
	}
	if v.manifest, err = DecodeManifest(raw); err != nil {
		return err
	}
	m := v.manifest
	v.report = Report{Log: m.Log, Size: m.Size, Root: m.Root, Scope: m.Scope, At: m.At, Tool: m.Tool, Recorded: -1, TrustedKey: v.options.VKey != ""}
	if !v.report.TrustedKey {
		v.options.VKey = m.VKey
	}
	if v.verifier, err = ledger.ParseVerifierKey(v.options.VKey); err != nil {
		return err
	}
	if v.options.VKey != m.VKey || v.verifier.Name() != m.Log {
		v.fail("manifest", "the bundle is of the log %s with key %s, and not of that with the key that was given, %s", m.Log, m.VKey, v.options.VKey)
	}
	v.receipt(raw)
	return nil
}

// receipt checks the log's signature of the manifest.
func (v *verification) receipt(manifest []byte) {
	signed, err := fs.ReadFile(v.fsys, FileNote)
	if err != nil {
		v.fail("manifest", "the manifest is not signed: %v", err)
		return
	}
	r, err := OpenReceipt(signed, v.verifier)
	switch {
	case err != nil:
		v.fail("manifest", "%s: %v", FileNote, err)
	case r.Manifest != digest.Of(manifest):
		v.fail("manifest", "the log signed another manifest: %s, and this is %s", r.Manifest.Short(), digest.Of(manifest).Short())
	default:
		v.report.Recorded = r.Entry
		v.checked("manifest", "the manifest is signed by the log, which recorded the export", 1)
	}
}

// readFiles reads every file that the manifest lists, and compares it.
func (v *verification) readFiles(ctx context.Context) error {
	listed := map[string]bool{FileManifest: true, FileNote: true}
	for _, f := range v.manifest.Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		listed[f.Path] = true
		raw, err := fs.ReadFile(v.fsys, f.Path)
		switch {
		case err != nil:
			v.fail("file", "%s is missing: %v", f.Path, err)
		case digest.Of(raw) != f.Digest:
			v.fail("file", "%s is not what the manifest lists: it is %s, and was %s", f.Path, digest.Of(raw).Short(), f.Digest.Short())
		}
		if err == nil && !strings.HasPrefix(f.Path, "tile/") {
			v.files[f.Path] = raw
		}
	}
	v.checked("file", "files are what the manifest lists", len(v.manifest.Files))
	return fs.WalkDir(v.fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !listed[name] {
			v.report.Findings = append(v.report.Findings, Finding{Severity: Notice, Check: "file", Entry: -1, Message: name + " is no part of the bundle"})
		}
		return err
	})
}

// ledger checks the tree, and returns its leaves; whole is false when it is not what was signed.
func (v *verification) ledger(ctx context.Context) (leaves [][]byte, whole bool, err error) {
	source := tiles.New(v.fsys)
	var known [][]byte
	for _, p := range []string{FileFrom, FileTo, FileCosigned} {
		if b, ok := v.files[p]; ok {
			known = append(known, b)
		}
	}
	r, err := ledger.Verify(ctx, source, v.options.VKey, append(known, v.options.Known...)...)
	whole = err == nil
	damage, damaged := errors.AsType[*ledger.Damage](err)
	switch {
	case ctx.Err() != nil:
		return nil, false, err
	case damaged:
		f := Finding{Severity: Failure, Check: "tree", Entry: damage.First, Message: damage.Error()}
		v.report.Findings = append(v.report.Findings, v.identified(ctx, source, f))
	case err != nil:
		v.fail("tree", "%v", err)
	case r.Size != v.manifest.Size || r.Root.String() != v.manifest.Root:
		v.fail("tree", "the manifest is of a tree of %d entries with root %s; this is of %d with root %s", v.manifest.Size, v.manifest.Root, r.Size, r.Root)
		whole = false
	default:
		v.checked("tree", "entries are in the tree that the log signed, in their order", int(r.Size))
	}
	head, loadErr := source.Load(ctx)
	if loadErr != nil {
		return nil, false, nil
	}
	for leaf, err := range source.Entries(ctx, 0, head.Size) {
		if err != nil {
			return leaves, false, nil // said already
		}
		leaves = append(leaves, bytes.Clone(leaf))
	}
	return leaves, whole, nil
}

// identified adds what a damaged entry says of itself.
func (v *verification) identified(ctx context.Context, source *tiles.Dir, f Finding) Finding {
	for leaf, err := range source.Entries(ctx, f.Entry, f.Entry+1) {
		if err != nil {
			break
		}
		if e, err := state.Decode(leaf); err == nil {
			f.ID, f.Kind, f.Env, f.Time = e.ID, e.Kind(), e.Env, e.Time
		}
	}
	return f
}

// lines compares entries.jsonl with the tree's leaves.
func (v *verification) lines(leaves [][]byte) {
	text, ok := v.files[FileEntries]
	if !ok {
		return // said already
	}
	rest := text
	for i, leaf := range leaves {
		line, after, _ := bytes.Cut(rest, []byte("\n"))
		if !bytes.Equal(line, leaf) {
			f := Finding{Severity: Failure, Check: "tree", Entry: int64(i), Message: fmt.Sprintf("line %d of %s is not this entry of the tree", i+1, FileEntries)}
			if e, err := state.Decode(leaf); err == nil {
				f.ID, f.Kind, f.Env, f.Time = e.ID, e.Kind(), e.Env, e.Time
			}
			v.report.Findings = append(v.report.Findings, f)
			return
		}
		rest = after
	}
	if len(rest) > 0 {
		v.fail("tree", "%s has more lines than the tree has entries", FileEntries)
	}
}

// cosigned checks what witnesses vouch for.
func (v *verification) cosigned() error {
	policy, own := v.options.Witnesses, false
	if !policy.Asks() {
		p, err := witness.ParsePolicy(string(v.files[FileWitnesses]))
		if err != nil {
			v.fail("witness", "%s: %v", FileWitnesses, err)
			return nil
		}
		policy, own = p, true
	}
	if !policy.Asks() {
		v.report.Findings = append(v.report.Findings, Finding{Severity: Gap, Check: "witness", Entry: -1,
			Message: "no witness watches the log: it can show others another history than this, and nobody would know"})
		return nil
	}
	var notes [][]byte
	for _, p := range []string{FileCosigned, FileCheckpoint, FileTo} {
		if b, ok := v.files[p]; ok {
			notes = append(notes, b)
		}
	}
	r, err := witness.Vouched(v.manifest.Scope.To, v.verifier, policy, notes...)
	for _, c := range r.By {
		v.report.Cosigned = append(v.report.Cosigned, Cosigning{c.Witness.Name(), r.Checkpoint.Size, c.Time})
	}
	switch {
	case err == nil:
		v.checked("witness", "witnesses cosigned a tree that holds the scope", len(r.By))
	case own:
		v.report.Findings = append(v.report.Findings, Finding{Severity: Gap, Check: "witness", Entry: -1, Message: err.Error()})
	default:
		v.fail("witness", "%v", err)
	}
	return nil
}

// audit folds the ledger, and compares what follows from it with what is here.
func (v *verification) audit(ctx context.Context, leaves [][]byte) error {
	d := dataset{log: v.manifest.Log, vkey: v.manifest.VKey, scope: v.manifest.Scope, at: v.manifest.At, tool: v.manifest.Tool,
		leaves: leaves, signed: v.files[FileCheckpoint], first: v.files[FileFrom], blobs: map[string][]byte{}}
	for p, raw := range v.files {
		dir, _, _ := strings.Cut(p, "/")
		if slices.Contains(contentDirs, dir) {
			d.blobs[p] = raw
		}
	}
	var bad *Finding
	var before []Finding
	if d.entries, bad = decodeAll(leaves); bad != nil {
		before = append(before, *bad)
	}
	m, err := d.derive(ctx, before...)
	if err != nil {
		return err
	}
	v.report.Findings = append(v.report.Findings, m.audit.Findings...)
	v.report.Checks, v.report.Population = m.audit.Checks, m.pop
	v.growth()
	v.papers(m)
	return nil
}

// growth checks the proof that the ledger only grew.
func (v *verification) growth() {
	var g growth
	if err := json.Unmarshal(v.files[FileGrowth], &g); err != nil {
		v.fail("growth", "%s: %v", FileGrowth, err)
		return
	}
	if err := checkGrowth(g); err != nil {
		v.fail("growth", "%s: %v", FileGrowth, err)
		return
	}
	v.checked("growth", "the ledger only grew since the first checkpoint of the scope", 1)
}

// papers compares what follows from the ledger with the files that are here. Another version of the program may put it into other words.
func (v *verification) papers(m *made) {
	if !v.report.OK() {
		return // what follows from something else would be another thing in any case
	}
	n := 0
	for _, p := range slices.Sorted(maps.Keys(m.files)) {
		got, ok := v.files[p]
		n++
		if ok && bytes.Equal(got, m.files[p]) {
			continue
		}
		message := p + " is not what follows from the ledger"
		if v.options.Tool != v.manifest.Tool && paper(p) {
			v.report.Findings = append(v.report.Findings, Finding{Severity: Notice, Check: "papers", Entry: -1,
				Message: fmt.Sprintf("%s; invar %s wrote it, this is %s", message, v.manifest.Tool, v.options.Tool)})
			continue
		}
		v.fail("papers", "%s", message)
	}
	v.checked("papers", "report, population, signers, proofs and all else follow from the ledger", n)
}

// paper reports whether the file is prose, of which the words may differ between versions.
func paper(p string) bool {
	return p == FileReport || p == FileGuide || p == FileControls || strings.HasPrefix(p, "oscal/")
}
