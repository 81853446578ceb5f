package release

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"

	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	godigest "github.com/opencontainers/go-digest"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/spec"
)

// Artifact is a manifest or an index with the blobs that belong to it alone, ready to be pushed: the blobs
// first, then the manifest.
type Artifact struct {
	Descriptor v1.Descriptor
	Manifest   []byte
	Blobs      []Blob
}

// Blob is some content and what names it.
type Blob struct {
	Descriptor v1.Descriptor
	Content    []byte
}

// Annotations of the artifacts, beside those of the OCI image specification.
const (
	AnnotationApp   = "com.github.invarhq.app"
	AnnotationEnv   = "com.github.invarhq.environment"
	AnnotationImage = "com.github.invarhq.image"
)

// BundleManifest makes the artifact of a bundle: an image manifest whose config is the bundle's canonical JSON
// and whose one layer is the archive of its sources.
func BundleManifest(b Bundle, source []byte) (Artifact, error) {
	config, err := EncodeBundle(b)
	if err != nil {
		return Artifact{}, err
	}
	if digest.Of(source) != b.Source {
		return Artifact{}, fault.Errorf(fault.Corrupt, "bundle of %s: its sources are %s, not %s", b.App, digest.Of(source), b.Source)
	}
	return manifest(TypeBundle, blob(TypeBundle, config), []Blob{blob(TypeSource, source)}, map[string]string{AnnotationApp: string(b.App)})
}

// RecordManifest makes the artifact of a release's record: an image manifest whose config is the canonical JSON
// of the record, so that the config's digest is the release's. Its one layer is the empty blob of the
// specification.
func RecordManifest(r Record) (Artifact, error) {
	config, err := Encode(r)
	if err != nil {
		return Artifact{}, err
	}
	empty := blob(v1.MediaTypeEmptyJSON, []byte("{}"))
	return manifest(TypeRecord, blob(TypeRecord, config), []Blob{empty}, map[string]string{AnnotationApp: string(r.App), AnnotationEnv: string(r.Env)})
}

// ReleaseIndex makes the artifact of a whole release: an image index of its record, its bundle and its component
// images. Whoever copies the index copies all that the release needs. bundle is the descriptor of the bundle's
// manifest; images are the bundle's.
func ReleaseIndex(r Record, bundle v1.Descriptor, images map[spec.ImageName]image.Resolved) (index Artifact, record Artifact, err error) {
	record, err = RecordManifest(r)
	if err != nil {
		return Artifact{}, Artifact{}, err
	}
	placed, err := imageDescriptors(r, images)
	if err != nil {
		return Artifact{}, Artifact{}, err
	}
	idx := v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, ArtifactType: TypeRecord,
		Manifests:   append([]v1.Descriptor{record.Descriptor, bundle}, placed...),
		Annotations: map[string]string{AnnotationApp: string(r.App), AnnotationEnv: string(r.Env)},
	}
	raw, err := json.Marshal(idx)
	if err != nil {
		return Artifact{}, Artifact{}, err
	}
	d := descriptor(v1.MediaTypeImageIndex, raw)
	d.ArtifactType = TypeRecord
	return Artifact{Descriptor: d, Manifest: raw}, record, nil
}

// imageDescriptors are those of the images that components run, each once, by digest.
func imageDescriptors(r Record, images map[spec.ImageName]image.Resolved) ([]v1.Descriptor, error) {
	byDigest := map[digest.Digest]v1.Descriptor{}
	for _, name := range slices.Sorted(maps.Keys(images)) {
		img := images[name]
		if _, ok := byDigest[img.Manifest]; ok {
			continue
		}
		byDigest[img.Manifest] = v1.Descriptor{
			MediaType: cmp.Or(img.MediaType, v1.MediaTypeImageManifest), Digest: godigest.Digest(img.Manifest), Size: img.Size,
			Platform:    &v1.Platform{OS: img.Platform.OS, Architecture: img.Platform.Architecture},
			Annotations: map[string]string{AnnotationImage: string(name)},
		}
	}
	used := map[digest.Digest]bool{}
	var out []v1.Descriptor
	for _, p := range r.Components {
		d, ok := byDigest[p.Component.Image]
		if !ok {
			return nil, fault.Errorf(fault.Invalid, "component %q: image %s is not among the bundle's", p.Component.Name, p.Component.Image)
		}
		if !used[p.Component.Image] {
			used[p.Component.Image] = true
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b v1.Descriptor) int { return cmp.Compare(a.Digest, b.Digest) })
	return out, nil
}

func manifest(artifactType string, config Blob, layers []Blob, annotations map[string]string) (Artifact, error) {
	m := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: artifactType,
		Config: config.Descriptor, Annotations: annotations,
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.Descriptor)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return Artifact{}, err
	}
	d := descriptor(v1.MediaTypeImageManifest, raw)
	d.ArtifactType = artifactType
	return Artifact{Descriptor: d, Manifest: raw, Blobs: append([]Blob{config}, layers...)}, nil
}

func blob(mediaType string, content []byte) Blob {
	return Blob{descriptor(mediaType, content), content}
}

func descriptor(mediaType string, content []byte) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: godigest.Digest(digest.Of(content)), Size: int64(len(content))}
}
