package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/root"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/local"
)

const (
	port        = 8080
	goarch      = goruntime.GOARCH
	runcModule  = "github.com/opencontainers/runc"
	runcVersion = "v1.5.2"
)

// starter has what the variants of this section need.
type starter struct {
	*bench
	host   *local.Host
	image  image.Resolved
	plain  string // the root, mounted without mapped owners, for those without a user namespace
	floor  string
	runc   string
	podman []string // command and global flags; nil when podman can't run here
	serial int
	log    *os.File // what the peers write
}

// variant is one way to start an instance. start returns when it was asked and when the port accepted; stop is not timed.
type variant struct {
	name  string
	start func(ctx context.Context) (took time.Duration, stop func(), err error)
	times sample
}

func benchStart(ctx context.Context, b *bench) error {
	s := &starter{bench: b}
	if err := s.prepare(ctx); err != nil {
		return err
	}
	cold := &variant{name: "created and started", start: s.cold}
	warm := &variant{name: "created ahead", start: s.warm}
	same := &variant{name: "runc run, the same isolation", start: func(ctx context.Context) (time.Duration, func(), error) { return s.runRunc(ctx, true) }}
	bare := &variant{name: "runc run, runc's own default", start: func(ctx context.Context) (time.Duration, func(), error) { return s.runRunc(ctx, false) }}
	floor := &variant{name: "floor", start: s.runFloor}
	all := []*variant{cold, same, warm, bare, floor}
	podman := &variant{name: "podman run", start: s.runPodman}
	if s.podman != nil {
		all = append(all, podman)
	}
	for round := range b.n + 1 {
		for _, v := range all {
			took, stop, err := v.start(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", v.name, err, tail(read(s.log.Name()), 5))
			}
			stop()
			if round > 0 { // the first warms up
				v.times.took(took)
			}
		}
	}
	compare := func(what string, ours, peer *variant, limit target) {
		b.row(what, ours.times.ms(), peer.times.ms(), ratios(ours.times, peer.times).p50(), limit)
	}
	ratio := func(a, c *variant) float64 { return ratios(a.times, c.times).p50() }
	compare("cold, against runc run, same isolation", cold, same, atMost(ratio(cold, same), 0.8, " ×"))
	compare("cold, against runc run, runc's default spec", cold, bare, atMost(ratio(cold, bare), 0.8, " ×"))
	if s.podman != nil {
		compare("cold, against podman run", cold, podman, atMost(ratio(cold, podman), 0.25, " ×"))
	}
	compare("created ahead, against the floor", warm, floor, atMost(ratio(warm, floor), 2, " ×"))
	return nil
}

// prepare builds the image, opens a host, and gets the peers.
func (s *starter) prepare(ctx context.Context) (err error) {
	server, err := s.own(ctx, "serve")
	if err != nil {
		return err
	}
	if s.log, err = os.Create(filepath.Join(s.dir, "peers.log")); err != nil {
		return err
	}
	s.defers(func() { s.log.Close() })
	layer, err := serverLayer(server)
	if err != nil {
		return err
	}
	if s.host, err = s.openHost(ctx); err != nil {
		return err
	}
	store, manifest, err := s.oneLayerImage(ctx, layer, false)
	if err != nil {
		return err
	}
	roots := filepath.Join(s.dir, "data", "roots")
	if s.image, _, err = root.Build(ctx, store, roots, manifest); err != nil {
		return err
	}
	s.plain = filepath.Join(s.dir, "root")
	if err := os.Mkdir(s.plain, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(root.Path(roots, s.image.Root), s.plain, "erofs", unix.MS_RDONLY, ""); err != nil {
		return skip{fmt.Sprintf("the root can't be mounted for the peers: %v", err)}
	}
	s.defers(func() { unix.Unmount(s.plain, unix.MNT_DETACH) })
	s.floor = filepath.Join(s.dir, "floor")
	if _, err := output(ctx, "gcc", "-O2", "-static", "-o", s.floor, "floor/floor.c"); err != nil {
		return err
	}
	if s.runc, err = s.goTool(ctx, runcModule, runcVersion, "1", "seccomp"); err != nil {
		return err
	}
	s.note("peer: runc %s with seccomp", runcVersion)
	return s.preparePodman(ctx, layer)
}

// openHost opens invar's local runtime on a directory of the section.
func (b *bench) openHost(ctx context.Context) (*local.Host, error) {
	dir := filepath.Join(b.dir, "data")
	if err := os.MkdirAll(filepath.Join(dir, "roots"), 0o755); err != nil {
		return nil, err
	}
	host, err := local.Open(ctx, local.Config{Dir: dir})
	if err != nil {
		return nil, err
	}
	b.defers(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := host.Shutdown(ctx); err != nil {
			b.note("shutting the host down: %v", err)
		}
	})
	for _, w := range host.Features().Warnings() {
		b.note("this machine lacks a feature: %s", w)
	}
	return host, nil
}

