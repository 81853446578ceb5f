package evidence

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity/sshkey"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// dataset is all that a bundle is made from. Export gets it from a server, Verify from the bundle; what follows from it is made by the same
// code in both, so that Verify can tell a report that was touched.
type dataset struct {
	log     string
	vkey    string
	scope   Scope
	at      time.Time
	tool    string
	leaves  [][]byte
	entries []state.Entry
	signed  []byte            // the newest checkpoint
	first   []byte            // that of the scope's begin
	blobs   map[string][]byte // content, by path in the bundle
}

// content returns what is in the dataset by digest.
func (d *dataset) content() (Blobs, map[digest.Digest]string) {
	paths := make(map[digest.Digest]string, len(d.blobs))
	for _, p := range slices.Sorted(maps.Keys(d.blobs)) {
		paths[digest.Of(d.blobs[p])] = p
	}
	return func(want digest.Digest) ([]byte, bool) {
		p, ok := paths[want]
		return d.blobs[p], ok
	}, paths
}

// decodeAll decodes leaves. A leaf that is none is a finding of its own, and ends what can be told.
func decodeAll(leaves [][]byte) ([]state.Entry, *Finding) {
	out := make([]state.Entry, 0, len(leaves))
	for i, leaf := range leaves {
		e, err := state.Decode(leaf)
		if err != nil {
			return out, &Finding{Severity: Failure, Check: "fold", Entry: int64(i), Message: err.Error()}
		}
		out = append(out, e)
	}
	return out, nil
}

// Places of content in a bundle, by what it is. Names are the digests of what the files hold.
const (
	dirReleases     = "releases"
	dirBundles      = "bundles"
	dirPlans        = "plans"
	dirPolicy       = "policy"
	dirSBOM         = "sbom"
	dirProvenance   = "provenance"
	dirAttestations = "attestations"
	dirRecordings   = "recordings"
	dirBodies       = "bodies"
)

// contentDirs are those that hold content by digest.
var contentDirs = []string{dirReleases, dirBundles, dirPlans, dirPolicy, dirSBOM, dirProvenance, dirAttestations, dirRecordings, dirBodies}

// placeOf is where the bundle has an entry's body.
func placeOf(e state.Entry) string {
	switch {
	case e.Kind() == state.KindRelease:
		return named(dirReleases, "", e.Body.Digest, ".json")
	case e.Kind() == state.KindBundle:
		return named(dirBundles, "", e.Body.Digest, ".json")
	case e.Body.Type == change.TypePlan:
		return named(dirPlans, "", e.Body.Digest, ".json")
	case e.Kind() == state.KindPolicyDecision:
		return named(dirPolicy, "decision-", e.Body.Digest, ".json")
	case strings.HasPrefix(string(e.Kind()), "session."):
		return named(dirRecordings, "", e.Body.Digest, "")
	case e.Body.Type == attest.TypeEnvelope:
		return named(dirAttestations, "", e.Body.Digest, ".dsse.json")
	}
	return named(dirBodies, "", e.Body.Digest, "")
}

func named(dir, prefix string, d digest.Digest, suffix string) string {
	return path.Join(dir, prefix+d.Hex()+suffix)
}

// made is what follows from a dataset.
type made struct {
	audit *Audit
	files map[string][]byte
	pop   Population
	root  tlog.Hash
}

// derive makes all files that follow from the dataset.
func (d *dataset) derive(ctx context.Context, before ...Finding) (*made, error) {
	blobs, paths := d.content()
	a, err := run(ctx, d.entries, blobs, d.vkey, d.scope, d.at)
	if err != nil {
		return nil, err
	}
	a.Findings = append(a.Findings, before...)
	d.provenances(a)
	sortFindings(a.Findings)
	m := &made{audit: a, files: map[string][]byte{}}
	size := int64(len(d.leaves))
	hashes, reader, err := roots(d.leaves, d.scope.From, d.scope.To, size)
	if err != nil {
		return nil, err
	}
	m.root = hashes[2]
	m.files[FileEntries] = append(bytes.Join(d.leaves, []byte("\n")), '\n')
	m.files[FileKey] = []byte(d.vkey) // without a line end, which fsck would take for a part of it
	m.files[FileControls] = controlsFile
	if err := d.trust(m); err != nil {
		return nil, err
	}
	if err := d.population(m, hashes); err != nil {
		return nil, err
	}
	if err := d.proofs(m, reader, size); err != nil {
		return nil, err
	}
	return m, d.papers(m, paths)
}

// trust writes the keys of people, and what they signed.
func (d *dataset) trust(m *made) error {
	signers, err := sshkey.FormatAllowedSigners(m.audit.Signers)
	if err != nil {
		return err
	}
	m.files[FileSigners] = []byte(signers)
	for _, s := range m.audit.Signed {
		m.files[s.path()+".statement"] = []byte(s.Text)
		m.files[s.path()+".sig"] = s.Signature
	}
	return nil
}

// path is where the statement is, without what says of which part.
func (s Signed) path() string {
	who := string(s.Statement.Signer)
	if spec.CheckName(who) != nil {
		who = "unknown"
	}
	meaning := s.Statement.Meaning
	if !slices.Contains([]change.Meaning{change.Approval, change.Rejection, change.Review, change.Erasure}, meaning) {
		meaning = "unknown"
	}
	return fmt.Sprintf("approvals/%06d-%s-%s", s.Index, meaning, who)
}

