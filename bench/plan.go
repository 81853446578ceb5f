package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/spec/parse"
)

// benchPlan plans what nothing of is there yet: both sides read, evaluate, compare with an empty state, and print 1,000
// additions.
func benchPlan(ctx context.Context, b *bench) error {
	count := b.pick(1000, 100)
	app, err := b.largeApp(ctx, count)
	if err != nil {
		return err
	}
	d, err := b.newDaemon(ctx)
	if err != nil {
		return err
	}
	if _, err := d.run(ctx, app, "lock"); err != nil {
		return err
	}
	terraform, err := b.prepareTerraform(ctx, count)
	if err != nil {
		b.note("terraform is left out: %v", err)
	}
	var whole, alone, peer sample
	for range b.n + 1 {
		began := time.Now()
		if _, err := d.run(ctx, app, "plan", benchEnv, "-o", "json"); err != nil {
			return err
		}
		whole.since(began)
		if began, err = time.Now(), evaluate(app); err != nil {
			return err
		}
		alone.since(began)
		if terraform == nil {
			continue
		}
		began = time.Now()
		if _, err := outputOf(terraform(ctx, "plan", "-input=false", "-no-color", "-lock=false")); err != nil {
			return err
		}
		peer.since(began)
	}
	whole, alone, peer = whole[1:], alone[1:], peer[min(1, len(peer)):] // the first warms up
	limit := func(ratio float64) target {
		if terraform == nil {
			return target{}
		}
		return atLeast(ratio, 3, " ×")
	}
	ratio := func(ours sample) float64 {
		if terraform == nil {
			return 0
		}
		return ratios(peer, ours).p50()
	}
	b.row(fmt.Sprintf("invar plan, whole process, %d components", count), whole.ms(), peerTime(peer), ratio(whole), limit(ratio(whole)))
	b.row("  of which: parse, evaluate, record, digest", alone.ms(), "", 0, target{})
	return nil
}

func peerTime(s sample) string {
	if len(s) == 0 {
		return ""
	}
	return s.ms()
}

// largeApp writes an app of so many components that each have configuration of their own and share one small image. The image is
// there already, as Terraform builds none either.
func (b *bench) largeApp(ctx context.Context, count int) (string, error) {
	server, err := b.own(ctx, "serve")
	if err != nil {
		return "", err
	}
	layer, err := serverLayer(server)
	if err != nil {
		return "", err
	}
	if _, _, err := b.oneLayerImage(ctx, layer, false); err != nil {
		return "", err
	}
	dir := filepath.Join(b.dir, "large")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	var config bytes.Buffer
	fmt.Fprintf(&config, "app = \"large\"\n\nimage \"web\" {\n  ref = \"oci:../layout\"\n}\n\nenvironment %q {}\n", benchEnv)
	for i := range count {
		fmt.Fprintf(&config, "\ncomponent \"c%04d\" {\n  image = image.web\n  env = { NUMBER = \"%d\" }\n  port \"http\" { number = 8080 }\n}\n", i, i)
	}
	return dir, os.WriteFile(filepath.Join(dir, "invar.hcl"), config.Bytes(), 0o644)
}

// evaluate is the part of a plan that both client and server do: from the sources to the digest of the release.
func evaluate(app string) error {
	m, diags := parse.Load(os.DirFS(app))
	if err := diags.Err(); err != nil {
		return err
	}
	evaluated, diags := m.Evaluate(benchEnv, nil)
	if err := diags.Err(); err != nil {
		return err
	}
	one := digest.Of(nil)
	images := map[spec.ImageName]image.Resolved{"web": {Manifest: one, Size: 1, Root: one, RootSize: 1,
		Platform: image.Platform{OS: "linux", Architecture: goarch}, Config: image.Config{Entrypoint: []string{"/serve"}}}}
	r, err := release.Evaluate(evaluated, one, images, nil)
	if err != nil {
		return err
	}
	_, err = r.Digest()
	return err
}

// prepareTerraform writes as many terraform_data, which are built in, and returns how to run terraform on them.
func (b *bench) prepareTerraform(ctx context.Context, count int) (func(context.Context, ...string) *exec.Cmd, error) {
	path, err := exec.LookPath("terraform")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, "terraform")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	var config bytes.Buffer
	for i := range count {
		fmt.Fprintf(&config, "resource \"terraform_data\" \"c%04d\" {\n  input = {\n    image = \"web\"\n    env = { NUMBER = \"%d\" }\n    port = 8080\n  }\n}\n\n", i, i)
	}
	if err := os.WriteFile(filepath.Join(dir, "main.tf"), config.Bytes(), 0o644); err != nil {
		return nil, err
	}
	empty := filepath.Join(dir, "terraform.rc")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		return nil, err
	}
	run := func(ctx context.Context, args ...string) *exec.Cmd {
		cmd := command(ctx, path, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CHECKPOINT_DISABLE=1", "TF_IN_AUTOMATION=1", "TF_CLI_CONFIG_FILE="+empty)
		return cmd
	}
	if _, err := outputOf(run(ctx, "init", "-input=false", "-no-color")); err != nil {
		return nil, err
	}
	version, err := outputOf(run(ctx, "version"))
	b.note("peer: %s, %d terraform_data (built in: no provider's process, no network)", firstLine(version), count)
	return run, err
}
