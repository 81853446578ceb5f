// Package sbom says what is in an image and how it came to be: a bill of materials (CycloneDX 1.6, JSON) and provenance
// (SLSA provenance v1 in an in-toto statement v1, signed in a DSSE envelope), attached to the image as OCI referrers.
//
// # Bill of materials
//
// It is read from the root that instances run on: dpkg's and apk's databases, copyright files in the machine-readable format,
// and the build information in programs of the go command. What the lock pins adds the packages' SHA-256; what invar itself
// put into an image, the layers of go and layers images, adds every file with its own.
//
// The same image, image block and lock give the same bytes on any machine: there is no clock (the timestamp is the lock's source
// date, where there is one), no chance (the serial number is a UUIDv8 of these inputs), and no name of a tool's version.
// What was not looked at is said in the document: once a sentence in the properties "invar:not-looked-at", and in
// compositions, whose aggregate is "complete" only for a go image whose every file is listed.
//
// # Provenance
//
// The statement's subjects are the image's manifest and its root. The build type is BuildType and the image's kind, the
// external parameters are the image block, and the resolved dependencies are what the lock pins and what the programs were
// linked from. Whoever bakes attaches it unsigned. A server signs one of its own, which it makes from what it can see itself; the field
// invar_endorsement says which claims it has checked and which are the word of whoever baked. By SLSA's levels this
// is build level 1: the build does not run on the signer's platform.
package sbom

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/uuid"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/spec"
)

// format is raised when the same inputs would give another document.
const format = 1

// Build is what is known of how an image came to be.
type Build struct {
	Image    spec.Image
	Locked   image.LockedImage // its lock entry; zero where nothing needs pinning
	Resolved image.Resolved
	Base     *Build // of a layers image with a base
}

// Kind is how an image is made: ref, go, layers or debian.
func (b Build) Kind() string {
	switch {
	case b.Image.Go != nil:
		return "go"
	case b.Image.Layers != nil:
		return "layers"
	case b.Image.Debian != nil:
		return "debian"
	}
	return "ref"
}

// key is the digest of all that document and statement follow from.
func (b Build) key() (digest.Digest, error) {
	var base digest.Digest
	if b.Base != nil {
		base = b.Base.Resolved.Manifest
	}
	locked := map[string]image.LockedImage{}
	for at := &b; at != nil; at = at.Base {
		locked[string(at.Image.Name)] = at.Locked
	}
	return digest.OfValue(struct {
		Format     int
		Kind       string
		Resolved   image.Resolved
		Parameters parameters
		Base       digest.Digest
		Locked     map[string]image.LockedImage
	}{format, b.Kind(), b.Resolved, b.parameters(), base, locked})
}

// locked finds the pinned package of this name, version and architecture, in the image's lock entry or a base's.
func (b Build) locked() map[string]image.LockedPackage {
	all := map[string]image.LockedPackage{}
	for at := &b; at != nil; at = at.Base {
		for _, p := range at.Locked.Packages {
			all[p.Name+" "+p.Version+" "+p.Architecture] = p
		}
	}
	return all
}

// ownLayers counts the image's topmost layers that invar makes of files, and says whether it has no others.
func (b Build) ownLayers() (n int, all bool) {
	switch {
	case b.Image.Go != nil:
		return 2, true
	case b.Image.Layers == nil:
		return 0, false
	}
	all = true
	if b.Base != nil {
		n, all = b.Base.ownLayers()
	}
	if len(b.Image.Layers.Copy) > 0 {
		n++
	}
	return n, all
}

// file is a regular file of a layer.
type file struct {
	path   string
	digest digest.Digest
}

// maxFiles bounds how many files a document names one by one.
const maxFiles = 20_000

// ownFiles are the files of layers that invar made, the lowest first: uncompressed tars without whiteouts.
func ownFiles(layers []io.Reader) ([]file, error) {
	byPath := map[string]digest.Digest{}
	for _, l := range layers {
		for tr := tar.NewReader(l); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("reading a layer: %w", err)
			}
			if h.Typeflag != tar.TypeReg {
				continue
			}
			d, _, err := digest.OfReader(tr)
			if err != nil {
				return nil, fmt.Errorf("reading a layer: %w", err)
			}
			byPath["/"+h.Name] = d
		}
	}
	var all []file
	for _, p := range slices.Sorted(maps.Keys(byPath)) {
		all = append(all, file{p, byPath[p]})
	}
	return all, nil
}

