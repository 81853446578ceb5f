// Package server wires the daemon: the data directory, the ledger, the host, the gateway, the loops and the API. It
// decides nothing itself.
//
// Start order, and what each step leaves when the server dies after it:
//
//	data directory, ledger    nothing runs yet; a second server is refused
//	witnesses                 what they cosigned is compared with the ledger: alarms, if it was cut back
//	platform                  the first definition, when there is none: the next start makes it
//	host                      finds the launcher and what runs; starts the launcher when there is none
//	gateway                   finds the process that serves, or starts one with the last table
//	loops                     go on with every rollout from what ledger and host say
//	API                       last: who can ask gets an answer
//
// It ends in the opposite order, and leaves instances, launcher and gateway as they are.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	goruntime "runtime"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/handler"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway/proxy"
	"github.com/invarhq/invar/identity/oidc"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/image/sbom"
	"github.com/invarhq/invar/ledger/witness"
	"github.com/invarhq/invar/ledger/witness/collect"
	"github.com/invarhq/invar/reconcile"
	"github.com/invarhq/invar/runtime/local"
	"github.com/invarhq/invar/secret/vault"
	"github.com/invarhq/invar/state"
)

// Config says where a server lives and listens.
type Config struct {
	Data     string   // data directory; made when it is missing
	Listen   string   // address of the API over TCP; "": none
	Names    []string // by which the API is reached over TCP, beside its address and localhost
	HTTP     string   // address of the HTTP gateway
	HTTPS    string   // address of the HTTPS gateway; "": none
	ACME     proxy.ACME
	Version  string
	Command  []string // starts the gateway: this program and its arguments
	Launcher string   // path of the launcher's program; "" is the one that this program carries
	Log      *slog.Logger

	// InspectEvery is how often every instance is compared with its release; 0: never.
	InspectEvery time.Duration

	// SecretsKeyCommand prints the key of secrets, when the server starts. "": a file of the data directory holds it.
	SecretsKeyCommand string

	// Witnesses says who watches the ledger from elsewhere beside the witnesses of the platform's definition, and what makes a quorum
	// where the definition does not say. It is asked again and again, and may change. nil: nobody.
	Witnesses func() witness.Policy
}

// stopWithin bounds the time that requests under way get when the server is told to stop.
const stopWithin = 10 * time.Second

// Server is a running daemon.
type Server struct {
	config  Config
	log     *slog.Logger
	started time.Time
	data    *data
	content *registry.Store
	control *control.Service
	vault   *vault.Vault
	host    *local.Host
	gateway *proxy.Supervisor
	loops   *reconcile.Reconciler
	collect *collect.Collector
	api     *handler.Handler
	oidc    *oidc.Verifier

	recordings recordings
	alarms     alarms
}

// Run serves until ctx ends. Instances and gateway run on.
func Run(ctx context.Context, config Config) (err error) {
	s := &Server{config: config, log: config.Log, started: time.Now(), oidc: oidc.NewVerifier(nil), alarms: alarms{signal: make(chan struct{}, 1)}}
	defer func() { err = errors.Join(err, s.close()) }()
	for _, step := range []func(context.Context) error{s.openLedger, s.foundPlatform, s.openWitnesses, s.openHost, s.openGateway, s.openAPI} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return s.serve(ctx)
}

func (s *Server) openLedger(ctx context.Context) (err error) {
	if s.data, err = openData(ctx, s.config.Data); err != nil {
		return err
	}
	empty, err := s.data.empty(ctx)
	if err != nil {
		return err
	}
	if s.content, err = registry.Open(s.data.path(ociDir)); err != nil {
		return err
	}
	roots := s.data.path(rootsDir)
	if err := os.MkdirAll(roots, 0o700); err != nil {
		return fmt.Errorf("making the directory of roots: %w", err)
	}
	if s.vault, err = s.openVault(ctx); err != nil {
		return err
	}
	e := &evaluator{s.content, roots, sbom.Signer{Name: s.data.key.origin(), Key: s.data.key.private}}
	if s.recordings, err = openRecordings(s.data.path(recordingsDir)); err != nil {
		return err
	}
	s.control, err = control.Open(ctx, control.Config{
		Measure: s.measure, Recordings: s.recordings, SignStatement: func(statement []byte) ([]byte, error) { return sbom.Sign(statement, s.data.key.private) },
		Store: s.data.store, Blobs: blobs{s.content, roots}, Attached: blobs{s.content, roots}.attached, Evaluate: e.evaluate, Images: e.images, Secrets: s.vault,
		Origin: s.data.key.origin(), Signer: s.data.key.signer, Verifier: s.data.key.verifier, VKey: s.data.key.vkey,
		Version: s.config.Version, Compares: compares(s.config.InspectEvery), Init: empty, Log: s.log, User: owner(),
	})
	if err != nil {
		return err
	}
	s.checkSecrets()
	return s.data.begin()
}

// compares says how often the server compares instances with their releases, as the ledger has it.
func compares(every time.Duration) string {
	if every <= 0 {
		return state.Never
	}
	return every.String()
}

// owner is the name of the user that the server runs as, "" when it has none.
func owner() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username
}

func (s *Server) openHost(ctx context.Context) (err error) {
	s.host, err = local.Open(ctx, local.Config{
		Dir: s.data.dir, Launcher: s.config.Launcher, Log: s.log, Companions: s.gatewayConfig().PIDs, Restore: s.restoreRoot,
	})
	if err != nil {
		return err
	}
	for _, w := range s.host.Features().Warnings() {
		s.log.Warn("this machine lacks a feature", "feature", w)
	}
	return nil
}

