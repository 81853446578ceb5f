package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/image/root"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
)

// oneLayerImage makes an image of one layer as an OCI layout in DIR/layout, and pulls it into a store.
func (b *bench) oneLayerImage(ctx context.Context, tarball []byte, compressed bool) (*registry.Store, digest.Digest, error) {
	dir := filepath.Join(b.dir, "layout")
	if err := os.RemoveAll(dir); err != nil {
		return nil, "", err
	}
	img, err := oneLayer(tarball, compressed)
	if err != nil {
		return nil, "", err
	}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return nil, "", err
	}
	if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "bench.localhost/root:1"}),
		layout.WithPlatform(v1.Platform{OS: "linux", Architecture: goarch})); err != nil {
		return nil, "", err
	}
	store, err := registry.Open(filepath.Join(b.dir, "oci"))
	if err != nil {
		return nil, "", err
	}
	pulled, err := store.Pull(ctx, registry.Source{Ref: "oci:" + dir, Platform: image.Platform{OS: "linux", Architecture: goarch}}, nil)
	return store, pulled.Manifest, err
}

// oneLayer makes the image itself: its diff id is the digest of the plain tar, whatever form the blob has.
func oneLayer(tarball []byte, compressed bool) (v1.Image, error) {
	blob, media := tarball, types.OCIUncompressedLayer
	if compressed {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		w.Write(tarball)
		if err := w.Close(); err != nil {
			return nil, err
		}
		blob, media = z.Bytes(), types.OCILayer
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layer{static.NewLayer(blob, media), tarball})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", goarch
	config.Config.Cmd = []string{"/bin/serve", fmt.Sprint(port)}
	return mutate.ConfigFile(img, config)
}

// layer is a static layer that knows its plain form.
type layer struct {
	v1.Layer
	plain []byte
}

func (l layer) DiffID() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.plain))
	return h, err
}

func (l layer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.plain)), nil
}

// rootFiles is a layer of about this many bytes: the server, and files of 25 kB each that compress about as programs do.
func rootFiles(server string, sizeBytes int) ([]byte, error) {
	program, err := os.ReadFile(server)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(name string, mode int64, content []byte) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content)), Typeflag: tar.TypeReg, ModTime: time.Unix(1, 0)}); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
	if err := add("bin/serve", 0o755, program); err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := 0; out.Len() < sizeBytes; i++ {
		content := make([]byte, 25_008)
		for at := 0; at < len(content); at += 16 { // half random, half repeated
			for j := range 8 {
				content[at+j] = byte(random.Uint32())
			}
			copy(content[at+8:at+16], "\x48\x89\xe5\x00\x00\x00\x00\x00")
		}
		if err := add(fmt.Sprintf("usr/lib/d%d/f%d", i%100, i), 0o644, content); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

// rooted is the section's state.
type rooted struct {
	*bench
	ctr    []string // command and its global flags
	podman []string // likewise; nil when podman can't run here
}

func benchRoot(ctx context.Context, b *bench) error {
	server, err := b.own(ctx, "serve")
	if err != nil {
		return err
	}
	tarball, err := rootFiles(server, b.pick(150_000_000, 20_000_000))
	if err != nil {
		return err
	}
	r := &rooted{bench: b}
	if err := r.startContainerd(ctx); err != nil {
		return err
	}
	if err := r.preparePodman(ctx); err != nil {
		return err
	}
	host, err := b.openHost(ctx)
	if err != nil {
		return err
	}
	for _, compressed := range []bool{false, true} {
		if err := r.compare(ctx, host, tarball, compressed); err != nil {
			return err
		}
	}
	return nil
}

// startContainerd starts a containerd of our own, on a directory and a socket of its own.
func (r *rooted) startContainerd(ctx context.Context) error {
	path, err := r.debian(ctx, "containerd", "containerd")
	if err != nil {
		return err
	}
	ctr, err := exec.LookPath("ctr")
	if err != nil {
		return skip{err.Error()}
	}
	socket := filepath.Join(r.dir, "containerd.sock")
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(r.dir, "containerd"), filepath.Join(r.dir, "containerd-run"), socket)
	file := filepath.Join(r.dir, "containerd.toml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return err
	}
	_, log, err := r.background(ctx, path, "--config", file)
	if err != nil {
		return err
	}
	r.ctr = []string{ctr, "--address", socket, "-n", "bench"}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, err := r.run(ctx, "version")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return skip{fmt.Sprintf("containerd does not start: %v\n%s", err, tail(read(log), 5))}
		}
	}
	version, _ := output(ctx, path, "--version")
	r.note("peer: %s, overlayfs, `ctr images mount` (unpack and mount, durable only when the kernel writes back)", firstLine(version))
	r.note("invar: root.Build (one EROFS file, synced and hashed) and Create of a first instance on it (hashed again, mounted)")
	return nil
}