const imageRef = "image"

// document makes the bill of materials.
type document struct {
	build      Build
	contents   contents
	files      []file
	components map[string]cdx.Component // by reference
	parts      map[string]bool          // references of what is directly in the image
	depends    map[string][]string
}

// encode returns the document as JSON.
func encode(b Build, c contents, files []file) ([]byte, error) {
	c.missed = slices.Clone(c.missed)
	d := &document{build: b, contents: c, files: files, components: map[string]cdx.Component{}, parts: map[string]bool{}, depends: map[string][]string{}}
	d.addSystem()
	d.addDebs()
	d.addAPKs()
	for _, p := range c.programs {
		d.addProgram(p)
	}
	d.addFiles()
	bom, err := d.bom()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		return nil, fmt.Errorf("encoding CycloneDX: %w", err)
	}
	return out.Bytes(), nil
}

// add puts a component directly into the image.
func (d *document) add(c cdx.Component) {
	d.components[c.BOMRef] = c
	d.parts[c.BOMRef] = true
}

func (d *document) addSystem() {
	s := d.contents.system
	if s.id == "" {
		return
	}
	d.add(cdx.Component{BOMRef: "os:" + s.distro(), Type: cdx.ComponentTypeOS, Name: s.id, Version: s.version, Description: s.name})
}

func (d *document) addDebs() {
	locked := d.build.locked()
	for _, p := range d.contents.debs {
		c := cdx.Component{Type: cdx.ComponentTypeLibrary, Name: p.name, Version: p.version, Licenses: licenses(d.contents.licenses[p.name])}
		upstream := p.source
		if p.sourceVersion != "" {
			upstream = cmp.Or(p.source, p.name) + "@" + p.sourceVersion
		}
		c.PackageURL = purl{kind: "deb", namespace: cmp.Or(d.contents.system.id, "debian"), name: p.name, version: p.version, qualifiers: [][2]string{
			{"arch", p.architecture}, {"distro", d.contents.system.distro()}, {"upstream", upstream},
		}}.String()
		c.BOMRef = c.PackageURL
		if l, ok := locked[p.name+" "+p.version+" "+p.architecture]; ok {
			c.Hashes = sha256Of(l.SHA256)
			c.Properties = properties("invar:deb:size", strconv.FormatInt(l.SizeBytes, 10))
		}
		d.add(c)
	}
}

func (d *document) addAPKs() {
	for _, p := range d.contents.apks {
		c := cdx.Component{Type: cdx.ComponentTypeLibrary, Name: p.name, Version: p.version, Licenses: licenses(splitLicenses(p.license))}
		upstream := p.origin
		if upstream == p.name {
			upstream = ""
		}
		c.PackageURL = purl{kind: "apk", namespace: cmp.Or(d.contents.system.id, "alpine"), name: p.name, version: p.version, qualifiers: [][2]string{
			{"arch", p.architecture}, {"distro", d.contents.system.distro()}, {"upstream", upstream},
		}}.String()
		c.BOMRef = c.PackageURL
		d.add(c)
	}
}

// goBuildSettings are those of a program's build that say something about what it is.
var goBuildSettings = []string{"-tags", "CGO_ENABLED", "GOARCH", "GOOS", "vcs", "vcs.modified", "vcs.revision", "vcs.time"}

