package evidence

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/policy"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// Attachment is content that is attached to an image.
type Attachment struct {
	Type    string // of the artifact
	Content digest.Digest
}

// Types of attachments that go into a bundle, as package image/sbom has them.
const (
	typeSBOM     = "application/vnd.cyclonedx+json"
	typeEnvelope = "application/vnd.dsse.envelope.v1+json"
)

// Source is where evidence comes from: a server, or a copy of its data. Its methods are called one at a time.
type Source interface {
	// Resource returns a file of the tiled log (https://c2sp.org/tlog-tiles), or checkpoint.cosigned. fault.NotFound: there is none.
	Resource(ctx context.Context, path string) ([]byte, error)
	// CheckpointAt returns the log's oldest signed checkpoint of at least size entries.
	CheckpointAt(ctx context.Context, size int64) ([]byte, error)
	// Blob returns content by digest. fault.NotFound: it is not there.
	Blob(ctx context.Context, d digest.Digest) ([]byte, error)
	// Attached lists what is attached to an image.
	Attached(ctx context.Context, manifest digest.Digest) ([]Attachment, error)
}

// Bound is an end of a scope: an index of the ledger, or a time. The zero Bound is the end of the ledger.
type Bound struct {
	Index int64
	Time  time.Time // its first entry at or after this time
}

// Request says what to export.
type Request struct {
	VKey      string // the log's verifier key
	From      Bound  // the zero Bound is the ledger's begin
	To        Bound  // exclusive
	Env       spec.EnvName
	Witnesses string // policy (https://c2sp.org/tlog-policy) that the log has; "": it asks for none
	Tool      string // version of invar
	Now       time.Time
	// Progress is told of what is fetched; nil: nobody wants to know.
	Progress func(what string)
	// Write writes a file of the bundle.
	Write func(path string, content []byte) error
}

// Exported is what Export has written, but for the note.
type Exported struct {
	Manifest Manifest
	Digest   digest.Digest // of manifest.json
	Count    int           // of the population
	Findings []Finding
}

// Export writes all of a bundle but the signature of its manifest.
func Export(ctx context.Context, src Source, r Request) (Exported, error) {
	verifier, err := ledger.ParseVerifierKey(r.VKey)
	if err != nil {
		return Exported{}, err
	}
	x := &exporter{ctx: ctx, src: src, request: r, verifier: verifier, files: map[string]File{},
		data: dataset{log: verifier.Name(), vkey: r.VKey, at: state.Millis(r.Now), tool: r.Tool, blobs: map[string][]byte{}}}
	if x.request.Progress == nil {
		x.request.Progress = func(string) {}
	}
	out, err := x.run()
	if err != nil {
		return Exported{}, fmt.Errorf("exporting evidence: %w", err)
	}
	return out, nil
}

type exporter struct {
	ctx      context.Context
	src      Source
	request  Request
	verifier note.Verifier
	data     dataset
	size     int64
	files    map[string]File
}

func (x *exporter) run() (Exported, error) {
	for _, step := range []func() error{x.tree, x.choose, x.checkpoints, x.bodies, x.decisions, x.images} {
		if err := step(); err != nil {
			return Exported{}, err
		}
	}
	for _, p := range slices.Sorted(maps.Keys(x.data.blobs)) {
		if err := x.write(p, x.data.blobs[p]); err != nil {
			return Exported{}, err
		}
	}
	x.request.Progress("checking, and writing the report")
	m, err := x.data.derive(x.ctx)
	if err != nil {
		return Exported{}, err
	}
	for _, p := range slices.Sorted(maps.Keys(m.files)) {
		if err := x.write(p, m.files[p]); err != nil {
			return Exported{}, err
		}
	}
	if err := x.sums(); err != nil {
		return Exported{}, err
	}
	return x.manifest(m)
}

func (x *exporter) write(path string, content []byte) error {
	x.files[path] = File{path, digest.Of(content), int64(len(content))}
	return x.request.Write(path, content)
}

// tree fetches the whole ledger.
func (x *exporter) tree() error {
	signed, err := x.src.Resource(x.ctx, FileCheckpoint)
	if err != nil {
		return err
	}
	c, err := ledger.ParseCheckpoint(signed, x.verifier)
	if err != nil {
		return err
	}
	x.size, x.data.signed = c.Size, signed
	if err := x.write(FileCheckpoint, signed); err != nil {
		return err
	}
	for p := range ledger.TilePaths(x.size) {
		if p == FileCheckpoint {
			continue
		}
		raw, err := x.src.Resource(x.ctx, p)
		if err != nil {
			return err
		}
		if err := x.write(p, raw); err != nil {
			return err
		}
		if !strings.HasPrefix(p, "tile/entries/") {
			continue
		}
		x.request.Progress(p)
		entries, err := ledger.ParseBundle(raw)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		x.data.leaves = append(x.data.leaves, entries...)
	}
	var bad *Finding
	if x.data.entries, bad = decodeAll(x.data.leaves); bad != nil {
		return fault.Errorf(fault.Corrupt, "%s", bad)
	}
	if int64(len(x.data.leaves)) != x.size {
		return fault.Errorf(fault.Corrupt, "the log has %d entries, its checkpoint says %d", len(x.data.leaves), x.size)
	}
	return nil
}

// choose finds the scope.
func (x *exporter) choose() error {
	s := Scope{From: x.at(x.request.From, 0), To: x.at(x.request.To, x.size), Env: x.request.Env}
	if s.From >= s.To || s.To > x.size {
		return fault.WithHint(fault.Errorf(fault.Invalid, "there is nothing from entry %d up to entry %d; the ledger has %d", s.From, s.To, x.size),
			"--from and --to are times, as 2026-01-31 or 2026-01-31T12:00:00Z, or numbers of entries")
	}
	x.data.scope = s
	return nil
}

