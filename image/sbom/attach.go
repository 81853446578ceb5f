package sbom

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/erofs/go-erofs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/image/root"
	"github.com/invarhq/invar/spec"
)

// What is read is bounded: a bill of materials, and an envelope.
const (
	MaxBytes    = 64 << 20
	maxEnvelope = 8 << 20
)

// Maker makes and attaches what is to be said about images of a store, whose roots lie in a directory.
type Maker struct {
	Store *registry.Store
	Roots string
}

// Signer is the key of a server's ledger, and the ledger's name.
type Signer struct {
	Name string
	Key  ed25519.PrivateKey
}

// made is what was made of a build, as digests of the artifacts.
const made = registry.Repository("made/sbom")

// Attach makes the image's bill of materials and its provenance, unsigned, and attaches both to it. What is there already is not
// made again. It fails with fault.NotFound when the store lacks the image or the directory its root.
func (m Maker) Attach(ctx context.Context, b Build) error {
	return m.once(ctx, b, "attached", func(c contents, bom []byte) (registry.Referrer, error) {
		s, err := statement(b, c, digest.Of(bom), nil)
		if err != nil {
			return registry.Referrer{}, err
		}
		return m.Store.Refer(ctx, b.Resolved.Manifest, TypeStatement, s, map[string]string{annotationPredicate: PredicateType})
	})
}

// annotationPredicate tells what a statement is about without its being read, as other tools have it.
const annotationPredicate = "in-toto.io/predicate-type"

// Endorse makes the image's bill of materials and its provenance from what the caller knows itself, signs the provenance, and
// attaches both. The caller has built the root from the image's layers, and has the image block and the lock from the bundle.
func (m Maker) Endorse(ctx context.Context, b Build, by Signer) error {
	key := digest.Of(slices.Concat([]byte(by.Name), []byte{0}, by.Key.Public().(ed25519.PublicKey)))
	return m.once(ctx, b, "endorsed-"+key.Hex()[:16], func(c contents, bom []byte) (registry.Referrer, error) {
		s, err := statement(b, c, digest.Of(bom), endorsement(by.Name, b, c))
		if err != nil {
			return registry.Referrer{}, err
		}
		envelope, err := Sign(s, by.Key)
		if err != nil {
			return registry.Referrer{}, err
		}
		return m.Store.Refer(ctx, b.Resolved.Manifest, TypeEnvelope, envelope, map[string]string{annotationPredicate: PredicateType})
	})
}

// once makes what is not there yet. The tag is set last: after a crash all of it is made again, and is the same.
func (m Maker) once(ctx context.Context, b Build, what string, attest func(contents, []byte) (registry.Referrer, error)) error {
	key, err := b.key()
	if err != nil {
		return err
	}
	tag := what + "-" + key.Hex()
	if d, err := m.Store.Resolve(ctx, made, tag); err == nil && m.Store.Complete(d) {
		return nil
	}
	if err := m.make(ctx, b, tag, attest); err != nil {
		return fmt.Errorf("describing image %q: %w", b.Image.Name, err)
	}
	return nil
}

func (m Maker) make(ctx context.Context, b Build, tag string, attest func(contents, []byte) (registry.Referrer, error)) error {
	c, bom, err := m.read(ctx, b)
	if err != nil {
		return err
	}
	if _, err := m.Store.Refer(ctx, b.Resolved.Manifest, TypeSBOM, bom, nil); err != nil {
		return err
	}
	r, err := attest(c, bom)
	if err != nil {
		return err
	}
	return m.Store.Tag(ctx, made, tag, r.Digest)
}

// read looks into the root and makes the bill of materials.
func (m Maker) read(ctx context.Context, b Build) (contents, []byte, error) {
	f, err := os.Open(root.Path(m.Roots, b.Resolved.Root))
	if errors.Is(err, os.ErrNotExist) {
		return contents{}, nil, fault.As(fault.NotFound, err)
	}
	if err != nil {
		return contents{}, nil, err
	}
	defer f.Close()
	fsys, err := erofs.Open(f)
	if err != nil {
		return contents{}, nil, fmt.Errorf("reading root %s: %w", b.Resolved.Root, err)
	}
	c, err := look(ctx, fsys)
	if err != nil {
		return contents{}, nil, err
	}
	files, err := m.files(b, &c)
	if err != nil {
		return contents{}, nil, err
	}
	bom, err := encode(b, c, files)
	return c, bom, err
}

