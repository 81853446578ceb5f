package server

import (
	"slices"
	"strings"
	"testing"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

func TestWhatIsAttachedIsKeptWithAllThatItNames(t *testing.T) {
	store, err := registry.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	img, _, err := store.Put(t.Context(), strings.NewReader(`{"schemaVersion":2}`))
	if err != nil {
		t.Fatal(err)
	}
	r, err := store.Refer(t.Context(), img, "application/vnd.example", []byte("content"), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := blobs{store, ""}.attached(img)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []digest.Digest{r.Digest, digest.Of([]byte("content")), digest.Of([]byte("{}"))} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not kept", want)
		}
	}
}

func TestImagesAreDescribedWithTheirBases(t *testing.T) {
	layers := func(name, base spec.ImageName) spec.Image {
		return spec.Image{Name: name, Layers: &spec.LayersImage{Base: base}}
	}
	bundle := release.Bundle{Images: map[spec.ImageName]image.Resolved{"a": {Manifest: "sha256:a"}, "b": {}, "c": {}}}
	images := []spec.Image{layers("c", "b"), layers("b", "a"), layers("a", "")}
	b, err := buildOf(images, images[0], image.Lock{}, bundle, len(images))
	if err != nil || b.Base.Base.Resolved.Manifest != "sha256:a" || b.Base.Base.Base != nil {
		t.Errorf("got %+v, %v", b, err)
	}
	for what, images := range map[string][]spec.Image{
		"a cycle":     {layers("a", "b"), layers("b", "a")},
		"no base":     {layers("a", "none")},
		"not bundled": {layers("x", "")},
	} {
		if _, err := buildOf(images, images[0], image.Lock{}, bundle, len(images)); err == nil {
			t.Errorf("%s is described", what)
		}
	}
}
