package sbom

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// Names of the provenance. Their meaning never changes.
const (
	StatementType = "https://in-toto.io/Statement/v1"
	PredicateType = "https://slsa.dev/provenance/v1"
	BuildType     = "https://github.com/invarhq/invar/build/v1/"         // and the image's kind
	BuilderID     = "https://github.com/invarhq/invar/builder/v1/client" // whoever ran invar build, plan or apply
)

// Provenance is an in-toto statement v1 with SLSA provenance v1. Its encoding is canonical JSON (RFC 8785).
type Provenance struct {
	Type          string     `json:"_type"`
	Subject       []Resource `json:"subject"` // the image's manifest, then its root
	PredicateType string     `json:"predicateType"`
	Predicate     Predicate  `json:"predicate"`
}

// Resource is an in-toto resource descriptor.
type Resource struct {
	Name      string            `json:"name,omitempty"`
	URI       string            `json:"uri,omitempty"`
	Digest    map[string]string `json:"digest,omitempty"`
	MediaType string            `json:"mediaType,omitempty"`
}

// Predicate is SLSA provenance v1.
type Predicate struct {
	BuildDefinition BuildDefinition `json:"buildDefinition"`
	RunDetails      RunDetails      `json:"runDetails"`
}

// BuildDefinition says what went in.
type BuildDefinition struct {
	BuildType            string     `json:"buildType"`
	ExternalParameters   parameters `json:"externalParameters"`
	ResolvedDependencies []Resource `json:"resolvedDependencies"`
}

// RunDetails say who built, and what else came out: the bill of materials.
type RunDetails struct {
	Builder     Builder      `json:"builder"`
	Byproducts  []Resource   `json:"byproducts"`
	Endorsement *Endorsement `json:"invar_endorsement,omitempty"` // an extension, named as SLSA has them
}

// Builder is who built.
type Builder struct {
	ID string `json:"id"`
}

// Endorsement says what the signer knows itself.
type Endorsement struct {
	By      string   `json:"by"`      // the name of the server's ledger, whose key signs
	Checked []string `json:"checked"` // by the signer, in sentences
	Claimed []string `json:"claimed"` // by whoever baked, and not checked
}