// serverLayer is a layer with nothing but the server.
func serverLayer(server string) ([]byte, error) {
	program, err := os.ReadFile(server)
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "bin/serve", Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg}); err != nil {
		return nil, err
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	return layer.Bytes(), w.Close()
}

// preparePodman imports the same root into a store of podman's own, and sees whether podman can run it at all.
func (s *starter) preparePodman(ctx context.Context, layer []byte) error {
	path, err := s.debian(ctx, "podman", "podman")
	if err != nil {
		s.note("podman is left out: %v", err)
		return nil
	}
	debianRunc, err := s.debian(ctx, "runc", "runc")
	if err != nil {
		s.note("podman is left out: its runc: %v", err)
		return nil
	}
	file := filepath.Join(s.dir, "layer.tar")
	if err := os.WriteFile(file, layer, 0o644); err != nil {
		return err
	}
	s.podman = []string{path, "--root", filepath.Join(s.dir, "podman"), "--runroot", filepath.Join(s.dir, "podman-run"),
		"--tmpdir", filepath.Join(s.dir, "podman-tmp"), "--cgroup-manager", "cgroupfs", "--runtime", debianRunc}
	s.defers(func() { // its storage is a mount of its own
		unix.Unmount(filepath.Join(s.dir, "podman", "overlay"), unix.MNT_DETACH)
	})
	if err := quiet(ctx, s.log, path, append(s.podman[1:], "import", file, "bench")...); err != nil {
		s.note("podman is left out: %v", err)
		s.podman = nil
		return nil
	}
	if _, stop, err := s.runPodman(ctx); err != nil {
		s.note("podman is left out, it can't run a container here: %v", err)
		s.podman = nil
	} else {
		stop()
		version, _ := output(ctx, path, "--version")
		runc, _ := output(ctx, debianRunc, "--version")
		s.note("peer: %s with %s, overlay storage, network namespace made beforehand", firstLine(version), firstLine(runc))
	}
	return nil
}

func (s *starter) spec() runtime.Spec {
	s.serial++
	return runtime.Spec{
		Identity: instance.Identity{ID: instance.ID(fmt.Sprintf("web-%d", s.serial)), Env: "bench", Component: "web", Generation: 1},
		Root:     s.image.Root, Args: []string{"/bin/serve", fmt.Sprint(port)}, User: "1000:1000", Ports: []int{port},
		MemoryBytes: 64 << 20, CPUMillis: 2000, StopTimeout: time.Second,
	}
}

func (s *starter) cold(ctx context.Context) (time.Duration, func(), error) {
	spec := s.spec()
	asked := time.Now()
	if err := s.host.Create(ctx, spec); err != nil {
		return 0, nil, err
	}
	return s.begin(ctx, spec.Identity.ID, asked)
}

func (s *starter) warm(ctx context.Context) (time.Duration, func(), error) {
	spec := s.spec()
	if err := s.host.Create(ctx, spec); err != nil {
		return 0, nil, err
	}
	return s.begin(ctx, spec.Identity.ID, time.Now())
}

func (s *starter) begin(ctx context.Context, id instance.ID, asked time.Time) (time.Duration, func(), error) {
	if err := s.host.Start(ctx, id); err != nil {
		return 0, nil, err
	}
	network, err := s.host.Network(ctx, id)
	if err != nil {
		return 0, nil, err
	}
	at, err := accepted(ctx, network.Path, port)
	return at.Sub(asked), func() { s.host.Remove(context.WithoutCancel(ctx), id) }, err
}

// inSpace starts something in a new network namespace and waits for its port. The namespace is there before the clock starts.
func (s *starter) inSpace(ctx context.Context, start func(path string) (stop func(), err error)) (time.Duration, func(), error) {
	s.serial++
	path, drop, err := s.space(s.serial)
	if err != nil {
		return 0, nil, err
	}
	type result struct {
		at  time.Time
		err error
	}
	done := make(chan result, 1)
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	asked := time.Now()
	go func() {
		at, err := accepted(waiting, path, port)
		done <- result{at, err}
	}()
	stop, err := start(path)
	if err != nil {
		cancel()
		<-done
		drop()
		return 0, nil, err
	}
	r := <-done
	return r.at.Sub(asked), func() { stop(); drop() }, r.err
}

