package handler_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/api/handler"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/runtimetest"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
	"github.com/invarhq/invar/store/storetest"
)

// version is that of the server in these tests.
const version = "1.2.3"

// world is a whole server but for its adapters: the real control and handler over a store, blobs and a host in
// memory, listening on a unix socket and on TCP.
type world struct {
	t       testing.TB
	control *control.Service
	disk    *storetest.Disk
	host    *runtimetest.Fake
	blobs   *blobs
	secrets *secrets
	handler *handler.Handler
	socket  string // path of the unix socket
	tcp     string // address of the TCP listener
	local   *client.Client
	ids     int
	stopped sync.Once
}

func newWorld(t *testing.T, change ...func(*handler.Config)) *world {
	t.Helper()
	w := build(t, change...)
	w.listen()
	w.local = w.dial("unix://"+w.socket, "")
	return w
}

// build makes a world that does not listen.
func build(t testing.TB, change ...func(*handler.Config)) *world {
	t.Helper()
	return buildAt(t, nil, change...)
}

// buildAt makes one whose control has a clock of its own; nil: the usual.
func buildAt(t testing.TB, now func() time.Time, change ...func(*handler.Config)) *world {
	t.Helper()
	w := &world{t: t, disk: storetest.NewDisk(), host: runtimetest.New(runtimetest.Config{}), blobs: &blobs{held: map[digest.Digest][]byte{}}}
	skey, vkey, err := ledger.GenerateKey("invar.test/ledger")
	w.must(err)
	signer, verifier, err := ledger.ParseKey(skey)
	w.must(err)
	db, err := w.disk.Open()
	w.must(err)
	w.secrets = &secrets{values: map[digest.Digest]string{}}
	w.control, err = control.Open(t.Context(), control.Config{
		Store: db, Blobs: w.blobs, Evaluate: evaluate, Origin: "invar.test/ledger", Signer: signer, Verifier: verifier, VKey: vkey,
		Version: version, Init: true, Secrets: w.secrets, Now: now,
	})
	w.must(err)
	config := handler.Config{
		Control: w.control, Host: w.host, Source: db, Verifier: verifier, VKey: vkey, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Version: version, DataFormat: 1, StartedAt: time.Now(), Machine: api.Host{Name: "test", Features: []api.Feature{}},
		Gateway: func(context.Context) (gateway.Status, error) {
			return gateway.Status{HTTP: "127.0.0.1:8080", HTTPS: "127.0.0.1:8443", PID: 42}, nil
		},
		Healthy: func(context.Context) error { return nil },
	}
	for _, c := range change {
		c(&config)
	}
	w.handler, err = handler.New(config)
	w.must(err)
	return w
}

// listen serves the handler both ways, and ends that with the test.
func (w *world) listen() {
	w.socket = filepath.Join(w.t.TempDir(), "s")
	unix, err := net.Listen("unix", w.socket)
	w.must(err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	w.tcp = tcp.Addr().String()
	srv := w.handler.Server()
	var serving sync.WaitGroup
	for _, l := range []net.Listener{unix, tcp} {
		serving.Go(func() {
			if err := srv.Serve(l); err != http.ErrServerClosed {
				w.t.Error(err)
			}
		})
	}
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			w.t.Errorf("shutting down: %v", err)
		}
		serving.Wait()
		w.stop(ctx)
	})
}

// stop ends the control, once.
func (w *world) stop(ctx context.Context) {
	w.stopped.Do(func() {
		if err := w.control.Close(ctx); err != nil {
			w.t.Error(err)
		}
	})
}

