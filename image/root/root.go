// Package root makes the root file system of an image: all of its layers merged into one EROFS file,
// read-only, whose bytes depend on nothing but the image. One hash over that file then says what runs.
//
// # What is in the file
//
// Layers are applied in order as the OCI image specification says (image-spec 1.1, "Applying Changesets"):
// whiteouts (.wh.NAME) and opaque directories (.wh..wh..opq) hide what lower layers have; an entry replaces what is at its
// path, except that a directory over a directory changes only its owner, mode and attributes. Symbolic links among
// an entry's parents are followed inside the root. Owners, modes (with set-id bits) and the
// user., security. and trusted. extended attributes are kept; all times are zero; hard links become copies. Device nodes are left out: an
// instance gets its devices from the runtime.
//
// The root is shared by all its instances and never written, so what has to be mounted over must exist. Each
// root has, made where the image lacks them:
//
//	directories       /proc /dev /sys /run /tmp (1777) /etc, else 0755, owned by root
//	empty files       /etc/hosts /etc/hostname /etc/resolv.conf, 0644, owned by root
//
// An image's own directory of such a name keeps its owner and mode; the three files always become
// empty regular files, also where an image has a symbolic link. No other mount point is added: the paths of a component's
// files, secrets, scratches and volumes are no part of the image, and a runtime must provide for those that the image
// does not have.
//
// # Limits
//
// An image whose layers unpack to more than 64 GiB or more than 4 million entries, a name of more than 255 bytes, a link
// target of more than 4095 and a path that leaves the root ("..") are refused as fault.Invalid.
//
// # Files
//
//	DIR/HEX.erofs              a root, by its SHA-256
//	DIR/index-v1/HEX.json      what Build returned for the manifest HEX, so that a known image costs nothing
package root

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/registry"
)

// Path returns the file of a root, whether or not it exists.
func Path(dir string, root digest.Digest) string {
	return filepath.Join(dir, root.Hex()+".erofs")
}

// Build makes the root of the image whose manifest is in the store, in dir, and reports whether it had to be
// built. The file is durable on return. It fails with fault.NotFound when the store lacks a part of the image,
// fault.Corrupt when a layer is not what its digest says or can't be read, and fault.Invalid when it is refused.
func Build(ctx context.Context, store *registry.Store, dir string, manifest digest.Digest) (image.Resolved, bool, error) {
	if r, ok := known(dir, manifest); ok {
		return r, false, nil
	}
	r, err := build(ctx, store, dir, manifest)
	if err != nil {
		return image.Resolved{}, false, fmt.Errorf("building root of image %s: %w", manifest, err)
	}
	return r, true, nil
}

func indexPath(dir string, manifest digest.Digest) string {
	return filepath.Join(dir, "index-v1", manifest.Hex()+".json")
}

// known returns what an earlier Build returned, if its file is there still.
func known(dir string, manifest digest.Digest) (image.Resolved, bool) {
	b, err := os.ReadFile(indexPath(dir, manifest))
	if err != nil {
		return image.Resolved{}, false
	}
	var r image.Resolved
	if err := json.Unmarshal(b, &r); err != nil || r.Manifest != manifest {
		return image.Resolved{}, false
	}
	fi, err := os.Stat(Path(dir, r.Root))
	if err != nil || fi.Size() != r.RootSize {
		return image.Resolved{}, false
	}
	return r, true
}

func build(ctx context.Context, store *registry.Store, dir string, manifest digest.Digest) (image.Resolved, error) {
	img, err := describe(store, manifest)
	if err != nil {
		return image.Resolved{}, err
	}
	if err := os.MkdirAll(filepath.Dir(indexPath(dir, manifest)), 0o755); err != nil {
		return image.Resolved{}, err
	}
	layers, err := openLayers(ctx, store, dir, img.layers)
	defer closeAll(layers)
	if err != nil {
		return image.Resolved{}, err
	}
	t := newTree()
	for _, l := range layers {
		if err := t.apply(ctx, l); err != nil {
			return image.Resolved{}, fmt.Errorf("layer %s: %w", l.blob, err)
		}
	}
	t.addMountPoints()
	r := img.resolved
	if r.Root, r.RootSize, err = write(ctx, store, dir, t, layers); err != nil {
		return image.Resolved{}, diskFull(err)
	}
	return r, remember(dir, r)
}

// write makes the EROFS file of the tree. While it is written, the layers that were read in place are
// checked against their digests; nothing becomes visible unless all are right.
func write(ctx context.Context, store *registry.Store, dir string, t *tree, layers []*layer) (digest.Digest, int64, error) {
	f, err := os.CreateTemp(dir, "building-*")
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	defer os.Remove(f.Name()) // a no-op once renamed
	var d digest.Digest
	var size int64
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return verifyAll(ctx, store, layers) })
	g.Go(func() (err error) {
		d, size, err = encode(f, t)
		return err
	})
	if err := g.Wait(); err != nil {
		return "", 0, err
	}
	if err := f.Sync(); err != nil {
		return "", 0, err
	}
	return d, size, publish(f, Path(dir, d))
}

// publish renames the file to its name. A file of that name is this content already, and may be mounted and
// immutable: it stays.
func publish(f *os.File, name string) error {
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// remember writes the index entry. Losing it costs a build, no more, so it isn't synced.
func remember(dir string, r image.Resolved) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "building-*")
	if err != nil {
		return diskFull(err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return diskFull(err)
	}
	return os.Rename(f.Name(), indexPath(dir, r.Manifest))
}

// Clean removes what a crash left of unfinished builds. No Build may be under way.
func Clean(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "building-*"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing unfinished root: %w", err)
		}
	}
	return nil
}

func diskFull(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fault.WithHint(fault.As(fault.Unavailable, err), "free some space on the disk that holds the data directory; nothing was changed")
	}
	return err
}

// splitEnv turns the configuration's list into a map.
func splitEnv(list []string) map[string]string {
	if len(list) == 0 {
		return nil
	}
	env := make(map[string]string, len(list))
	for _, kv := range list {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	return env
}