// files reads the layers that invar made of files. An image that does not look as if invar had made it has none.
func (m Maker) files(b Build, c *contents) ([]file, error) {
	raw, err := m.Store.Bytes(b.Resolved.Manifest)
	if err != nil {
		return nil, err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return nil, fault.Errorf(fault.Corrupt, "reading manifest %s: %v", b.Resolved.Manifest, err)
	}
	n, all := b.ownLayers()
	layers := manifest.Layers
	if len(layers) < n || all && len(layers) != n {
		c.miss("files of the image's %d layers: its kind has %d", len(layers), n)
		return nil, nil
	}
	var readers []io.Reader
	for _, l := range layers[len(layers)-n:] {
		if l.MediaType != ocispec.MediaTypeImageLayer {
			c.miss("files of layer %s: it is of type %s", l.Digest, l.MediaType)
			return nil, nil
		}
		r, _, err := m.Store.Open(digest.Digest(l.Digest))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		readers = append(readers, r)
	}
	return ownFiles(readers)
}

// Attested is what a server has signed about an image.
type Attested struct {
	SBOM       []byte // CycloneDX, JSON
	SBOMDigest digest.Digest
	Summary    Summary       // of SBOM
	Envelope   []byte        // DSSE, signed with the key that was asked for
	Digest     digest.Digest // of Envelope
	Provenance Provenance    // of Envelope
}

// Source is where attached content is: a store, or another registry.
type Source interface {
	Referrers(ctx context.Context, manifest digest.Digest) ([]registry.Referrer, error)
	Blob(ctx context.Context, d digest.Digest, limit int64) ([]byte, error)
}

var _ Source = registry.Remote{}

// stored is a store as a Source.
type stored struct{ *registry.Store }

func (s stored) Referrers(_ context.Context, manifest digest.Digest) ([]registry.Referrer, error) {
	return s.Store.Referrers(manifest)
}

func (s stored) Blob(_ context.Context, d digest.Digest, limit int64) ([]byte, error) {
	r, size, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, fault.Errorf(fault.Invalid, "blob %s has %d bytes, %d are allowed", d, size, limit)
	}
	return io.ReadAll(r)
}

// Find is FindIn a store.
func Find(ctx context.Context, store *registry.Store, manifest digest.Digest, name spec.ImageName, key ed25519.PublicKey) (Attested, error) {
	return FindIn(ctx, stored{store}, manifest, name, key)
}

// FindIn returns what the owner of the key has signed about the image, with the bill of materials that it names. What others
// attached is passed over. Where there are several, of image blocks that made the same image, it is that of the image block of
// this name, or else the first by digest. It fails with fault.NotFound when there is none.
func FindIn(ctx context.Context, from Source, manifest digest.Digest, name spec.ImageName, key ed25519.PublicKey) (Attested, error) {
	all, err := from.Referrers(ctx, manifest)
	if err != nil {
		return Attested{}, err
	}
	var found *Attested
	for _, r := range all {
		if r.Type != TypeEnvelope {
			continue
		}
		a, ok, err := signed(ctx, from, r.Content(), manifest, key)
		if err != nil {
			return Attested{}, err
		}
		if ok && (found == nil || a.Provenance.name() == name && found.Provenance.name() != name) {
			found = &a
		}
	}
	if found == nil {
		return Attested{}, fault.WithHint(fault.Errorf(fault.NotFound, "nothing that this key signed is attached to image %s", manifest),
			"plan or apply a release with it: the server attests what it evaluates")
	}
	if found.SBOM, err = from.Blob(ctx, found.SBOMDigest, MaxBytes); err != nil {
		return Attested{}, fmt.Errorf("reading the SBOM of image %s: %w", manifest, err)
	}
	found.Summary, err = Summarize(found.SBOM)
	return *found, err
}

// signed reads an envelope, and reports whether the key signed it about the image. An envelope that is no good is nobody's failure:
// anybody may attach one.
func signed(ctx context.Context, from Source, envelope, manifest digest.Digest, key ed25519.PublicKey) (Attested, bool, error) {
	raw, err := from.Blob(ctx, envelope, maxEnvelope)
	if err != nil {
		return Attested{}, false, err
	}
	statement, err := Verify(raw, key)
	if err != nil {
		return Attested{}, false, nil
	}
	p, err := ParseProvenance(statement)
	if err != nil || !p.About(manifest) {
		return Attested{}, false, nil
	}
	return Attested{SBOMDigest: p.SBOM(), Envelope: raw, Digest: envelope, Provenance: p}, true, nil
}