func (w *world) dial(where, token string) *client.Client {
	w.t.Helper()
	c, err := client.New(where, client.Options{Token: token, Version: version})
	w.must(err)
	w.t.Cleanup(c.Close)
	return c
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// bundle puts a bundle of the app "shop" whose web component says greeting, and returns what a client would ask for.
func (w *world) bundle(env, greeting string) api.PlanRequest {
	w.t.Helper()
	source := w.blobs.put([]byte(greeting))
	b := release.Bundle{V: 1, App: "shop", Source: source, Images: map[spec.ImageName]image.Resolved{"web": {
		Manifest: w.blobs.put([]byte("manifest")), Size: 8, Root: w.blobs.put([]byte("root")), RootSize: 4,
		Platform: image.Platform{OS: "linux", Architecture: "amd64"},
	}}}
	raw, err := release.EncodeBundle(b)
	w.must(err)
	name := w.blobs.put(raw)
	rec, _, err := evaluate(w.t.Context(), bytes.NewReader([]byte(greeting)), spec.EnvName(env), b, name, nil)
	w.must(err)
	d, err := rec.Digest()
	w.must(err)
	return api.PlanRequest{Bundle: name, Release: d}
}

// rule puts a definition of the platform in force, as the server does with its first.
func (w *world) rule(def platform.Definition) {
	w.t.Helper()
	source, err := json.Marshal(def)
	w.must(err)
	raw, err := release.EncodeBundle(release.Bundle{V: 1, App: platform.App, Source: w.blobs.put(source), Images: map[spec.ImageName]image.Resolved{}})
	w.must(err)
	base := 0
	if e, err := w.control.State().Environment(platform.Env); err == nil {
		base = e.Head.Number
	}
	_, err = w.control.Apply(w.t.Context(), control.Actor{Kind: state.ActorSystem, Name: "server"}, control.Move{
		Proposal: control.Proposal{Env: platform.Env, Bundle: w.blobs.put(raw)}, Base: base, Reason: "rules",
	})
	w.must(err)
}

// caller is a local user of the definition in force.
func (w *world) caller(user string) control.Caller {
	w.t.Helper()
	c, err := w.control.Identify(identity.Identity{Method: identity.Local, Name: user})
	w.must(err)
	return c
}

// secretOf makes a token for a local user, and returns its secret.
func (w *world) secretOf(user string, scope control.Scope) string {
	w.t.Helper()
	_, secret, err := w.control.CreateToken(w.t.Context(), w.caller(user), "test", scope)
	w.must(err)
	return secret
}

// evaluate stands for spec/parse: the sources are the greeting.
func evaluate(_ context.Context, source io.Reader, env spec.EnvName, b release.Bundle, name digest.Digest, pins release.Pins) (release.Record, spec.EnvName, error) {
	greeting, err := io.ReadAll(source)
	if err != nil {
		return release.Record{}, "", err
	}
	if b.App == platform.App { // whose sources are the definition
		r := release.Record{V: 1, App: b.App, Env: env, Bundle: name, Components: []release.Placed{}, Routes: []release.Route{}, Platform: new(platform.Definition),
			Rollout: release.Rollout{MaxParallel: 1, HealthyDeadlineMillis: 1000, ProgressDeadlineMillis: 2000}}
		return r, "", json.Unmarshal(greeting, r.Platform)
	}
	rollout := spec.DefaultRollout()
	rollout.MinHealthyTime, rollout.MaxParallel, rollout.KeepWarm, rollout.Drain = 0, 2, 0, 0
	r, err := release.Evaluate(spec.App{
		Name: b.App, Env: spec.Environment{Name: env, Rollout: rollout},
		Components: []spec.Component{{
			Name: "web", Image: "web", Replicas: 2, Command: []string{"/web"}, Env: map[string]string{"GREETING": string(greeting)},
			Files: []spec.File{{Path: "/etc/web.conf", Content: fmt.Appendf(nil, "a\ngreeting %s\nb\n", greeting), Mode: 0o444}},
			Ports: []spec.Port{{Name: "http", Number: 8080, Protocol: "tcp"}},
		}},
		Routes: []spec.Route{{Name: "shop", Host: string(env) + ".localhost", Path: "/", To: spec.PortRef{Component: "web", Port: "http"}}},
	}, name, b.Images, pins)
	return r, "", err
}

// apply plans and applies through the client, and carries the rollout out.
func (w *world) apply(env, greeting string) api.Accepted {
	w.t.Helper()
	req := w.bundle(env, greeting)
	p, err := w.local.Plan(w.t.Context(), env, req)
	w.must(err)
	acc, err := w.local.Apply(w.t.Context(), env, applyOf(p, "because "+greeting))
	w.must(err)
	w.settle(env)
	return acc
}

func applyOf(p api.Plan, reason string) api.ApplyRequest {
	return api.ApplyRequest{Bundle: p.Bundle, Release: p.Release, BaseGeneration: p.BaseGeneration, PlanDigest: p.Digest, Reason: reason}
}

// settle is a small reconciler: it records and acts until the environment's rollout has ended and what was replaced is gone.
func (w *world) settle(env string) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if w.turn(spec.EnvName(env)) {
			return
		}
	}
	w.t.Fatalf("the rollout of %s does not end", env)
}

