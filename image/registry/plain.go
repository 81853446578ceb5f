package registry

import (
	"bytes"
	"encoding/json"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// plainImage is an image with its layers uncompressed: an OCI manifest over the same configuration, whose layers
// are named by their diff IDs.
type plainImage struct{ v1.Image }

func (p plainImage) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func (p plainImage) Layers() ([]v1.Layer, error) {
	layers, err := p.Image.Layers()
	if err != nil {
		return nil, err
	}
	plain := make([]v1.Layer, len(layers))
	for i, l := range layers {
		plain[i] = plainLayer{l}
	}
	return plain, nil
}

func (p plainImage) Manifest() (*v1.Manifest, error) {
	config, err := p.RawConfigFile()
	if err != nil {
		return nil, err
	}
	h, size, err := v1.SHA256(bytes.NewReader(config))
	if err != nil {
		return nil, err
	}
	m := &v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		Config:        v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: h, Size: size},
		Layers:        []v1.Descriptor{},
	}
	layers, err := p.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		d := v1.Descriptor{MediaType: types.OCIUncompressedLayer}
		if d.Digest, err = l.Digest(); err != nil {
			return nil, err
		}
		if d.Size, err = l.Size(); err != nil {
			return nil, err
		}
		m.Layers = append(m.Layers, d)
	}
	return m, nil
}

func (p plainImage) RawManifest() ([]byte, error) {
	m, err := p.Manifest()
	if err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

func (p plainImage) Digest() (v1.Hash, error) {
	raw, err := p.RawManifest()
	if err != nil {
		return v1.Hash{}, err
	}
	h, _, err := v1.SHA256(bytes.NewReader(raw))
	return h, err
}

func (p plainImage) Size() (int64, error) {
	raw, err := p.RawManifest()
	return int64(len(raw)), err
}

type plainLayer struct{ v1.Layer }

func (l plainLayer) Digest() (v1.Hash, error)            { return l.Layer.DiffID() }
func (l plainLayer) MediaType() (types.MediaType, error) { return types.OCIUncompressedLayer, nil }
func (l plainLayer) Compressed() (io.ReadCloser, error)  { return l.Layer.Uncompressed() }
func (l plainLayer) Size() (int64, error) {
	r, err := l.Layer.Uncompressed()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(io.Discard, r)
}