func (s *starter) runPodman(ctx context.Context) (time.Duration, func(), error) {
	return s.inSpace(ctx, func(path string) (func(), error) {
		name := fmt.Sprintf("bench-%d", s.serial)
		args := append(s.podman[1:len(s.podman):len(s.podman)], "run", "-d", "--name", name, "--network", "ns:"+path,
			"--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000", "--memory", "64m", "--user", "1000:1000", "--read-only", "bench", "/bin/serve", fmt.Sprint(port))
		stop := func() {
			quiet(context.WithoutCancel(ctx), s.log, s.podman[0], append(s.podman[1:len(s.podman):len(s.podman)], "rm", "-f", "-t", "0", name)...)
		}
		if err := quiet(ctx, s.log, s.podman[0], args...); err != nil {
			stop()
			return nil, err
		}
		return stop, nil
	})
}

func (s *starter) runRunc(ctx context.Context, sameIsolation bool) (time.Duration, func(), error) {
	bundle := filepath.Join(s.dir, fmt.Sprintf("bundle-%d", s.serial))
	if err := os.Mkdir(bundle, 0o711); err != nil {
		return 0, nil, err
	}
	var config specs.Spec
	var err error
	if sameIsolation {
		config, err = s.ourConfig(ctx)
	} else {
		config, err = s.runcConfig(ctx, bundle)
	}
	if err != nil {
		return 0, nil, err
	}
	return s.inSpace(ctx, func(path string) (func(), error) {
		for i, n := range config.Linux.Namespaces {
			if n.Type == specs.NetworkNamespace {
				config.Linux.Namespaces[i].Path = path
			}
		}
		id := fmt.Sprintf("%s-%d", filepath.Base(s.dir), s.serial)
		config.Linux.CgroupsPath = "/" + filepath.Base(s.dir) + "/" + id
		raw, err := json.Marshal(config)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o600); err != nil {
			return nil, err
		}
		state := filepath.Join(s.dir, "runc")
		return func() { quiet(context.WithoutCancel(ctx), s.log, s.runc, "--root", state, "delete", "-f", id) },
			quiet(ctx, s.log, s.runc, "--root", state, "run", "-d", "--bundle", bundle, id)
	})
}

// ourConfig is the OCI configuration that invar itself gives an instance: the same namespaces, seccomp profile, limits and mounts.
func (s *starter) ourConfig(ctx context.Context) (specs.Spec, error) {
	spec := s.spec()
	if err := s.host.Create(ctx, spec); err != nil {
		return specs.Spec{}, err
	}
	defer s.host.Remove(context.WithoutCancel(ctx), spec.Identity.ID)
	network, err := s.host.Network(ctx, spec.Identity.ID)
	if err != nil {
		return specs.Spec{}, err
	}
	run := filepath.Dir(filepath.Dir(network.Path)) // RUN/netns/ID: see package runtime/local
	raw, err := os.ReadFile(filepath.Join(run, "instances", string(spec.Identity.ID), "oci", "config.json"))
	if err != nil {
		return specs.Spec{}, err
	}
	var config specs.Spec
	if err := json.Unmarshal(raw, &config); err != nil {
		return specs.Spec{}, err
	}
	kept := config.Mounts[:0]
	for _, m := range config.Mounts { // those files go with the instance
		if !strings.HasPrefix(m.Source, run) {
			kept = append(kept, m)
		}
	}
	config.Mounts = kept
	return config, nil
}

// runcConfig is what `runc spec` writes, with our root and program.
func (s *starter) runcConfig(ctx context.Context, bundle string) (specs.Spec, error) {
	if _, err := output(ctx, s.runc, "spec", "--bundle", bundle); err != nil {
		return specs.Spec{}, err
	}
	var config specs.Spec
	if err := json.Unmarshal([]byte(read(filepath.Join(bundle, "config.json"))), &config); err != nil {
		return specs.Spec{}, err
	}
	config.Root = &specs.Root{Path: s.plain, Readonly: true}
	config.Process.Args = []string{"/bin/serve", fmt.Sprint(port)}
	config.Process.Terminal = false
	return config, nil
}

func (s *starter) runFloor(ctx context.Context) (time.Duration, func(), error) {
	return s.inSpace(ctx, func(path string) (func(), error) {
		cmd := exec.Command(s.floor, path, s.plain, "/bin/serve", fmt.Sprint(port))
		cmd.Stdout, cmd.Stderr = s.log, s.log
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		return func() { cmd.Process.Kill(); cmd.Wait() }, nil
	})
}