// addProgram adds a program with the modules and the standard library that it was linked from.
func (d *document) addProgram(p program) {
	ref := "program:" + p.path
	pairs := []string{"invar:path", p.path, "invar:go:version", p.info.GoVersion}
	for _, s := range p.info.Settings {
		if slices.Contains(goBuildSettings, s.Key) {
			pairs = append(pairs, "invar:go:"+s.Key, s.Value)
		}
	}
	version := p.info.Main.Version
	if version == "(devel)" {
		version = ""
	}
	d.add(cdx.Component{
		BOMRef: ref, Type: cdx.ComponentTypeApplication, Name: cmp.Or(p.info.Path, p.path), Version: version, Hashes: sha256Of(p.digest),
		PackageURL: goPurl(cmp.Or(p.info.Main.Path, p.info.Path, "command-line-arguments"), version), Properties: properties(pairs...),
	})
	for _, m := range p.modules() {
		c := cdx.Component{BOMRef: m.purl(), Type: cdx.ComponentTypeLibrary, Name: m.path, Version: m.version, PackageURL: m.purl()}
		if m.sum != "" {
			c.Properties = properties("invar:go:sum", m.sum)
		}
		d.components[c.BOMRef] = c
		d.depends[ref] = append(d.depends[ref], c.BOMRef)
	}
}

// module is a Go module that a program was linked from.
type module struct{ path, version, sum string }

func (m module) purl() string { return goPurl(m.path, m.version) }

// hash returns the module's sum in hexadecimal digits, as in-toto's dirHash has it, or "".
func (m module) hash() string {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.sum, "h1:"))
	if err != nil || len(raw) != sha256.Size {
		return ""
	}
	return hex.EncodeToString(raw)
}

// modules are those of the program, replaced ones as what replaces them, and the standard library.
func (p program) modules() []module {
	version, _, _ := strings.Cut(strings.TrimPrefix(p.info.GoVersion, "go"), " ")
	all := []module{{path: "stdlib", version: version}}
	for _, m := range p.info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		all = append(all, module{m.Path, m.Version, m.Sum})
	}
	return all
}

// addFiles adds the files that invar itself put into the image, but programs, which are there already.
func (d *document) addFiles() {
	if len(d.files) > maxFiles {
		d.contents.miss("%d copied files, more than are named one by one", len(d.files))
		return
	}
	for _, f := range d.files {
		if _, ok := d.components["program:"+f.path]; !ok {
			d.add(cdx.Component{BOMRef: "file:" + f.path, Type: cdx.ComponentTypeFile, Name: f.path, Hashes: sha256Of(f.digest)})
		}
	}
	if d.build.Kind() == "layers" && len(d.files) > 0 {
		d.contents.miss("software inside of copied files, other than programs of the go command")
	}
}

// mountFiles are those that every root has.
var mountFiles = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}

// everyFile tells whether every file of the root is listed, or is one that every root has.
func (d *document) everyFile() bool {
	listed := len(d.files)
	for _, name := range mountFiles {
		if !slices.ContainsFunc(d.files, func(f file) bool { return f.path == name }) {
			listed++
		}
	}
	return listed == d.contents.files && len(d.files) <= maxFiles
}

// bom puts it all together, sorted.
func (d *document) bom() (*cdx.BOM, error) {
	key, err := d.build.key()
	if err != nil {
		return nil, err
	}
	d.depends[imageRef] = sortedKeys(d.parts)
	components := []cdx.Component{}
	for _, ref := range sortedKeys(d.components) {
		components = append(components, d.components[ref])
	}
	dependencies := []cdx.Dependency{}
	for _, ref := range sortedKeys(d.depends) {
		on := slices.Compact(slices.Sorted(slices.Values(d.depends[ref])))
		dependencies = append(dependencies, cdx.Dependency{Ref: ref, Dependencies: &on})
	}
	bom := cdx.NewBOM()
	bom.SerialNumber = uuid.NewHash(sha256.New(), uuid.Nil, []byte("invar sbom "+key), 8).URN()
	bom.Metadata = &cdx.Metadata{
		Timestamp:  d.build.date(),
		Lifecycles: &[]cdx.Lifecycle{{Phase: d.phase()}},
		Tools:      &cdx.ToolsChoice{Components: &[]cdx.Component{{Type: cdx.ComponentTypeApplication, Name: "invar"}}},
		Component:  d.image(),
		Properties: d.properties(),
	}
	bom.Components, bom.Dependencies, bom.Compositions = &components, &dependencies, d.compositions()
	return bom, nil
}

// date is the lock's source date: the image's, or that of what it is built on.
func (b Build) date() string {
	for at := &b; at != nil; at = at.Base {
		if at.Locked.Date != "" {
			return at.Locked.Date
		}
	}
	return ""
}