// preparePodman gives podman overlay storage of its own.
func (r *rooted) preparePodman(ctx context.Context) error {
	path, err := r.debian(ctx, "podman", "podman")
	if err != nil {
		r.note("podman is left out: %v", err)
		return nil
	}
	r.podman = []string{path, "--root", filepath.Join(r.dir, "podman"), "--runroot", filepath.Join(r.dir, "podman-run"),
		"--tmpdir", filepath.Join(r.dir, "podman-tmp"), "--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"}
	r.defers(func() { unix.Unmount(filepath.Join(r.dir, "podman", "overlay"), unix.MNT_DETACH) })
	version, err := output(ctx, path, append(r.podman[1:len(r.podman):len(r.podman)], "--version")...)
	r.note("peer: %s, overlay, `podman load` of the archive into empty storage; against it invar also pulls the same archive into an empty store", firstLine(version))
	return err
}

// load has podman take the archive into its storage, then forget it.
func (r *rooted) load(ctx context.Context, archive string) (time.Duration, error) {
	podman := r.podman[1:len(r.podman):len(r.podman)]
	began := time.Now()
	if _, err := output(ctx, r.podman[0], append(podman, "load", "-q", "-i", archive)...); err != nil {
		return 0, err
	}
	took := time.Since(began)
	_, err := output(ctx, r.podman[0], append(podman, "rmi", "-a", "-f")...)
	return took, err
}

// ourLoad pulls the archive into an empty store, builds the root, and creates an instance on it.
func (r *rooted) ourLoad(ctx context.Context, h host, archive string, round int) (time.Duration, error) {
	dir := filepath.Join(r.dir, "loaded")
	defer os.RemoveAll(dir)
	began := time.Now()
	store, err := registry.Open(dir)
	if err != nil {
		return 0, err
	}
	pulled, err := store.Pull(ctx, registry.Source{Ref: "oci-archive:" + archive, Platform: image.Platform{OS: "linux", Architecture: goarch}}, nil)
	if err != nil {
		return 0, err
	}
	pulling := time.Since(began)
	first, _, _, err := r.ourRoot(ctx, h, store, pulled.Manifest, round)
	return pulling + first, err
}

func (r *rooted) run(ctx context.Context, args ...string) (string, error) {
	return output(ctx, r.ctr[0], append(r.ctr[1:len(r.ctr):len(r.ctr)], args...)...)
}

