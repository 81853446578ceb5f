package handler_test

import (
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/invarhq/invar/api/handler"
	"github.com/invarhq/invar/image/registry"
)

// Registry clients push and pull under /v2/: through our client's transport on the unix socket, and over TCP with a
// token as password, as "docker login" keeps it.
func TestImagesAreTransferredThroughTheAPI(t *testing.T) {
	content, err := registry.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *handler.Config) { c.Registry = content.Handler(t.Context()) })
	pushed, err := random.Image(64<<10, 3)
	w.must(err)
	want, err := pushed.Digest()
	w.must(err)

	local, err := name.ParseReference(w.local.Base().Host+"/shop/web:1", name.Insecure)
	w.must(err)
	w.must(remote.Write(local, pushed, remote.WithTransport(w.local.Transport()), remote.WithContext(t.Context())))

	far, err := name.ParseReference(w.tcp+"/shop/web:1", name.Insecure)
	w.must(err)
	login := remote.WithAuth(&authn.Basic{Username: "ci", Password: w.token("ci")})
	pulled, err := remote.Image(far, login, remote.WithContext(t.Context()))
	w.must(err)
	if got, err := pulled.Digest(); err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := remote.Image(far, remote.WithContext(t.Context())); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("without a token: got %v, want 401", err)
	}
}