// parameters are an image block.
type parameters struct {
	Name       string            `json:"name"`
	Platform   string            `json:"platform"`
	Ref        string            `json:"ref,omitempty"`
	Package    string            `json:"package,omitempty"`
	Tags       []string          `json:"tags,omitempty"`
	Ldflags    string            `json:"ldflags,omitempty"`
	BuildEnv   map[string]string `json:"build_env,omitempty"`
	Base       string            `json:"base,omitempty"`
	Copy       map[string]string `json:"copy,omitempty"`
	Suite      string            `json:"suite,omitempty"`
	Packages   []string          `json:"packages,omitempty"`
	Env        map[string]string `json:"env,omitempty"`
	User       string            `json:"user,omitempty"`
	WorkDir    string            `json:"workdir,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Command    []string          `json:"command,omitempty"`
	SourceDate string            `json:"source_date,omitempty"`
}

func (b Build) parameters() parameters {
	p := parameters{Name: string(b.Image.Name), Platform: b.Resolved.Platform.String(), Ref: b.Image.Ref, SourceDate: b.Locked.Date}
	if g := b.Image.Go; g != nil {
		p.Package, p.Tags, p.Ldflags, p.BuildEnv = g.Package, g.Tags, g.Ldflags, g.Env
	}
	if l := b.Image.Layers; l != nil {
		p.Base, p.Copy = string(l.Base), l.Copy
		p.Env, p.User, p.WorkDir, p.Entrypoint, p.Command = l.Env, l.User, l.WorkDir, l.Entrypoint, l.Command
	}
	if d := b.Image.Debian; d != nil {
		p.Suite, p.Packages = d.Suite, d.Packages
		p.Env, p.User, p.WorkDir, p.Entrypoint, p.Command = d.Env, d.User, d.WorkDir, d.Entrypoint, d.Command
	}
	return p
}

// dependencies are what the lock pins and what programs say that they were linked from.
func (b Build) dependencies(c contents) []Resource {
	all := []Resource{}
	switch b.Kind() {
	case "ref":
		if b.Locked.Digest != "" {
			all = append(all, Resource{Name: b.Image.Ref, Digest: sha256Set(b.Locked.Digest)})
		}
	case "layers":
		if b.Base != nil {
			all = append(all, Resource{Name: string(b.Base.Image.Name), Digest: sha256Set(b.Base.Resolved.Manifest)})
		}
	case "debian":
		for _, p := range b.Locked.Packages {
			all = append(all, Resource{
				Name: p.Name, Digest: sha256Set(p.SHA256),
				URI: purl{kind: "deb", namespace: "debian", name: p.Name, version: p.Version, qualifiers: [][2]string{{"arch", p.Architecture}, {"distro", b.Locked.Suite}}}.String(),
			})
		}
	case "go":
		all = c.linked()
	}
	return all
}

// linked are the modules of all programs, each once.
func (c contents) linked() []Resource {
	byPurl := map[string]Resource{}
	for _, p := range c.programs {
		for _, m := range p.modules() {
			r := Resource{Name: m.path, URI: m.purl()}
			if h := m.hash(); h != "" {
				r.Digest = map[string]string{"dirHash": h}
			}
			byPurl[r.URI] = r
		}
	}
	all := []Resource{}
	for _, key := range sortedKeys(byPurl) {
		all = append(all, byPurl[key])
	}
	return all
}

func sha256Set(d digest.Digest) map[string]string { return map[string]string{"sha256": d.Hex()} }

// typeRoot is the media type of a root, as release.TypeRoot has it.
const typeRoot = "application/vnd.invar.root.v1.erofs"

// statement makes the provenance of a build whose bill of materials has this digest.
func statement(b Build, c contents, bom digest.Digest, e *Endorsement) ([]byte, error) {
	return digest.Canonical(Provenance{
		Type: StatementType,
		Subject: []Resource{
			{Name: string(b.Image.Name), Digest: sha256Set(b.Resolved.Manifest), MediaType: cmp.Or(b.Resolved.MediaType, "application/vnd.oci.image.manifest.v1+json")},
			{Name: string(b.Image.Name) + ".erofs", Digest: sha256Set(b.Resolved.Root), MediaType: typeRoot},
		},
		PredicateType: PredicateType,
		Predicate: Predicate{
			BuildDefinition: BuildDefinition{BuildType: BuildType + b.Kind(), ExternalParameters: b.parameters(), ResolvedDependencies: b.dependencies(c)},
			RunDetails:      RunDetails{Builder: Builder{BuilderID}, Byproducts: []Resource{{Name: "sbom", Digest: sha256Set(bom), MediaType: TypeSBOM}}, Endorsement: e},
		},
	})
}

// endorsement says what a server knows when it has built the root from the layers, and evaluated the bundle.
func endorsement(by string, b Build, c contents) *Endorsement {
	e := &Endorsement{By: by, Checked: []string{
		"the image is in the server's registry, and its layers give the root",
		"the external parameters and what the lock pins are those of the bundle's sources",
		"the SBOM is what the server read from the root",
	}}
	claim := "the image was built from these parameters and dependencies"
	switch b.Kind() {
	case "ref":
		claim = "the reference resolved to what the lock pins"
		if b.Locked.Digest == b.Resolved.Manifest {
			e.Checked = append(e.Checked, "the image is what the lock pins")
		}
	case "debian":
		if installedAsLocked(b, c) {
			e.Checked = append(e.Checked, "the root's package database has the packages of the lock and no other")
		}
	case "go":
		if len(c.programs) > 0 {
			e.Checked = append(e.Checked, "the program's build information names the modules")
		}
	}
	e.Claimed = []string{claim}
	return e
}

// ParseProvenance reads a statement in canonical JSON. It refuses what this package does not write: other fields, and any other
// spelling of the same value.
func ParseProvenance(raw []byte) (Provenance, error) {
	var p Provenance
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return Provenance{}, fault.Errorf(fault.Invalid, "reading provenance: %w", err)
	}
	again, err := digest.Canonical(p)
	if err != nil {
		return Provenance{}, fault.Errorf(fault.Invalid, "reading provenance: %w", err)
	}
	if !bytes.Equal(again, raw) {
		return Provenance{}, fault.Errorf(fault.Invalid, "reading provenance: it is not in canonical form")
	}
	if p.Type != StatementType || p.PredicateType != PredicateType {
		return Provenance{}, fault.Errorf(fault.Invalid, "reading provenance: it is %s about %s", p.Type, p.PredicateType)
	}
	return p, nil
}

// About reports whether the image's manifest is a subject.
func (p Provenance) About(manifest digest.Digest) bool {
	return slices.ContainsFunc(p.Subject, func(r Resource) bool { return r.Digest["sha256"] == manifest.Hex() && r.MediaType != typeRoot })
}

// SBOM returns the digest of the bill of materials that the statement names, or "".
func (p Provenance) SBOM() digest.Digest {
	for _, r := range p.Predicate.RunDetails.Byproducts {
		if d, err := digest.Parse("sha256:" + r.Digest["sha256"]); err == nil && r.MediaType == TypeSBOM {
			return d
		}
	}
	return ""
}

// name is that of the image block.
func (p Provenance) name() spec.ImageName {
	return spec.ImageName(p.Predicate.BuildDefinition.ExternalParameters.Name)
}