func (r *rooted) compare(ctx context.Context, host host, tarball []byte, compressed bool) error {
	store, manifest, err := r.oneLayerImage(ctx, tarball, compressed)
	if err != nil {
		return err
	}
	archive := filepath.Join(r.dir, "image.tar")
	if _, err := output(ctx, "tar", "-C", filepath.Join(r.dir, "layout"), "-cf", archive, "."); err != nil {
		return err
	}
	var ours, again, build, peer, loaded, podman sample
	for round := range r.pick(min(r.n, 5), 2) + 1 {
		first, second, known, err := r.ourRoot(ctx, host, store, manifest, round)
		if err != nil {
			return err
		}
		theirs, err := r.unpack(ctx, archive)
		if err != nil {
			return err
		}
		var ourLoad, theirLoad time.Duration
		if r.podman != nil {
			if ourLoad, err = r.ourLoad(ctx, host, archive, 1000+round); err != nil {
				return err
			}
			if theirLoad, err = r.load(ctx, archive); err != nil {
				return err
			}
		}
		if round > 0 {
			loaded.took(ourLoad)
			podman.took(theirLoad)
			ours.took(first)
			again.took(second)
			build.took(known)
			peer.took(theirs)
		}
	}
	what := "plain tar"
	if compressed {
		what = "tar+gzip"
	}
	ratio := ratios(peer, ours).p50()
	r.row(fmt.Sprintf("%s, %d MB", what, len(tarball)/1e6), ours.ms(), peer.ms(), ratio, atLeast(ratio, 3, " ×"))
	if r.podman != nil {
		ratio := ratios(podman, loaded).p50()
		r.row("  with the pull, against podman load", loaded.ms(), podman.ms(), ratio, atLeast(ratio, 3, " ×"))
	}
	r.row("  the second time, root.Build", build.ms(), "", 0, atMost(build.p50(), 5, " ms"))
	r.row("  the second time, with a second instance", again.ms(), "", 0, target{})
	return nil
}

// host is the part of local.Host that is used here.
type host interface {
	runtime.Host
	ReleaseRoot(digest.Digest) error
}

// ourRoot builds the root and creates an instance on it, twice, then forgets it. Known is what the second build took.
func (r *rooted) ourRoot(ctx context.Context, h host, store *registry.Store, manifest digest.Digest, round int) (first, second, known time.Duration, err error) {
	roots := filepath.Join(r.dir, "data", "roots")
	var resolved image.Resolved
	var ids []instance.ID
	for i, took := range []*time.Duration{&first, &second} {
		id := instance.ID(fmt.Sprintf("root-%s-%d-%d", manifest.Short(), round, i))
		id = instance.ID(strings.ReplaceAll(string(id), ":", "-"))
		began := time.Now()
		if resolved, _, err = root.Build(ctx, store, roots, manifest); err != nil {
			return 0, 0, 0, err
		}
		known = time.Since(began)
		err := h.Create(ctx, runtime.Spec{Identity: instance.Identity{ID: id, Env: "bench", Component: "web"}, Root: resolved.Root, Args: []string{"/bin/serve", "8080"}})
		if err != nil {
			return 0, 0, 0, err
		}
		*took = time.Since(began)
		ids = append(ids, id)
	}
	for _, id := range ids {
		if err := h.Remove(ctx, id); err != nil {
			return 0, 0, 0, err
		}
	}
	if err := h.ReleaseRoot(resolved.Root); err != nil {
		return 0, 0, 0, err
	}
	return first, second, known, os.Remove(root.Path(roots, resolved.Root))
}

// unpack imports the archive, which is not timed, then unpacks and mounts it, then forgets it.
func (r *rooted) unpack(ctx context.Context, archive string) (time.Duration, error) {
	if _, err := r.run(ctx, "images", "import", "--no-unpack", archive); err != nil {
		return 0, err
	}
	list, err := r.run(ctx, "images", "list", "-q")
	if err != nil {
		return 0, err
	}
	name := firstLine(list)
	at := filepath.Join(r.dir, "unpacked")
	if err := os.MkdirAll(at, 0o755); err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := r.run(ctx, "images", "mount", name, at); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if _, err := os.Stat(filepath.Join(at, "bin", "serve")); err != nil {
		return 0, err
	}
	if _, err := r.run(ctx, "images", "unmount", "--rm", at); err != nil {
		return 0, err
	}
	_, err = r.run(ctx, "images", "rm", "--sync", name)
	return took, err
}
