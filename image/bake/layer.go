package bake

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	godigest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/image/sbom"
	"github.com/invarhq/invar/spec"
)

// entry is a file of a layer. Its owner is root.
type entry struct {
	name string // without a leading slash
	mode fs.FileMode
	uid  int
	link string                        // of a symbolic link
	size int64                         // of a regular file
	open func() (io.ReadCloser, error) // of a regular file
}

func bytesEntry(name string, mode fs.FileMode, content string) entry {
	return entry{name: name, mode: mode, size: int64(len(content)), open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(content)), nil
	}}
}

// storeLayer writes the entries, sorted, as an uncompressed tar into the store.
func storeLayer(ctx context.Context, store *registry.Store, entries []entry) (ocispec.Descriptor, error) {
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeLayer(w, entries)) }()
	d, size, err := store.Put(ctx, r)
	r.CloseWithError(err) // ends the writer if it did not come to its end
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: godigest.Digest(d), Size: size}, nil
}

func writeLayer(w io.Writer, entries []entry) error {
	tw := tar.NewWriter(w)
	for _, e := range entries {
		if err := e.write(tw); err != nil {
			return fmt.Errorf("adding %s: %w", e.name, err)
		}
	}
	return tw.Close()
}

func (e entry) write(tw *tar.Writer) error {
	h := &tar.Header{Name: e.name, Mode: int64(e.mode.Perm()), Uid: e.uid, Gid: e.uid, ModTime: time.Unix(0, 0)}
	if e.mode&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	switch {
	case e.mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, e.name+"/"
	case e.mode.Type() == fs.ModeSymlink:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.link, 0o777
	default:
		h.Typeflag, h.Size = tar.TypeReg, e.size
	}
	if err := tw.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	r, err := e.open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(tw, r)
	return err
}

// assembly is an image about to be stored.
type assembly struct {
	platform image.Platform
	layers   []ocispec.Descriptor
	diffIDs  []godigest.Digest
	config   ocispec.ImageConfig
}

// add puts an uncompressed layer on top.
func (a *assembly) add(l ocispec.Descriptor) {
	a.layers = append(slices.Clip(a.layers), l)
	a.diffIDs = append(slices.Clip(a.diffIDs), l.Digest)
}

// store writes configuration and manifest and returns the manifest's digest.
func (a assembly) store(ctx context.Context, s *registry.Store) (digest.Digest, error) {
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: a.platform.OS, Architecture: a.platform.Architecture},
		Config:   a.config,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: a.diffIDs},
	}
	c, err := storeJSON(ctx, s, config)
	if err != nil {
		return "", err
	}
	c.MediaType = ocispec.MediaTypeImageConfig
	m, err := storeJSON(ctx, s, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    c,
		Layers:    a.layers,
	})
	return digest.Digest(m.Digest), err
}

func storeJSON(ctx context.Context, s *registry.Store, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d, size, err := s.Put(ctx, strings.NewReader(string(b)))
	return ocispec.Descriptor{Digest: godigest.Digest(d), Size: size}, err
}

// load reads an image of the store to build on.
func load(s *registry.Store, manifest digest.Digest) (assembly, error) {
	var m ocispec.Manifest
	if err := loadJSON(s, manifest, &m); err != nil {
		return assembly{}, fmt.Errorf("reading base: %w", err)
	}
	var c ocispec.Image
	if err := loadJSON(s, digest.Digest(m.Config.Digest), &c); err != nil {
		return assembly{}, fmt.Errorf("reading base: %w", err)
	}
	return assembly{
		platform: image.Platform{OS: c.OS, Architecture: c.Architecture},
		layers:   m.Layers,
		diffIDs:  c.RootFS.DiffIDs,
		config:   c.Config,
	}, nil
}

func loadJSON(s *registry.Store, d digest.Digest, v any) error {
	b, err := s.Bytes(d)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fault.Errorf(fault.Corrupt, "%s: %v", d, err)
	}
	return nil
}

// layer adds files of the app's directory to a base.
func (b *baker) layer(ctx context.Context, img spec.LayersImage, base *sbom.Build, report func(Event)) (digest.Digest, error) {
	report(Event{Step: Building})
	a := assembly{platform: b.req.Platform}
	if base != nil {
		var err error
		if a, err = load(b.req.Store, base.Resolved.Manifest); err != nil {
			return "", err
		}
	}
	if len(img.Copy) > 0 {
		entries, err := collect(b.req.Dir, img.Copy)
		if err != nil {
			return "", err
		}
		l, err := storeLayer(ctx, b.req.Store, entries)
		if err != nil {
			return "", err
		}
		a.add(l)
	}
	a.config = configure(a.config, img.Env, img.User, img.WorkDir, img.Entrypoint, img.Command)
	return a.store(ctx, b.req.Store)
}

