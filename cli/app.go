package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/bake"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/spec/parse"
)

// load reads the app's directory and reports every problem in it. Warnings are printed, errors returned.
func (a *app) load() (*parse.Module, error) {
	m, _ := parse.Load(os.DirFS(a.dir))
	return m, a.diagnose(m.Validate()) // which has what Load found, too
}

// loadToLock is load for commands that pin what is not pinned yet: that is no problem then.
func (a *app) loadToLock() (*parse.Module, error) {
	m, _ := parse.Load(os.DirFS(a.dir))
	return m, a.diagnose(slices.DeleteFunc(m.Validate(), func(d parse.Diagnostic) bool { return d.Summary == parse.NotPinned }))
}

// diagnose prints the problems and returns an error when one of them is not a warning.
func (a *app) diagnose(diags parse.Diagnostics) error {
	if len(diags) > 0 {
		fmt.Fprintln(a.Stderr, strings.TrimRight(diags.String(), "\n"))
	}
	return a.problems(diags)
}

// problems returns an error when one of the diagnostics is not a warning.
func (a *app) problems(diags parse.Diagnostics) error {
	n := 0
	for _, d := range diags {
		if d.Severity == parse.Error {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return fault.Errorf(fault.Invalid, "%s in %s", plural(n, "problem"), a.dir)
}

func (a *app) validateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate",
		Short: "Report every problem of the app's configuration",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.output == "json" {
				m, _ := parse.Load(os.DirFS(a.dir))
				diags := append(parse.Diagnostics{}, m.Validate()...)
				return errors.Join(a.json(diags), a.problems(diags))
			}
			m, err := a.load()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.Stdout, "%s is valid for %s\n", m.App(), join(m.Environments()))
			return err
		},
	}
}

func join[S ~string](names []S) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = string(n)
	}
	return strings.Join(out, ", ")
}

func (a *app) fmtCommand() *cobra.Command {
	var check bool
	c := &cobra.Command{
		Use:   "fmt",
		Short: "Format the app's configuration",
		Long:  "Fmt rewrites the *.hcl files of the app's directory in the canonical layout, and names those it changed.",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			files, err := filepath.Glob(filepath.Join(a.dir, "*.hcl"))
			if err != nil {
				return err
			}
			changed := []string{}
			for _, f := range files {
				src, err := os.ReadFile(f)
				if err != nil {
					return fmt.Errorf("formatting: %w", err)
				}
				out := parse.Format(src)
				if string(out) == string(src) {
					continue
				}
				changed = append(changed, f)
				if a.output != "json" {
					fmt.Fprintln(a.Stdout, f)
				}
				if check {
					continue
				}
				if err := writeBeside(f, out); err != nil {
					return fmt.Errorf("formatting %s: %w", f, err)
				}
			}
			if a.output == "json" {
				err = a.json(changed)
			}
			if err == nil && check && len(changed) > 0 {
				return exit(ExitFailed, nil)
			}
			return err
		},
	}
	c.Flags().BoolVar(&check, "check", false, "change nothing; exit with 1 when a file is not formatted")
	return c
}

// writeBeside replaces a file in one step, so that a crash leaves the old one or the new one.
func writeBeside(file string, content []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(content)
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}

