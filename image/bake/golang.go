package bake

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/crypto/x509roots/fallback/bundle"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// nonroot is the user of Go images, by the number that other minimal images use.
const nonroot = 65532

// buildGo returns the image of a main package, and builds it unless it was built of the same before.
func (b *baker) buildGo(ctx context.Context, img spec.Image, report func(Event)) (digest.Digest, error) {
	report(Event{Step: Building, Detail: img.Go.Package})
	key := b.goKey(ctx, img)
	if key != "" {
		if d, err := b.req.Store.Resolve(ctx, builtGo, key); err == nil && b.req.Store.Complete(d) {
			return d, nil
		}
	}
	d, err := b.linkGo(ctx, img)
	if err != nil || key == "" || b.goKey(ctx, img) != key { // the sources were changed meanwhile: nobody knows which of them were built
		return d, err
	}
	return d, b.req.Store.Tag(ctx, builtGo, key, d)
}

// linkGo builds a main package as ko does: two layers, what every Go image has, and /app/NAME.
func (b *baker) linkGo(ctx context.Context, img spec.Image) (digest.Digest, error) {
	tmp, err := os.MkdirTemp("", "invar-go-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "main")
	if err := b.compile(ctx, *img.Go, out); err != nil {
		return "", err
	}
	base, err := storeLayer(ctx, b.req.Store, baseEntries())
	if err != nil {
		return "", err
	}
	program, err := programEntries(string(img.Name), out)
	if err != nil {
		return "", err
	}
	app, err := storeLayer(ctx, b.req.Store, program)
	if err != nil {
		return "", err
	}
	a := assembly{platform: b.req.Platform, config: ocispec.ImageConfig{
		User:       fmt.Sprintf("%d:%d", nonroot, nonroot),
		Env:        []string{"HOME=/home/nonroot", "PATH=/app:/usr/local/bin:/usr/bin:/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"},
		Entrypoint: []string{"/app/" + string(img.Name)},
		WorkingDir: "/home/nonroot",
	}}
	a.add(base)
	a.add(app)
	return a.store(ctx, b.req.Store)
}

// goFlags are the flags of a build. What would make the result depend on the machine is switched off: paths, version control, build IDs.
func goFlags(g spec.GoImage) []string {
	flags := []string{"-trimpath", "-buildvcs=false", "-ldflags", strings.TrimSpace("-s -w -buildid= " + g.Ldflags)}
	if len(g.Tags) > 0 {
		flags = append(flags, "-tags", strings.Join(g.Tags, ","))
	}
	return flags
}

// goCommand is the go command in the app's directory, likewise without cgo, the environment's flags, and its choice of instructions.
func (b *baker) goCommand(ctx context.Context, g spec.GoImage, args ...string) (*exec.Cmd, error) {
	tool, err := exec.LookPath("go")
	if err != nil {
		return nil, fault.WithHint(fault.As(fault.Invalid, err), "install Go; an image of kind go is built with the machine's own toolchain")
	}
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Dir = b.req.Dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS="+b.req.Platform.OS, "GOARCH="+b.req.Platform.Architecture,
		"GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=", "GOFIPS140=off")
	for _, k := range slices.Sorted(maps.Keys(g.Env)) {
		cmd.Env = append(cmd.Env, k+"="+g.Env[k])
	}
	if b.req.GoCache != "" {
		cmd.Env = append(cmd.Env, "GOCACHE="+b.req.GoCache)
	}
	return cmd, nil
}

// compile makes the program.
func (b *baker) compile(ctx context.Context, g spec.GoImage, out string) error {
	cmd, err := b.goCommand(ctx, g, append(append([]string{"build", "-o", out}, goFlags(g)...), "--", g.Package)...)
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fault.Errorf(fault.Invalid, "go build %s: %w\n%s", g.Package, err, excerpt(said.String()))
	}
	return checkProgram(out, g.Package)
}

// excerpt keeps the last lines of what a tool said.
func excerpt(s string) string {
	const most = 30
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > most {
		lines = append([]string{"…"}, lines[len(lines)-most:]...)
	}
	return strings.Join(lines, "\n")
}

// checkProgram refuses what go build makes of a package that is no program: an archive, or nothing.
func checkProgram(out, pkg string) error {
	notMain := fault.WithHint(fault.Errorf(fault.Invalid, "package %s is not a main package", pkg), "name the directory of the program's main package")
	f, err := os.Open(out)
	if errors.Is(err, fs.ErrNotExist) {
		return notMain
	}
	if err != nil {
		return err
	}
	defer f.Close()
	magic := make([]byte, 4)
	if _, err := io.ReadFull(f, magic); err != nil || string(magic) != "\x7fELF" {
		return notMain
	}
	return nil
}

func programEntries(name, file string) ([]entry, error) {
	fi, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	return []entry{
		{name: "app", mode: fs.ModeDir | 0o755},
		{name: "app/" + name, mode: 0o755, size: fi.Size(), open: func() (io.ReadCloser, error) { return os.Open(file) }},
	}, nil
}

// baseEntries are what every Go image has: certificates, users and a place for temporary files.
func baseEntries() []entry {
	return []entry{
		{name: "etc", mode: fs.ModeDir | 0o755},
		{name: "etc/ssl", mode: fs.ModeDir | 0o755},
		{name: "etc/ssl/certs", mode: fs.ModeDir | 0o755},
		{name: "home", mode: fs.ModeDir | 0o755},
		{name: "home/nonroot", mode: fs.ModeDir | 0o700, uid: nonroot},
		{name: "tmp", mode: fs.ModeDir | fs.ModeSticky | 0o777},
		bytesEntry("etc/passwd", 0o644, "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"+
			"nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n"),
		bytesEntry("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\nnonroot:x:65532:\n"),
		bytesEntry("etc/nsswitch.conf", 0o644, "hosts: files dns\n"),
		bytesEntry("etc/ssl/certs/ca-certificates.crt", 0o644, certificates()),
	}
}

// certificates is Mozilla's list of authorities as x/crypto carries it: those that Mozilla trusts only under a
// condition, which a PEM file can't express, are left out.
func certificates() string {
	var b strings.Builder
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}) // a strings.Builder never fails
		}
	}
	return b.String()
}