func (x *exporter) at(b Bound, otherwise int64) int64 {
	switch {
	case !b.Time.IsZero():
		i := slices.IndexFunc(x.data.entries, func(e state.Entry) bool { return !e.Time.Before(b.Time) })
		if i < 0 {
			return x.size
		}
		return int64(i)
	case b.Index != 0:
		return b.Index
	}
	return otherwise
}

func (x *exporter) checkpoints() error {
	for _, c := range []struct {
		path string
		size int64
	}{{FileFrom, max(x.data.scope.From, 1)}, {FileTo, x.data.scope.To}} {
		signed, err := x.src.CheckpointAt(x.ctx, c.size)
		if err != nil {
			return err
		}
		t, err := ledger.ParseCheckpoint(signed, x.verifier)
		if err != nil {
			return err
		}
		if t.Size > x.size { // the log grew meanwhile
			signed = x.data.signed
		}
		if c.path == FileFrom {
			x.data.first = signed
		}
		if err := x.write(c.path, signed); err != nil {
			return err
		}
	}
	if err := x.write(FileWitnesses, []byte(cmp.Or(x.request.Witnesses, "quorum none\n"))); err != nil {
		return err
	}
	cosigned, err := x.src.Resource(x.ctx, "checkpoint.cosigned")
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return nil
	case err != nil:
		return err
	}
	if t, err := ledger.ParseCheckpoint(cosigned, x.verifier); err != nil || t.Size > x.size {
		return err
	}
	return x.write(FileCosigned, cosigned)
}

// fetch gets content; what is not there is left out, and Verify asks why.
func (x *exporter) fetch(path string, d digest.Digest) error {
	if _, ok := x.data.blobs[path]; ok {
		return nil
	}
	raw, err := x.src.Blob(x.ctx, d)
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return nil
	case err != nil:
		return err
	}
	if got := digest.Of(raw); got != d {
		return fault.Errorf(fault.Corrupt, "asked for %s, got %s", d, got)
	}
	x.data.blobs[path] = raw
	return nil
}

// bodies fetches what the scope's entries name. The fold needs the records of all releases.
func (x *exporter) bodies() error {
	x.request.Progress("bodies")
	for i, e := range x.data.entries {
		if e.Body == nil || e.Kind() != state.KindRelease && !x.data.scope.has(int64(i), e.Env) {
			continue
		}
		if err := x.fetch(placeOf(e), e.Body.Digest); err != nil {
			return err
		}
	}
	return nil
}

// decisions fetches what it takes to come to the policies' decisions again.
func (x *exporter) decisions() error {
	for i, e := range x.data.entries {
		d, ok := e.Data.(state.PolicyDecision)
		if !ok || !x.data.scope.has(int64(i), e.Env) {
			continue
		}
		if err := x.fetch(named(dirPolicy, "input-", d.Input, ".json"), d.Input); err != nil {
			return err
		}
		at := named(dirPolicy, "bundle-", d.Bundle, ".tar.gz")
		if err := x.fetch(at, d.Bundle); err != nil {
			return err
		}
		if _, ok := x.data.blobs[at]; !ok {
			x.compile(at, d)
		}
	}
	return nil
}

// compile makes a policy's bundle again from the platform's definitions: it follows from them.
func (x *exporter) compile(at string, d state.PolicyDecision) {
	for p, raw := range x.data.blobs {
		if !strings.HasPrefix(p, dirReleases+"/") {
			continue
		}
		r, err := release.Decode(raw)
		if err != nil || r.Platform == nil {
			continue
		}
		for _, defined := range r.Platform.Policies {
			if defined.Name != d.Policy {
				continue
			}
			b, err := policy.Compile(defined.Name, defined.Source())
			if err == nil && b.Digest() == d.Bundle {
				x.data.blobs[at] = b.Archive()
				return
			}
		}
	}
}

// images fetches what is attached to the images that ran.
func (x *exporter) images() error {
	record := func(d digest.Digest) (release.Record, error) {
		return release.Decode(x.data.blobs[named(dirReleases, "", d, ".json")])
	}
	for _, manifest := range imagesOf(x.data.entries, x.data.scope, record) {
		x.request.Progress("image " + manifest.Short())
		attached, err := x.src.Attached(x.ctx, manifest)
		if err != nil && fault.KindOf(err) != fault.NotFound {
			return err
		}
		for _, a := range attached {
			at := ""
			switch a.Type {
			case typeSBOM:
				at = named(dirSBOM, "", a.Content, ".cdx.json")
			case typeEnvelope:
				at = named(dirProvenance, "", a.Content, ".dsse.json")
			default:
				continue
			}
			if err := x.fetch(at, a.Content); err != nil {
				return err
			}
		}
	}
	return nil
}

// sums writes what sha256sum -c reads.
func (x *exporter) sums() error {
	var b strings.Builder
	for _, p := range slices.Sorted(maps.Keys(x.files)) {
		fmt.Fprintf(&b, "%s  %s\n", x.files[p].Digest.Hex(), p)
	}
	return x.write(FileSums, []byte(b.String()))
}

func (x *exporter) manifest(m *made) (Exported, error) {
	out := Manifest{V: 1, Log: x.data.log, VKey: x.data.vkey, Scope: x.data.scope, Size: x.size, Root: m.root.String(), At: x.data.at, Tool: x.data.tool}
	for _, p := range slices.Sorted(maps.Keys(x.files)) {
		out.Files = append(out.Files, x.files[p])
	}
	raw, err := out.Encode()
	if err != nil {
		return Exported{}, err
	}
	return Exported{out, digest.Of(raw), m.pop.Count, m.audit.Findings}, x.request.Write(FileManifest, raw)
}