func (d *document) phase() cdx.LifecyclePhase {
	if d.build.Kind() == "ref" {
		return cdx.LifecyclePhasePostBuild
	}
	return cdx.LifecyclePhaseBuild
}

func (d *document) image() *cdx.Component {
	r := d.build.Resolved
	return &cdx.Component{
		BOMRef: imageRef, Type: cdx.ComponentTypeContainer, Name: string(d.build.Image.Name), Version: r.Manifest.String(), Hashes: sha256Of(r.Manifest),
		PackageURL: purl{kind: "oci", name: strings.ToLower(string(d.build.Image.Name)), version: r.Manifest.String(), qualifiers: [][2]string{{"arch", r.Platform.Architecture}}}.String(),
		Properties: properties("invar:root", r.Root.String(), "invar:root:size", strconv.FormatInt(r.RootSize, 10)),
	}
}

func (d *document) properties() *[]cdx.Property {
	pairs := []string{
		"invar:sbom:format", strconv.Itoa(format),
		"invar:image:kind", d.build.Kind(),
		"invar:root:files", strconv.Itoa(d.contents.files),
	}
	if d.build.Kind() == "debian" {
		pairs = append(pairs, "invar:packages-as-locked", strconv.FormatBool(installedAsLocked(d.build, d.contents)))
	}
	for _, m := range d.missed() {
		pairs = append(pairs, "invar:not-looked-at", m)
	}
	return properties(pairs...)
}

// missed are sentences about what was not looked at, sorted.
func (d *document) missed() []string {
	all := slices.Clone(d.contents.missed)
	if len(d.contents.programs) > 0 {
		all = append(all, "licenses of Go modules")
	}
	if len(d.contents.debs)+len(d.contents.apks) > 0 {
		all = append(all, "which package depends on which")
	}
	if !d.everyFile() {
		all = append(all, "which files belong to no package")
	}
	if d.build.foreign() {
		all = append(all, "software that is in no package database of dpkg or apk and is no program of the go command")
	}
	slices.Sort(all)
	return all
}

// foreign tells whether somebody else made the image, or what it is built on.
func (b Build) foreign() bool {
	for at := &b; at != nil; at = at.Base {
		if at.Kind() == "ref" {
			return true
		}
	}
	return false
}

// compositions say how complete the lists are: of what is in the image, and of what depends on what.
func (d *document) compositions() *[]cdx.Composition {
	parts := cdx.CompositionAggregateIncomplete
	if d.build.Kind() == "go" && len(d.contents.programs) == 1 && d.everyFile() {
		parts = cdx.CompositionAggregateComplete
	}
	all := []cdx.Composition{{Aggregate: parts, Assemblies: &[]cdx.BOMReference{imageRef}}}
	linked, unknown := []cdx.BOMReference{}, []cdx.BOMReference{}
	for _, ref := range sortedKeys(d.components) {
		switch {
		case strings.HasPrefix(ref, "program:"):
			linked = append(linked, cdx.BOMReference(ref))
		case d.parts[ref] && strings.HasPrefix(ref, "pkg:"):
			unknown = append(unknown, cdx.BOMReference(ref))
		}
	}
	if len(linked) > 0 {
		all = append(all, cdx.Composition{Aggregate: cdx.CompositionAggregateComplete, Dependencies: &linked})
	}
	if len(unknown) > 0 {
		all = append(all, cdx.Composition{Aggregate: cdx.CompositionAggregateUnknown, Dependencies: &unknown})
	}
	return &all
}

// installedAsLocked tells whether the root's package database has the packages of the lock and no other.
func installedAsLocked(b Build, c contents) bool {
	locked := b.locked()
	for _, p := range c.debs {
		if _, ok := locked[p.name+" "+p.version+" "+p.architecture]; !ok {
			return false
		}
	}
	return len(locked) > 0 && len(c.debs) == len(locked)
}

func sha256Of(d digest.Digest) *[]cdx.Hash {
	return &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: d.Hex()}}
}

func properties(pairs ...string) *[]cdx.Property {
	var all []cdx.Property
	for i := 0; i+1 < len(pairs); i += 2 {
		all = append(all, cdx.Property{Name: pairs[i], Value: pairs[i+1]})
	}
	return &all
}
