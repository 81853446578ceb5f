package server

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/spec/parse"
	"github.com/invarhq/invar/state"
)

// founder is the actor of the first definition of the platform: there is nobody else yet.
var founder = control.Actor{Kind: state.ActorSystem, Name: "server"}

// foundPlatform gives a ledger without a definition of the platform its first: whoever runs the server is its administrator. It is a
// release like any other, with its sources, so that whoever changes it begins from what is in force.
func (s *Server) foundPlatform(ctx context.Context) error {
	if _, ok := s.control.State().Platform(); ok {
		return nil
	}
	users := founders()
	bundle, err := keepPlatform(ctx, s.content, parse.FirstPlatform(users))
	if err != nil {
		return fmt.Errorf("making the platform's first definition: %w", err)
	}
	move := control.Move{Proposal: control.Proposal{Env: platform.Env, Bundle: bundle}, Reason: "first start: whoever runs the server is its administrator"}
	if _, err := s.control.Apply(ctx, founder, move); err != nil {
		return fault.WithHint(fmt.Errorf("making the platform's first definition: %w", err), "environment %s is reserved for it", platform.Env)
	}
	first := users[0]
	s.log.InfoContext(ctx, fmt.Sprintf("first start: local user %s is this server's administrator (principal %s); change it with: invar init --platform && invar apply %s",
		first, parse.PrincipalOf(first), platform.Env))
	return nil
}

// founders are the local users who administer a new server: the one that it runs as, and root. They are named as the API names
// who speaks to its socket: by the number where there is no name.
func founders() []string {
	var out []string
	for _, uid := range []string{strconv.Itoa(os.Geteuid()), "0"} {
		name := uid
		if u, err := user.LookupId(uid); err == nil {
			name = u.Username
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// keepPlatform stores the bundle of a definition's sources, with the artifact that others pull it by, and returns its digest.
func keepPlatform(ctx context.Context, store *registry.Store, files map[string][]byte) (digest.Digest, error) {
	source, sourceDigest, err := release.SourceTar(files)
	if err != nil {
		return "", err
	}
	b := release.Bundle{V: release.Version, App: platform.App, Source: sourceDigest, Images: map[spec.ImageName]image.Resolved{}}
	artifact, err := release.BundleManifest(b, source)
	if err != nil {
		return "", err
	}
	for _, blob := range append(artifact.Blobs, release.Blob{Descriptor: artifact.Descriptor, Content: artifact.Manifest}) {
		if _, err := store.PutBlob(ctx, digest.Digest(blob.Descriptor.Digest), bytes.NewReader(blob.Content)); err != nil {
			return "", err
		}
	}
	return b.Digest()
}