func (d *dataset) population(m *made, hashes []tlog.Hash) error {
	csv, err := table(m.audit.Moves)
	if err != nil {
		return err
	}
	size := int64(len(d.leaves))
	m.pop = Population{V: 1, Log: d.log, Filter: Filter, Env: d.scope.Env, From: Tree{d.scope.From, hashes[0].String()},
		To: Tree{d.scope.To, hashes[1].String()}, AsOf: Tree{size, hashes[2].String()}, Count: len(m.audit.Moves), Digest: digest.Of(csv)}
	statement, err := m.pop.Encode()
	m.files[FilePopulation], m.files[FileStatement] = csv, statement
	return err
}

// growth is the proof that a later tree begins with an earlier one (RFC 6962, 2.1.2).
type growth struct {
	First  Tree     `json:"first"`
	Second Tree     `json:"second"`
	Hashes [][]byte `json:"hashes"`
}

// proofs writes the proofs of the entries that matter most, and that the ledger only grew since the scope's first checkpoint.
func (d *dataset) proofs(m *made, r tlog.HashReader, size int64) error {
	var matter []int64
	for _, mv := range m.audit.Moves {
		matter = append(append(matter, mv.Index), mv.Decisions...)
		if mv.Change != nil && d.scope.has(mv.Change.Entry, mv.Change.Env) {
			matter = append(matter, mv.Change.Entry)
		}
	}
	for _, s := range m.audit.Signed {
		matter = append(matter, s.Index)
	}
	slices.Sort(matter)
	for _, i := range slices.Compact(matter) {
		p, err := proofOf(i, size, r, d.signed)
		if err != nil {
			return err
		}
		m.files[fmt.Sprintf("proofs/%06d.tlog-proof", i)] = p
	}
	first, err := checkpointText(d.first)
	if err != nil {
		return err
	}
	if first.Size < 1 || first.Size > size {
		return fault.Errorf(fault.Corrupt, "%s is of %d entries, the ledger has %d", FileFrom, first.Size, size)
	}
	p, err := tlog.ProveTree(size, first.Size, r)
	if err != nil {
		return err
	}
	g := growth{First: Tree{first.Size, first.Root}, Second: Tree{size, m.root.String()}, Hashes: [][]byte{}}
	for _, h := range p {
		g.Hashes = append(g.Hashes, h[:])
	}
	m.files[FileGrowth], err = digest.Canonical(g)
	return err
}

// checkGrowth checks the proof of consistency between two trees.
func checkGrowth(g growth) error {
	var hashes tlog.TreeProof
	for _, h := range g.Hashes {
		if len(h) != tlog.HashSize {
			return fault.Errorf(fault.Corrupt, "the proof of consistency has a hash of %d bytes", len(h))
		}
		hashes = append(hashes, tlog.Hash(h))
	}
	first, err1 := tlog.ParseHash(g.First.Root)
	second, err2 := tlog.ParseHash(g.Second.Root)
	if err1 != nil || err2 != nil {
		return fault.Errorf(fault.Corrupt, "the proof of consistency names no trees")
	}
	if err := tlog.CheckTree(hashes, g.Second.Size, second, g.First.Size, first); err != nil {
		return fault.Errorf(fault.Corrupt, "the tree of %d entries does not begin with that of %d: %w", g.Second.Size, g.First.Size, err)
	}
	return nil
}

// checkpointText reads a checkpoint without its signature, which somebody else checks.
func checkpointText(signed []byte) (Tree, error) {
	lines := strings.SplitN(string(signed), "\n", 4)
	var t Tree
	if len(lines) == 4 {
		t.Root = lines[2]
		if _, err := fmt.Sscanf(lines[1], "%d", &t.Size); err == nil {
			if raw, err := base64.StdEncoding.DecodeString(t.Root); err == nil && len(raw) == tlog.HashSize {
				return t, nil
			}
		}
	}
	return Tree{}, fault.Errorf(fault.Corrupt, "a checkpoint is none")
}

// provenances checks what the log's key signed of images.
func (d *dataset) provenances(a *Audit) {
	_, key, err := ledger.PublicKey(d.vkey)
	if err != nil {
		return
	}
	n := 0
	for _, p := range slices.Sorted(maps.Keys(d.blobs)) {
		if !strings.HasPrefix(p, dirProvenance+"/") {
			continue
		}
		n++
		if _, err := openEnvelope(d.blobs[p], key); err != nil {
			a.Findings = append(a.Findings, Finding{Severity: Notice, Check: "provenance", Entry: -1, Message: fmt.Sprintf("%s: %v", p, err)})
		}
	}
	if n > 0 {
		a.Checks = append(a.Checks, Checked{"provenance", what("provenance"), n})
	}
}

func what(check string) string {
	for _, c := range checks {
		if c.Check == check {
			return c.What
		}
	}
	return check
}

// imagesOf lists the images of releases that were heads in the scope.
func imagesOf(entries []state.Entry, scope Scope, record func(digest.Digest) (release.Record, error)) []digest.Digest {
	seen := map[digest.Digest]bool{}
	var out []digest.Digest
	for i, e := range entries {
		d := releaseOf(e)
		if d == "" || !scope.has(int64(i), e.Env) {
			continue
		}
		r, err := record(d)
		if err != nil {
			continue // the audit says so
		}
		for _, c := range r.Components {
			if !seen[c.Component.Image] {
				seen[c.Component.Image] = true
				out = append(out, c.Component.Image)
			}
		}
	}
	return out
}

// releaseOf is the release that an entry brings, or asks for.
func releaseOf(e state.Entry) digest.Digest {
	switch d := e.Data.(type) {
	case state.Apply:
		return d.Release
	case state.Fork:
		return d.Release
	case state.Rollback:
		return d.Release
	case state.ChangeRequest:
		return d.Release
	case state.Step:
		return d.Release
	}
	return ""
}