func (a *app) initCommand() *cobra.Command {
	var name string
	var ofPlatform bool
	c := &cobra.Command{
		Use:   "init [--platform [DIR]]",
		Short: "Write a first configuration for the directory",
		Long: `Init writes invar.hcl. In a Go module it makes an image of the main package that it finds, with a component and a
route; elsewhere it writes a starter app to begin from. It never overwrites a file.

With --platform it writes the platform's definition that is in force on the server, platform.hcl and the files of its
policies, into DIR, or else the directory: who there is, who may do what, whose approval a change needs. Edit it,
then: invar apply platform.`,
		Args: func(c *cobra.Command, args []string) error {
			if ofPlatform {
				return cobra.MaximumNArgs(1)(c, args)
			}
			return cobra.NoArgs(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			if ofPlatform {
				return a.initPlatform(c.Context(), args)
			}
			if name == "" {
				abs, err := filepath.Abs(a.dir)
				if err != nil {
					return err
				}
				name = spec.SuggestName(filepath.Base(abs))
			}
			files, notes, err := parse.Init(os.DirFS(a.dir), name)
			if err != nil {
				return err
			}
			for _, n := range notes {
				defer fmt.Fprintln(a.Stderr, n)
			}
			return a.writeFiles(a.dir, files)
		},
	}
	c.Flags().StringVar(&name, "name", "", "name of the app; the directory's unless given")
	c.Flags().BoolVar(&ofPlatform, "platform", false, "write the platform's definition that is in force")
	return c
}

// initPlatform writes the sources of the definition that is in force.
func (a *app) initPlatform(ctx context.Context, args []string) error {
	dir := a.dir
	if len(args) == 1 {
		dir = args[0]
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	r, err := cl.Release(ctx, api.Ref{Env: string(platform.Env)})
	if err != nil {
		return err
	}
	files, err := a.sources(ctx, cl, platform.App, r.Bundle)
	if err != nil {
		return err
	}
	return a.writeFiles(dir, files)
}

// writeFiles writes files below dir, unless one of them is there.
func (a *app) writeFiles(dir string, files map[string][]byte) error {
	names := slices.Sorted(maps.Keys(files))
	for _, f := range names {
		if _, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(f))); err == nil {
			return fault.Errorf(fault.Conflict, "%s exists already", filepath.Join(dir, f))
		}
	}
	for _, f := range names {
		if err := writeNew(filepath.Join(dir, filepath.FromSlash(f)), files[f]); err != nil {
			return err
		}
		if a.output != "json" {
			fmt.Fprintf(a.Stdout, "wrote %s\n", f)
		}
	}
	if a.output == "json" {
		return a.json(names)
	}
	return nil
}

func writeNew(file string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fault.Errorf(fault.Conflict, "%s exists already", file)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}

func (a *app) lockCommand() *cobra.Command {
	var update []string
	c := &cobra.Command{
		Use:   "lock",
		Short: "Pin what is mutable: tags to digests, packages to versions and hashes",
		Long: `Lock writes invar.lock.hcl. What is pinned already stays as it is, but for the images that --update names.
Keep the file in version control: two machines with the same lock build the same images.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			m, req, err := a.request(a.loadToLock)
			if err != nil {
				return err
			}
			req.LockOnly = true
			for _, n := range update {
				req.Update = append(req.Update, spec.ImageName(n))
			}
			_, err = a.bake(c.Context(), m, req)
			return err
		},
	}
	c.Flags().StringArrayVar(&update, "update", nil, "pin image `NAME` anew; may be given again")
	return c
}

func (a *app) buildCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Lock and build the app's images",
		Long: `Build locks what the lock does not pin yet, and bakes every image, several at a time. The same sources and lock
give the same digests on any machine.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			m, req, err := a.request(a.loadToLock)
			if err != nil {
				return err
			}
			baked, err := a.bake(c.Context(), m, req)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(baked)
			}
			var rows [][]string
			for _, n := range slices.Sorted(maps.Keys(baked)) {
				r := baked[n]
				rows = append(rows, []string{string(n), r.Platform.String(), r.Manifest.String(), r.Root.Short(), spec.FormatSize(r.RootSize)})
			}
			return table(a.Stdout, "IMAGE PLATFORM MANIFEST ROOT SIZE", rows)
		},
	}
}

// images are the app's images. They belong to the bundle, which is the same for every environment: an image that differs
// between two of them is refused.
func (a *app) images(load func() (*parse.Module, error)) (*parse.Module, []spec.Image, error) {
	m, err := load()
	if err != nil {
		return nil, nil, err
	}
	var first spec.App
	for i, env := range m.Environments() {
		evaluated, diags := m.Evaluate(env, nil)
		if err := a.diagnose(diags); err != nil {
			return nil, nil, err
		}
		if i == 0 {
			first = evaluated
		} else if !reflect.DeepEqual(first.Images, evaluated.Images) {
			return nil, nil, fault.WithHint(
				fault.Errorf(fault.Invalid, "the images differ between %s and %s: one bundle goes to every environment", first.Env.Name, env),
				"take variables and env.name out of the image blocks; components may use them")
		}
	}
	return m, first.Images, nil
}

