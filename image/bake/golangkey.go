package bake

import (
	"bytes"
	"context"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/spec"
)

// Go programs that were built before are found again by all that their link depends on, for linking is what takes long when nothing has
// changed: the go command keeps what it compiled, but not what it linked without a build ID.
//
// What a program is made of is what the go command itself takes into account when it decides whether to link again (cmd/go, linkActionID):
// the build ID of every package in the program, which sums up its sources, embedded files, flags, compiler and, for the main package, the
// versions of all modules; the linker; its flags; and the target. As it does, this takes a release of Go to be known by its version.

// goFormat changes when the same inputs would make another image.
const goFormat = 1

const builtGo = registry.Repository("baked/go")

// goKey names the image by what goes into it. "" says that it can't be named exactly, or not at all: then it is built.
func (b *baker) goKey(ctx context.Context, img spec.Image) string {
	if !plainLdflags(img.Go.Ldflags) || os.Getenv("GO_EXTLINK_ENABLED") != "" || img.Go.Env["GO_EXTLINK_ENABLED"] != "" {
		return "" // another linker may have a part in it
	}
	asked := [][]string{
		append(append([]string{"list", "-deps", "-export"}, goFlags(*img.Go)...), "-f", "{{.ImportPath}} {{.BuildID}} {{.DefaultGODEBUG}}", "--", img.Go.Package),
		{"env", "GOVERSION", "GOOS", "GOARCH", "GOAMD64", "GOARM64", "GOEXPERIMENT", "GOFIPS140", "GOFLAGS", "GO_EXTLINK_ENABLED", "CGO_ENABLED"},
		{"tool", "link", "-V=full"},
	}
	answers := make([]string, len(asked))
	var g errgroup.Group
	for i, args := range asked {
		g.Go(func() error {
			cmd, err := b.goCommand(ctx, *img.Go, args...)
			if err != nil {
				return err
			}
			var out bytes.Buffer
			cmd.Stdout = &out
			err = cmd.Run()
			answers[i] = out.String()
			return err
		})
	}
	if g.Wait() != nil {
		return "" // go build says why
	}
	if !strings.HasSuffix(answers[1], "\n\n0\n") { // neither another linker nor cgo
		return ""
	}
	key, err := digest.OfValue(struct {
		Format   int
		Name     spec.ImageName
		Platform image.Platform
		Package  string
		Flags    []string
		Env      map[string]string
		Base     string
		Go       []string
	}{goFormat, img.Name, b.req.Platform, img.Go.Package, goFlags(*img.Go), img.Go.Env, certificates(), answers})
	if err != nil {
		return ""
	}
	return key.Hex()
}

// plainLdflags reports whether the flags do nothing but set variables and leave out tables. Others can name files and programs.
func plainLdflags(flags string) bool {
	for f := range strings.FieldsSeq(flags) {
		name, _, _ := strings.Cut(strings.TrimLeft(f, `'"`), "=")
		if strings.HasPrefix(name, "-") && name != "-X" && name != "-s" && name != "-w" {
			return false
		}
	}
	return true
}