func (s *Server) openGateway(ctx context.Context) (err error) {
	s.gateway, err = proxy.Supervise(ctx, s.gatewayConfig(), s.config.Command)
	return err
}

func (s *Server) gatewayConfig() proxy.Config {
	return proxy.Config{
		Dir: s.data.path(gatewayDir), HTTP: s.config.HTTP, HTTPS: s.config.HTTPS, Version: s.config.Version, ACME: s.config.ACME, Log: s.log,
	}
}

// openAPI makes the loops and the API, which share nothing but control, host and gateway.
func (s *Server) openAPI(ctx context.Context) (err error) {
	if s.config.InspectEvery == 0 {
		s.log.Warn("instances are compared with their release only when somebody asks")
	}
	s.loops = reconcile.New(reconcile.Config{Source: s.control.Rollouts(), Recorder: s.control, Host: s.host, Traffic: s.gateway, Secrets: s.secretOf, InspectEvery: s.config.InspectEvery, Touched: s.host.Touched,
		Alarm: s.control.Beside(), Keep: s.control.Keep, Surroundings: []reconcile.Surrounding{s.host, s.gateway}, Log: s.log})
	s.api, err = handler.New(handler.Config{
		Control: s.control, Host: s.host, Copies: s.loops.Copies, Source: s.data.store, Verifier: s.data.key.verifier, VKey: s.data.key.vkey, Log: s.log,
		Version: s.config.Version, DataFormat: DataFormat, StartedAt: s.started, Machine: s.machine(),
		Cosigned: s.collect.Cosigned, Witnesses: s.witnesses,
		Gateway: s.gateway.Status, Healthy: s.healthy, OIDC: s.identify, Names: s.names(), Attached: attachments(s.content), Registry: s.content.Handler(ctx), Recordings: s.openRecording,
		Metrics: promhttp.HandlerFor(newRegistry(s.control.State, s.collect.Status), promhttp.HandlerOpts{}),
	})
	return err
}

// healthy says why the server can't do its work, or nil.
func (s *Server) healthy(ctx context.Context) error {
	if _, err := s.gateway.Status(ctx); err != nil {
		return fmt.Errorf("the gateway does not answer: %w", err)
	}
	_, err := s.host.List(ctx)
	return err
}

// machine tells what the machine can do.
func (s *Server) machine() api.Host {
	var u unix.Utsname
	kernel := ""
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	name, _ := os.Hostname()
	return api.Host{
		Name: name, OS: goruntime.GOOS, Arch: goruntime.GOARCH, Kernel: kernel, CPUs: goruntime.NumCPU(), Features: features(s.host.Features()),
	}
}

// serve runs the loops and the API until ctx ends or one of them fails.
func (s *Server) serve(ctx context.Context) error {
	listeners, err := s.listen()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.loops.Run(ctx) })
	group.Go(func() error { return s.destroyVolumes(ctx) })
	group.Go(func() error { return s.eraseContent(ctx) })
	group.Go(func() error { return s.collect.Run(ctx) })
	group.Go(func() error { return s.recordAlarms(ctx) })
	group.Go(func() error { return s.control.Govern(ctx) })
	group.Go(func() error { return s.control.KeepVerified(ctx) })
	web := s.api.Server()
	for _, l := range listeners {
		group.Go(func() error {
			if err := web.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		if err := web.Shutdown(grace); err != nil {
			return web.Close() // streams of events have no end
		}
		return nil
	})
	s.log.Info("serving", "version", s.config.Version, "data", s.data.dir, "api", s.config.Listen, "entries", s.control.State().Size(),
		"after", time.Since(s.started).Round(time.Millisecond))
	if err := group.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// listen opens the local socket and, when it is asked for, the TCP listener.
func (s *Server) listen() ([]net.Listener, error) {
	path := s.data.path(socketFile)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) { // ours: the data directory is locked
		return nil, fmt.Errorf("opening the local socket: %w", err)
	}
	local, err := net.Listen("unix", path)
	if err != nil {
		return nil, fault.WithHint(fault.As(fault.Invalid, fmt.Errorf("opening the local socket: %w", err)), "a socket's path has at most 107 characters: choose a shorter --data")
	}
	if err := os.Chmod(path, 0o666); err != nil { // whoever connects is known by the kernel, and let in by the platform's definition
		return nil, errors.Join(err, local.Close())
	}
	if s.config.Listen == "" {
		return []net.Listener{local}, nil
	}
	remote, err := net.Listen("tcp", s.config.Listen)
	if err != nil {
		return nil, errors.Join(fault.WithHint(fault.As(fault.Unavailable, fmt.Errorf("opening the API: %w", err)), "choose another address with --listen"), local.Close())
	}
	if err := s.gateway.Watch(remote); err != nil {
		return nil, errors.Join(err, local.Close(), remote.Close())
	}
	return []net.Listener{local, remote}, nil
}

// close ends what was opened, the last first.
func (s *Server) close() error {
	var errs []error
	if s.gateway != nil {
		errs = append(errs, s.gateway.Close())
	}
	if s.host != nil {
		errs = append(errs, s.host.Close())
	}
	if s.control != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
		defer cancel()
		errs = append(errs, s.control.Close(ctx))
	}
	if s.collect != nil {
		s.finishWitnesses()
	}
	if s.data != nil {
		errs = append(errs, s.data.store.Close())
	}
	return errors.Join(errs...)
}