func (w *world) turn(env spec.EnvName) (settled bool) {
	ctx := w.t.Context()
	have, err := w.host.List(ctx)
	w.must(err)
	e, err := w.control.State().Environment(env)
	w.must(err)
	steps := deploy.Next(e.Environment, have, time.Now(), w.newID)
	if len(steps) > 0 {
		w.must(w.control.Record(ctx, env, e.Seq, steps))
		e, err = w.control.State().Environment(env)
		w.must(err)
	}
	acts := deploy.Acts(e.Environment, have, map[instance.ID]int64{}, time.Now())
	for _, a := range acts {
		w.act(e.Environment, a)
	}
	return len(steps)+len(acts) == 0 && e.Head.Outcome != deploy.Rolling
}

func (w *world) act(e deploy.Environment, a deploy.Act) {
	ctx, id := w.t.Context(), a.Instance.ID
	if a.End {
		w.must(w.host.Stop(ctx, id))
		w.must(w.host.Remove(ctx, id))
		return
	}
	c := e.Components[a.Instance.Digest]
	w.must(w.host.Create(ctx, runtime.Spec{Identity: a.Instance, Root: c.Root, Args: c.Args, Ports: []int{8080}}))
	w.must(w.host.Start(ctx, id))
}

func (w *world) newID(name spec.ComponentName) instance.ID {
	w.ids++
	suffix := []byte("aaaaaaaaaa")
	for i, n := len(suffix)-1, w.ids; n > 0; i, n = i-1, n/26 {
		suffix[i] += byte(n % 26)
	}
	return instance.ID(string(name) + "-" + string(suffix))
}

// blobs are control.Blobs in memory.
type blobs struct {
	mu   sync.Mutex
	held map[digest.Digest][]byte
}

func (b *blobs) put(content []byte) digest.Digest {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := digest.Of(content)
	b.held[d] = content
	return d
}

func (b *blobs) Put(_ context.Context, r io.Reader) (digest.Digest, int64, error) {
	content, err := io.ReadAll(r)
	return b.put(content), int64(len(content)), err
}

func (b *blobs) Open(d digest.Digest) (io.ReadCloser, int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	content, ok := b.held[d]
	if !ok {
		return nil, 0, fault.Errorf(fault.NotFound, "blob %s is not here", d)
	}
	return io.NopCloser(bytes.NewReader(content)), int64(len(content)), nil
}

func (b *blobs) Has(d digest.Digest) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.held[d]
	return ok
}

// as asks for the server over the unix socket as another user, from a process of its own, since only a process has
// one user.
func (w *world) as(uid uint32) (int, api.Problem) {
	w.t.Helper()
	for dir := filepath.Dir(w.socket); dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		w.must(os.Chmod(dir, 0o755))
	}
	w.must(os.Chmod(w.socket, 0o777))
	cmd := exec.CommandContext(w.t.Context(), "/proc/self/exe", "-test.run=^TestAskAsThisUser$", "-test.v")
	cmd.Env = []string{"ASK_SOCKET=" + w.socket}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("asking as user %d: %v\n%s", uid, err, out)
	}
	_, answer, _ := strings.Cut(string(out), "ANSWER ")
	var p api.Problem
	w.must(json.NewDecoder(strings.NewReader(answer)).Decode(&p))
	return p.Status, p
}

// TestAskAsThisUser is the process that as starts; alone it does nothing.
func TestAskAsThisUser(t *testing.T) {
	socket := os.Getenv("ASK_SOCKET")
	if socket == "" {
		return
	}
	c, err := client.New("unix://"+socket, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: c.Transport()}).Get(c.Base().String() + api.PathServer)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("ANSWER %s\n", body)
}

// fuzzHandler is the handler of a world that nobody applied anything to.
func fuzzHandler(f *testing.F) http.Handler {
	f.Helper()
	w := build(f)
	f.Cleanup(func() { w.control.Close(context.Background()) })
	return w.handler
}

func asPeer(ctx context.Context) context.Context { return handler.AsOwnPeer(ctx) }
