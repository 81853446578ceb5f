package control_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
	"github.com/invarhq/invar/store/storetest"
)

var alice = control.Actor{Kind: state.ActorLocal, Name: "alice"}

// manifest is that of the tests' only image.
var manifest = fmt.Appendf(nil, `{"config":{"digest":%q},"layers":[{"digest":%q}]}`, digest.Of([]byte("config")), digest.Of([]byte("layer")))

// blobs keeps content in memory.
type blobs struct {
	mu      sync.Mutex
	content map[digest.Digest][]byte
}

func (b *blobs) Put(_ context.Context, r io.Reader) (digest.Digest, int64, error) {
	raw, err := io.ReadAll(r)
	if err != nil {
		return "", 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	d := digest.Of(raw)
	b.content[d] = raw
	return d, int64(len(raw)), nil
}

func (b *blobs) Open(d digest.Digest) (io.ReadCloser, int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	raw, ok := b.content[d]
	if !ok {
		return nil, 0, fault.Errorf(fault.NotFound, "blob %s is not in the store", d)
	}
	return io.NopCloser(bytes.NewReader(raw)), int64(len(raw)), nil
}

func (b *blobs) Has(d digest.Digest) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content[d] != nil
}

func (b *blobs) put(t testing.TB, raw []byte) digest.Digest {
	t.Helper()
	d, _, err := b.Put(t.Context(), bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// app is the language that the tests' sources are written in: what is the same in every environment.
type app struct {
	Name       spec.AppName
	Components []release.Placed
	Routes     []release.Route
	From       spec.EnvName // promote_from of all environments but itself
	Platform   *platform.Definition
}

// evaluate is the language's evaluation.
func evaluate(_ context.Context, source io.Reader, env spec.EnvName, b release.Bundle, name digest.Digest, pins release.Pins) (release.Record, spec.EnvName, error) {
	var a app
	if err := json.NewDecoder(source).Decode(&a); err != nil {
		return release.Record{}, "", fault.As(fault.Invalid, err)
	}
	r := release.Record{V: 1, App: a.Name, Env: env, Bundle: name, Components: a.Components, Routes: a.Routes, Platform: a.Platform,
		Rollout: release.Rollout{MaxParallel: 1, AutoRevert: true, HealthyDeadlineMillis: 1000, ProgressDeadlineMillis: 2000}}
	if r.Components == nil {
		r.Components = []release.Placed{}
	}
	if r.Routes == nil {
		r.Routes = []release.Route{}
	}
	for _, c := range r.Components { // of sources that were decoded anew
		for i, s := range c.Component.Secrets {
			if c.Component.Secrets[i].Version = pins[s.Name]; pins[s.Name] == "" {
				return release.Record{}, "", fault.Errorf(fault.Invalid, "environment %s has no version of secret %s", env, s.Name)
			}
		}
	}
	if env == a.From {
		return r, "", nil
	}
	return r, a.From, nil
}

// desk is a service with all that it stands on, which outlives it.
type desk struct {
	*control.Service
	t        testing.TB
	disk     *storetest.Disk
	blobs    *blobs
	secrets  *secrets
	signer   note.Signer
	verifier note.Verifier
	vkey     string
	config   control.Config // of the last open
}

func newDesk(t testing.TB) *desk {
	t.Helper()
	skey, vkey, err := ledger.GenerateKey("example.com/ledger")
	if err != nil {
		t.Fatal(err)
	}
	signer, verifier, err := ledger.ParseKey(skey)
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t, disk: storetest.NewDisk(), secrets: &secrets{values: map[digest.Digest]string{}}, blobs: &blobs{content: map[digest.Digest][]byte{}}, signer: signer, verifier: verifier, vkey: vkey}
	d.open(true)
	return d
}

func (d *desk) open(init bool) {
	d.t.Helper()
	if err := d.tryOpen(init); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) tryOpen(init bool) error {
	store, err := d.disk.Open()
	if err != nil {
		return err
	}
	d.config.Attached = func(digest.Digest) ([]digest.Digest, error) {
		return []digest.Digest{digest.Of([]byte("attached"))}, nil
	}
	d.config.Store, d.config.Blobs, d.config.Evaluate, d.config.Secrets, d.config.Init = store, d.blobs, evaluate, d.secrets, init
	d.config.Origin, d.config.Signer, d.config.Verifier, d.config.VKey, d.config.Version = "example.com/ledger", d.signer, d.verifier, d.vkey, "0.1.0"
	if d.Service, err = control.Open(d.t.Context(), d.config); err != nil {
		d.disk.Crash()
	}
	return err
}

// crash kills the server, and starts it again.
func (d *desk) crash() {
	d.t.Helper()
	d.disk.Crash()
	_ = d.Ledger().Close() // its store is dead: it can only fail
	d.disk.SetFaults(nil)
	d.open(false)
}

func web(version string, more ...func(*release.Component)) release.Placed {
	c := release.Component{Name: "web", Image: digest.Of(manifest), Root: digest.Of([]byte("root")), Args: []string{"/web"},
		Env: map[string]string{"VERSION": version}, Ports: []release.Port{{Name: "http", Number: 8080}}, Resources: release.Resources{MemoryBytes: 512 << 20, PIDs: 512},
		StopSignal: "SIGTERM", StopMillis: 10_000}
	for _, f := range more {
		f(&c)
	}
	return release.Placed{Component: c, Replicas: 2}
}

func withVolume(c *release.Component) {
	c.Volumes = []release.Volume{{Name: "data", Path: "/data"}}
}

func at(host string) release.Route {
	return release.Route{Name: "site", Host: host, Path: "/", Component: "web", Port: "http", Number: 8080}
}

// push puts an app's bundle and images where a client would, and returns the bundle's digest.
func (d *desk) push(a app) digest.Digest {
	d.t.Helper()
	source, err := json.Marshal(a)
	if err != nil {
		d.t.Fatal(err)
	}
	img := image.Resolved{Manifest: d.blobs.put(d.t, manifest), Size: int64(len(manifest)), Root: d.blobs.put(d.t, []byte("root")), RootSize: 4,
		Platform: image.Platform{OS: "linux", Architecture: "amd64"}}
	raw, err := release.EncodeBundle(release.Bundle{V: 1, App: a.Name, Source: d.blobs.put(d.t, source), Images: map[spec.ImageName]image.Resolved{"web": img}})
	if err != nil {
		d.t.Fatal(err)
	}
	return d.blobs.put(d.t, raw)
}

func shop(version string) app {
	return app{Name: "shop", Components: []release.Placed{web(version)}, Routes: []release.Route{at("shop.localhost")}}
}

// propose plans an app for an environment, and returns the move that applies the plan.
func (d *desk) propose(env spec.EnvName, a app) (control.Move, error) {
	d.t.Helper()
	p := control.Proposal{Env: env, Bundle: d.push(a)}
	planned, err := d.Plan(d.t.Context(), p)
	p.Release = planned.Plan.Release
	return control.Move{Proposal: p, Base: planned.Plan.Base.Generation, Plan: planned.Digest, Reason: "a reason"}, err
}

func (d *desk) apply(env spec.EnvName, a app) control.Moved {
	d.t.Helper()
	m, err := d.propose(env, a)
	if err != nil {
		d.t.Fatal(err)
	}
	moved, err := d.Apply(d.t.Context(), alice, m)
	if err != nil {
		d.t.Fatal(err)
	}
	return moved
}

// record records steps as the reconciler would.
func (d *desk) record(env spec.EnvName, steps ...deploy.Step) error {
	d.t.Helper()
	return d.Record(d.t.Context(), env, d.env(env).Seq, steps)
}

// complete ends the head's rollout well.
func (d *desk) complete(env spec.EnvName) {
	d.t.Helper()
	if err := d.record(env, deploy.Step{Kind: deploy.Done, Generation: d.env(env).Head.Number}); err != nil {
		d.t.Fatal(err)
	}
}

// create is the step that creates an instance of the head.
func (d *desk) create(env spec.EnvName, id string) deploy.Step {
	e := d.env(env)
	return deploy.Step{Kind: deploy.Create, Instance: &instance.Identity{ID: instance.ID(id), Env: env, Component: "web",
		Digest: e.Head.Digests["web"], Release: e.Head.Release, Generation: e.Head.Number}}
}

func (d *desk) env(name spec.EnvName) state.Environment {
	d.t.Helper()
	e, err := d.State().Environment(name)
	if err != nil {
		d.t.Fatal(err)
	}
	return e
}

// audit checks that the ledger verifies, and that the service's state is what its entries say.
func (d *desk) audit() {
	d.t.Helper()
	ctx := d.t.Context()
	if _, err := ledger.Verify(ctx, d.config.Store, d.vkey); err != nil {
		d.t.Fatalf("the ledger does not verify: %v", err)
	}
	now := d.State()
	if now.Size() != d.Ledger().Size() {
		d.t.Fatalf("state of size %d, ledger of size %d", now.Size(), d.Ledger().Size())
	}
	fold := state.New(func(rel digest.Digest) (release.Record, error) {
		r, _, err := d.blobs.Open(rel)
		if err != nil {
			return release.Record{}, err
		}
		raw, _ := io.ReadAll(r)
		return release.Decode(raw)
	})
	for e, err := range d.Entries(ctx, 0, now.Size()) {
		if err == nil {
			fold, err = fold.Apply(e.Index, e.Entry)
		}
		if err != nil {
			d.t.Fatal(err)
		}
	}
	got, err := now.Encode()
	if err != nil {
		d.t.Fatal(err)
	}
	want, err := fold.Encode()
	if err != nil {
		d.t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		d.t.Fatalf("the state is not the fold of the entries:\n got %s\nwant %s", got, want)
	}
}

// kinds lists the kinds of the entries from an index on.
func (d *desk) kinds(from int64) []state.Kind {
	d.t.Helper()
	var out []state.Kind
	for e, err := range d.Entries(d.t.Context(), from, d.State().Size()) {
		if err != nil {
			d.t.Fatal(err)
		}
		out = append(out, e.Entry.Kind())
	}
	return out
}

func ids(n int) func() string {
	return func() string { n++; return fmt.Sprintf("web-%010d", n) }
}

func within(t testing.TB, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: not within 10 s", what)
	}
}
