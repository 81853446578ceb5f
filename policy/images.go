package policy

import (
	"strings"

	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/spec"
)

// Images describes an app's images as a policy sees them. SBOMs are those that are known, by image.
func Images(defined []spec.Image, lock image.Lock, baked map[spec.ImageName]image.Resolved, sboms map[spec.ImageName]SBOM) map[spec.ImageName]Image {
	out := make(map[spec.ImageName]Image, len(defined))
	for _, d := range defined {
		img := Image{Manifest: baked[d.Name].Manifest, Kind: kindOfImage(d), Immutable: true, Pinned: true}
		switch img.Kind {
		case KindRef:
			img.Reference = d.Ref
			img.Repository, img.Tag = splitReference(d.Ref)
			img.Immutable = !image.Mutable(d.Ref)
			img.Pinned = lock.Check(string(d.Name), image.Want{Ref: d.Ref}) == nil
		case KindDebian:
			img.Pinned = lock.Check(string(d.Name), image.Want{Suite: d.Debian.Suite, Packages: d.Debian.Packages}) == nil
		}
		if s, ok := sboms[d.Name]; ok {
			img.SBOM = &s
		}
		out[d.Name] = img
	}
	return out
}

func kindOfImage(i spec.Image) ImageKind {
	switch {
	case i.Go != nil:
		return KindGo
	case i.Layers != nil:
		return KindLayers
	case i.Debian != nil:
		return KindDebian
	}
	return KindRef
}

// splitReference returns what a reference names in full, as container tools read it: without a registry it is Docker
// Hub's, without a path there it is below library. An image from a file has no repository.
func splitReference(ref string) (repository, tag string) {
	for _, scheme := range []string{"oci:", "oci-archive:", "docker-archive:"} {
		if strings.HasPrefix(ref, scheme) {
			return "", ""
		}
	}
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		ref, tag = ref[:i], ref[i+1:]
	}
	host, _, found := strings.Cut(ref, "/")
	switch {
	case !found:
		return "docker.io/library/" + ref, tag
	case !strings.ContainsAny(host, ".:") && host != "localhost":
		return "docker.io/" + ref, tag
	case host == "index.docker.io":
		return "docker.io" + strings.TrimPrefix(ref, host), tag
	}
	return ref, tag
}