// cache is where this user's images are kept between builds.
func (a *app) cache() (store *registry.Store, roots string, err error) {
	base := a.Getenv("INVAR_CACHE")
	if base == "" {
		if base, err = os.UserCacheDir(); err != nil {
			return nil, "", fault.WithHint(fault.As(fault.Invalid, err), "set INVAR_CACHE to a directory")
		}
		base = filepath.Join(base, "invar")
	}
	store, err = registry.Open(filepath.Join(base, "oci"))
	return store, filepath.Join(base, "roots"), err
}

// request asks to bake the images of the app's directory, which load reads.
func (a *app) request(load func() (*parse.Module, error)) (*parse.Module, bake.Request, error) {
	m, images, err := a.images(load)
	if err != nil {
		return nil, bake.Request{}, err
	}
	store, roots, err := a.cache()
	if err != nil {
		return nil, bake.Request{}, err
	}
	return m, bake.Request{Dir: a.dir, Images: images, Lock: m.Lock(), Store: store, Roots: roots}, nil
}

// bake bakes with progress, and writes the lock when it has changed.
func (a *app) bake(ctx context.Context, m *parse.Module, req bake.Request) (map[spec.ImageName]image.Resolved, error) {
	p := a.newProgress(req.Images)
	req.Progress = p.event
	result, err := bake.Bake(ctx, req)
	p.done()
	if err != nil {
		return nil, err
	}
	before, after := parse.WriteLock(m.Lock()), parse.WriteLock(result.Lock)
	file := filepath.Join(a.dir, parse.LockFile)
	if _, statErr := os.Stat(file); string(before) == string(after) && (statErr == nil || len(result.Lock.Images) == 0) {
		return result.Images, nil
	}
	if err := writeBeside(file, after); err != nil {
		return nil, fmt.Errorf("writing the lock: %w", err)
	}
	fmt.Fprintf(a.Stderr, "wrote %s\n", parse.LockFile)
	return result.Images, nil
}

// known says that the directory has no such environment, and which it has.
func (a *app) known(m *parse.Module, env spec.EnvName) error {
	if slices.Contains(m.Environments(), env) {
		return nil
	}
	err := fault.Errorf(fault.NotFound, "%s has no environment %q", m.App(), env)
	switch {
	case m.IsPlatform():
		return fault.WithHint(err, "%s has the platform's definition, which goes to: invar plan %s", a.dir, platform.Env)
	case env == platform.Env:
		return fault.WithHint(err, "the platform's definition has a directory of its own; invar init --platform DIR writes it")
	}
	return fault.WithHint(err, "it has %s; an environment is a block: environment %q {}", join(m.Environments()), env)
}

// make makes the release for env of the directory as it is, and brings it to the server.
func (a *app) make(ctx context.Context, env spec.EnvName) (made, *client.Client, error) {
	m, req, err := a.request(a.load)
	if err != nil {
		return made{}, nil, err
	}
	if err := a.known(m, env); err != nil {
		return made{}, nil, err
	}
	cl, err := a.client()
	if err != nil {
		return made{}, nil, err
	}
	if _, err := cl.Server(ctx); err != nil { // before minutes of building
		return made{}, nil, err
	}
	req.Frozen = true
	baked, err := a.bake(ctx, m, req)
	if err != nil {
		return made{}, nil, err
	}
	rel, err := a.release(ctx, env, baked, req.Store, serverPins(cl, env))
	if err != nil {
		return made{}, nil, err
	}
	return rel, cl, a.push(ctx, cl, m.App(), req.Store, rel)
}

// plan makes the release for env, brings it to the server, and asks what applying it would do.
func (a *app) plan(ctx context.Context, env spec.EnvName) (api.Plan, error) {
	made, cl, err := a.make(ctx, env)
	if err != nil {
		return api.Plan{}, err
	}
	return cl.Plan(ctx, string(env), api.PlanRequest{Bundle: made.bundle, Release: made.release})
}

// release makes bundle and release of the directory as it is now, the lock included.
func (a *app) release(ctx context.Context, env spec.EnvName, images map[spec.ImageName]image.Resolved, store *registry.Store, pins pinner) (made, error) {
	fsys := os.DirFS(a.dir)
	m, diags := parse.Load(fsys)
	if err := a.diagnose(diags); err != nil {
		return made{}, err
	}
	files := map[string][]byte{}
	for _, name := range m.Reads() {
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return made{}, fmt.Errorf("bundling: %w", err)
		}
		files[name] = b
	}
	return makeRelease(ctx, env, files, images, store, pins)
}
