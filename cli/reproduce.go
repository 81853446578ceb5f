package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/bake"
	"github.com/invarhq/invar/image/compare"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/spec/parse"
)

func (a *app) reproduceCommand() *cobra.Command {
	var attest bool
	c := &cobra.Command{
		Use:   "reproduce ENV[@GENERATION]|DIGEST",
		Short: "Bake a release again from its bundle, and compare it to the last byte",
		Long: `Reproduce fetches the bundle of a release from the server's registry, bakes its images again exactly as the lock in it
says, with caches that are empty, evaluates the release again, and compares: every image's manifest, configuration, layers and
root, the bundle, and the record. Where something differs it says which layer, which file in it, and in what. It exits with 6 then.
DIGEST is that of a release, or of an image that a release in force or before it runs: that image alone is baked then.

The bundle holds the configuration, the lock and the files that the configuration reads. It does not hold what images of the
kinds go and layers are made of, nor local files that a ref names: that is taken from the directory (-C), whose configuration and
lock must be those of the bundle. Check out the commit that the release was made of.

With --attest the server records what came of it, in a statement that it signs. It says that this is the word of whoever
ran the command: the server has not seen it done. It needs the permission verify.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.reproduce(c.Context(), args[0], attest)
		},
	}
	c.Flags().BoolVar(&attest, "attest", false, "have the server record what came of it")
	return c
}

// reproduced is what came of it, for -o json.
type reproduced struct {
	Release digest.Digest `json:"release"`
	Same    bool          `json:"same"`
	api.Reproduction
	Notes    []string      `json:"notes,omitempty"`
	Attested *api.Attested `json:"attested,omitempty"`
}

func (a *app) reproduce(ctx context.Context, arg string, attest bool) error {
	ref, err := api.ParseRef(arg)
	if err != nil {
		return err
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	r, only, err := a.toReproduce(ctx, cl, ref)
	if err != nil {
		return err
	}
	if attest && only != "" {
		return fault.Errorf(fault.Invalid, "%s is an image: what can be attested is a whole release", only)
	}
	dir, err := os.MkdirTemp("", "invar-reproduce-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	out, err := a.makeAgain(ctx, cl, r, only, dir)
	if err != nil {
		return fmt.Errorf("reproducing release %s: %w", r.Digest.Short(), err)
	}
	if attest {
		done, err := cl.Attest(ctx, api.Ref{Digest: r.Digest}, out.Reproduction)
		if err != nil {
			return err
		}
		out.Attested = &done
	}
	return a.showReproduced(out)
}

// toReproduce finds the release that is asked for. Of an image's digest it is one that runs it, with the digest of that image's manifest.
func (a *app) toReproduce(ctx context.Context, cl *client.Client, ref api.Ref) (r api.Release, only digest.Digest, err error) {
	r, err = cl.Release(ctx, ref)
	if err == nil && ref.Digest != "" && r.Digest != ref.Digest {
		return r, "", fault.Errorf(fault.Corrupt, "asked for release %s, the server told of %s", ref.Digest, r.Digest)
	}
	if ref.Digest == "" || !errors.Is(err, fault.NotFound) {
		return r, "", err
	}
	envs, listErr := cl.Environments(ctx)
	if listErr != nil {
		return r, "", listErr
	}
	for _, env := range envs {
		history, err := cl.History(ctx, env.Name)
		if err != nil {
			return r, "", err
		}
		seen := map[digest.Digest]bool{"": true}
		for _, g := range history {
			if seen[g.Release] {
				continue
			}
			seen[g.Release] = true
			candidate, err := cl.Release(ctx, api.Ref{Digest: g.Release})
			if err != nil {
				return r, "", err
			}
			for _, c := range candidate.Components {
				if c.Image == ref.Digest || c.Root == ref.Digest {
					return candidate, c.Image, nil
				}
			}
		}
	}
	return r, "", fault.WithHint(err, "it is no image either that a release in the histories of the environments runs")
}

// again is a release that is being made again.
type again struct {
	app      *app
	from     registry.Remote
	dir      string // a temporary one
	digest   digest.Digest
	record   release.Record // as it is recorded
	bundle   release.Bundle // likewise
	files    map[string][]byte
	module   *parse.Module
	images   []spec.Image // to bake
	out      reproduced
	store    *registry.Store // of what is made
	made     map[spec.ImageName]image.Resolved
	anything bool // a difference was found
}

// makeAgain makes a release again, or with only one of its images, and compares.
func (a *app) makeAgain(ctx context.Context, cl *client.Client, r api.Release, only digest.Digest, dir string) (reproduced, error) {
	g := &again{app: a, from: a.registry(cl, spec.AppName(r.App)), dir: dir, digest: r.Digest, out: reproduced{Release: r.Digest}}
	for _, step := range []func(context.Context) error{
		g.fetch,
		func(context.Context) error { return g.choose(only) },
		g.bake,
		g.compareImages,
		func(ctx context.Context) error {
			if only != "" {
				return nil
			}
			return g.compareRelease(ctx)
		},
	} {
		if err := step(ctx); err != nil {
			return reproduced{}, err
		}
	}
	g.out.Same = !g.anything && !slices.ContainsFunc(g.out.Parts, func(p api.ReproducedPart) bool { return !p.Same() })
	return g.out, nil
}

// fetch reads record, bundle and sources, and believes none of it that its digest does not say.
func (g *again) fetch(ctx context.Context) error {
	raw, err := g.from.Blob(ctx, g.digest, release.MaxRecordBytes)
	if err != nil {
		return err
	}
	if g.record, err = release.Decode(raw); err != nil {
		return err
	}
	if raw, err = g.from.Blob(ctx, g.record.Bundle, release.MaxBundleBytes); err != nil {
		return err
	}
	if g.bundle, err = release.DecodeBundle(raw); err != nil {
		return err
	}
	source, err := g.from.Blob(ctx, g.bundle.Source, 2*release.MaxSourceBytes)
	if err != nil {
		return err
	}
	if g.files, err = release.ReadSource(source); err != nil {
		return err
	}
	fsys, err := release.SourceFS(g.files)
	if err != nil {
		return err
	}
	m, diags := parse.Load(fsys)
	g.module = m
	return diags.Err()
}

// choose says which images are to be baked: all, or the one with this manifest and what it is built on.
func (g *again) choose(only digest.Digest) error {
	if g.module.IsPlatform() {
		return nil
	}
	evaluated, diags := g.module.Evaluate(g.record.Env, nil)
	if err := diags.Err(); err != nil {
		return err
	}
	if only == "" {
		g.images = evaluated.Images
		return nil
	}
	need := map[spec.ImageName]bool{}
	for name, img := range g.bundle.Images {
		if img.Manifest != only {
			continue
		}
		for name != "" && !need[name] {
			need[name] = true
			name = baseOf(evaluated.Images, name)
		}
	}
	for _, img := range evaluated.Images {
		if need[img.Name] {
			g.images = append(g.images, img)
		}
	}
	return nil
}

func baseOf(images []spec.Image, name spec.ImageName) spec.ImageName {
	for _, img := range images {
		if img.Name == name && img.Layers != nil {
			return img.Layers.Base
		}
	}
	return ""
}

// outside are the images that are made of files which the bundle does not hold.
func outside(images []spec.Image) []string {
	var names []string
	for _, img := range images {
		scheme, _, _ := strings.Cut(img.Ref, ":")
		if img.Go != nil || img.Layers != nil && len(img.Layers.Copy) > 0 || scheme == "oci" || scheme == "oci-archive" || scheme == "docker-archive" {
			names = append(names, string(img.Name))
		}
	}
	return names
}

// sources returns the directory to bake from: the bundle's files alone where they suffice, else the app's directory.
func (g *again) sources() (string, error) {
	names := outside(g.images)
	g.out.Builder.Sources = "bundle"
	if len(names) > 0 {
		g.out.Builder.Sources = "directory"
		g.out.Notes = append(g.out.Notes, fmt.Sprintf("the bundle does not hold the sources of image %s: they are those of %s", strings.Join(names, ", "), g.app.dir))
		return g.app.dir, g.sameConfiguration()
	}
	dir := filepath.Join(g.dir, "sources")
	for name, content := range g.files {
		if err := writeNew(filepath.Join(dir, filepath.FromSlash(name)), content); err != nil {
			return "", err
		}
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// sameConfiguration refuses a directory whose configuration is not the bundle's.
func (g *again) sameConfiguration() error {
	fsys := os.DirFS(g.app.dir)
	m, _ := parse.Load(fsys)
	all := maps.Clone(g.files)
	for _, name := range m.Reads() {
		all[name] = nil
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		want, bundled := g.files[name]
		have, err := fs.ReadFile(fsys, name)
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		case bundled && err == nil && string(want) == string(have):
			continue
		case !bundled && err != nil:
			continue
		}
		how := "is another"
		if !bundled {
			how = "is not in the bundle"
		} else if err != nil {
			how = "is missing"
		}
		return fault.WithHint(fault.Errorf(fault.Conflict, "the configuration in %s is not the bundle's: %s %s", g.app.dir, name, how),
			"name the directory with -C, and check out the commit that the release was made of")
	}
	return nil
}

// platform is what the images are built for.
func (g *again) platform() (image.Platform, error) {
	var found image.Platform
	for name, img := range g.bundle.Images {
		if found != (image.Platform{}) && img.Platform != found {
			return found, fault.Errorf(fault.Invalid, "image %q is built for %s, another one for %s", name, img.Platform, found)
		}
		found = img.Platform
	}
	return found, nil
}

// bake bakes the images into stores that have nothing yet.
func (g *again) bake(ctx context.Context) error {
	host, _ := os.Hostname() // unknown is as good as unsaid
	g.out.Builder = api.Builder{Version: g.app.Version, Platform: goruntime.GOOS + "/" + goruntime.GOARCH, Host: host}
	dir, err := g.sources()
	if err != nil {
		return err
	}
	if g.store, err = registry.Open(filepath.Join(g.dir, "made")); err != nil {
		return err
	}
	if slices.ContainsFunc(g.images, func(img spec.Image) bool { return img.Go != nil }) {
		g.out.Builder.Go = goVersion(ctx, dir)
	}
	target, err := g.platform()
	if err != nil {
		return err
	}
	p := g.app.newProgress(g.images)
	result, err := bake.Bake(ctx, bake.Request{
		Dir: dir, Images: g.images, Lock: g.module.Lock(), Frozen: true, Platform: target, Store: g.store, Roots: g.roots("made"),
		GoCache: filepath.Join(g.dir, "go"), Progress: p.event,
	})
	p.done()
	g.made = result.Images
	return err
}

func (g *again) roots(side string) string { return filepath.Join(g.dir, side+"-roots") }

// goVersion is the go command's version in a directory, "" when it does not say.
func goVersion(ctx context.Context, dir string) string {
	cmd := exec.CommandContext(ctx, "go", "env", "GOVERSION")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

func (g *again) part(name string, recorded, made digest.Digest) {
	g.out.Parts = append(g.out.Parts, api.ReproducedPart{Name: name, Recorded: recorded, Made: made})
}

// differs tells a difference, as far as there is room.
func (g *again) differs(format string, args ...any) {
	g.anything = true
	switch n := len(g.out.Differences); {
	case n < maxTold-1:
		g.out.Differences = append(g.out.Differences, cut(fmt.Sprintf(format, args...)))
	case n == maxTold-1:
		g.out.Differences = append(g.out.Differences, "there are further differences")
	}
}

// maxTold bounds the differences that are told, and maxToldBytes each of them, as the server does.
const (
	maxTold      = 200
	maxToldBytes = 2000
)

func cut(s string) string {
	if len(s) <= maxToldBytes {
		return s
	}
	return strings.ToValidUTF8(s[:maxToldBytes-4], "") + " …"
}

// compareImages compares every image that was made with the one that is recorded.
func (g *again) compareImages(ctx context.Context) error {
	for _, img := range g.images {
		recorded, known := g.bundle.Images[img.Name]
		made := g.made[img.Name]
		if !known {
			g.differs("image %s: the bundle does not have it", img.Name)
			continue
		}
		g.part("image "+string(img.Name), recorded.Manifest, made.Manifest)
		g.part("root "+string(img.Name), recorded.Root, made.Root)
		if err := g.compareImage(ctx, img.Name, recorded, made); err != nil {
			return err
		}
	}
	return nil
}

func (g *again) compareImage(ctx context.Context, name spec.ImageName, recorded, made image.Resolved) error {
	if recorded.Manifest == made.Manifest {
		if recorded.Root != made.Root {
			g.differs("image %s: root: recorded %s, made %s, of the same layers: another version of invar packed it, or the bundle says what its layers do not give", name, recorded.Root, made.Root)
		}
		return nil
	}
	store, err := registry.Open(filepath.Join(g.dir, "recorded"))
	if err != nil {
		return err
	}
	err = store.Fetch(ctx, g.from, recorded.Manifest, nil)
	if errors.Is(err, fault.NotFound) {
		g.differs("image %s: recorded %s, made %s; no more can be told, since the server does not have the recorded one", name, recorded.Manifest, made.Manifest)
		return nil
	}
	if err != nil {
		return err
	}
	found, err := compare.Images(ctx, compare.Image{Store: store, Roots: g.roots("recorded"), Manifest: recorded.Manifest},
		compare.Image{Store: g.store, Roots: g.roots("made"), Manifest: made.Manifest}, g.dir)
	if err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	for _, d := range found {
		g.differs("image %s: %s", name, d)
	}
	return nil
}

// compareRelease makes bundle and record of what was baked, and compares them. The record is also evaluated of the recorded bundle, so
// that one that differs only because its images do is told from one that is evaluated otherwise.
func (g *again) compareRelease(ctx context.Context) error {
	pins := func(context.Context, spec.App) (release.Pins, error) { return release.PinsOf(g.record), nil }
	evaluated, err := evaluate(ctx, g.module, g.record.Env, g.record.Bundle, g.bundle.Images, pins)
	if err != nil {
		return err
	}
	if d, err := evaluated.Digest(); err != nil || d != g.digest {
		if err != nil {
			return err
		}
		g.differs("release: evaluating the recorded bundle gives %s", d)
		for line := range strings.Lines(release.Diff(g.record, evaluated).String()) {
			g.differs("release: %s", strings.TrimSpace(line))
		}
	}
	_, source, err := release.SourceTar(g.files)
	if err != nil {
		return err
	}
	bundle, err := release.Bundle{V: g.bundle.V, App: g.module.App(), Source: source, Images: g.made}.Digest()
	if err != nil {
		return err
	}
	g.part("bundle", g.record.Bundle, bundle)
	record, err := evaluate(ctx, g.module, g.record.Env, bundle, g.made, pins)
	if err != nil {
		return err
	}
	made, err := record.Digest()
	if err != nil {
		return err
	}
	g.part("release", g.digest, made)
	if made != g.digest && !g.anything {
		g.differs("release: recorded %s, made %s", g.digest, made)
	}
	return nil
}

func (a *app) showReproduced(r reproduced) error {
	if a.output == "json" {
		if err := a.json(r); err != nil {
			return err
		}
	} else if err := a.renderReproduced(r); err != nil {
		return err
	}
	if r.Same {
		return nil
	}
	return exit(ExitUntrue, fault.Errorf(fault.Corrupt, "release %s was not made again to the last byte", r.Release.Short()))
}

func (a *app) renderReproduced(r reproduced) error {
	var rows [][]string
	for _, p := range r.Parts {
		result := "same"
		if !p.Same() {
			result = "DIFFERS"
		}
		rows = append(rows, []string{p.Name, p.Recorded.Short(), orDash(p.Made.Short()), result})
	}
	if err := table(a.Stdout, "PART RECORDED MADE RESULT", rows); err != nil {
		return err
	}
	for _, d := range r.Differences {
		if _, err := fmt.Fprintln(a.Stdout, d); err != nil {
			return err
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintf(a.Stderr, "note: %s\n", n)
	}
	if r.Attested != nil {
		fmt.Fprintf(a.Stderr, "attested: entry %d, statement %s\n", r.Attested.Entry, r.Attested.Statement)
	}
	return nil
}