// configure lays settings over a configuration. A new entrypoint drops the old command, as in other tools.
func configure(c ocispec.ImageConfig, env map[string]string, user, workDir string, entrypoint, command []string) ocispec.ImageConfig {
	all := map[string]string{}
	for _, kv := range c.Env {
		k, v, _ := strings.Cut(kv, "=")
		all[k] = v
	}
	maps.Copy(all, env)
	c.Env = nil
	for _, k := range slices.Sorted(maps.Keys(all)) {
		c.Env = append(c.Env, k+"="+all[k])
	}
	c.User = cmp.Or(user, c.User)
	c.WorkingDir = cmp.Or(workDir, c.WorkingDir)
	if len(entrypoint) > 0 {
		c.Entrypoint, c.Cmd = entrypoint, nil
	}
	if len(command) > 0 {
		c.Cmd = command
	}
	return c
}

// collect finds what copies asks for: a directory's content goes below its destination, a file to its
// destination, or into it when that ends in a slash. Nothing outside of dir is read, also not through links.
func collect(dir string, copies map[string]string) ([]entry, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the app's directory: %w", err)
	}
	defer root.Close()
	byName := map[string]entry{}
	for _, from := range slices.Sorted(maps.Keys(copies)) {
		entries, err := collectOne(dir, root, path.Clean(from), copies[from])
		if err != nil {
			return nil, fmt.Errorf("copying %s: %w", from, err)
		}
		for _, e := range entries {
			if _, twice := byName[e.name]; twice {
				return nil, fault.Errorf(fault.Invalid, "copying %s: /%s would be written twice", from, e.name)
			}
			byName[e.name] = e
		}
	}
	return slices.Collect(maps.Values(byName)), nil
}

func collectOne(dir string, root *os.Root, from, to string) ([]entry, error) {
	if !path.IsAbs(to) {
		return nil, fault.Errorf(fault.Invalid, "the destination %q is not absolute", to)
	}
	fi, err := root.Stat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.WithHint(fault.Errorf(fault.Invalid, "it does not exist in the app's directory"), "paths are relative to the directory of invar.hcl")
	}
	if err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	name := strings.TrimPrefix(path.Clean(to), "/")
	if !fi.IsDir() {
		if strings.HasSuffix(to, "/") {
			name = path.Join(name, path.Base(from))
		}
		return []entry{fileEntry(dir, from, name, fi)}, nil
	}
	var entries []entry
	err = fs.WalkDir(root.FS(), from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p, from), "/")
		if from == "." {
			rel = strings.TrimPrefix(p, ".")
			rel = strings.TrimPrefix(rel, "/")
			if p != "." {
				rel = p
			}
		}
		e, keep, err := dirEntry(dir, root, p, path.Join(name, rel), d)
		if keep {
			entries = append(entries, e)
		}
		return err
	})
	return entries, err
}

// dirEntry makes the entry of what a walk found. Directories are only named when they are empty: others
// come to be with their content, and the base's keep their owners and modes.
func dirEntry(dir string, root *os.Root, p, name string, d fs.DirEntry) (entry, bool, error) {
	switch d.Type() {
	case fs.ModeDir:
		inside, err := fs.ReadDir(root.FS(), p)
		return entry{name: name, mode: fs.ModeDir | 0o755}, len(inside) == 0 && name != "", err
	case fs.ModeSymlink:
		target, err := root.Readlink(p)
		return entry{name: name, mode: fs.ModeSymlink, link: target}, true, err
	case 0:
		fi, err := d.Info()
		if err != nil {
			return entry{}, false, err
		}
		return fileEntry(dir, p, name, fi), true, nil
	}
	return entry{}, false, fault.Errorf(fault.Invalid, "%s is neither a file, a directory nor a symbolic link", p)
}

// fileEntry is a regular file with its mode reduced to whether it is executable.
func fileEntry(dir, from, name string, fi fs.FileInfo) entry {
	mode := fs.FileMode(0o644)
	if fi.Mode()&0o100 != 0 {
		mode = 0o755
	}
	return entry{name: name, mode: mode, size: fi.Size(), open: func() (io.ReadCloser, error) {
		f, err := os.OpenInRoot(dir, from)
		if err != nil {
			return nil, err
		}
		return f, nil
	}}
}
