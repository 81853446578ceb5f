package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/invarhq/invar/api/handler"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
	"github.com/invarhq/invar/store/sqlite"
)

// benchGovern measures what it costs that somebody asks whether one may: at the gate, and of the policies.
func benchGovern(ctx context.Context, b *bench) error {
	b.note("baseline: the same requests under a definition of one principal and one grant")
	large, err := b.newGate(ctx, "large", manyPeople())
	if err != nil {
		return err
	}
	small, err := b.newGate(ctx, "small", onePerson())
	if err != nil {
		return err
	}
	lasts := time.Duration(b.pick(1000, 200)) * time.Millisecond
	for _, way := range []struct {
		name string
		ask  func(g *gate, lasts time.Duration) (float64, error)
	}{
		{"handler alone, a token, one at a time", (*gate).direct},
		{"unix socket, the kernel says who, 64 connections", (*gate).socket},
	} {
		var many, one sample
		for range b.pick(10, 3) {
			for _, side := range []struct {
				gate *gate
				into *sample
			}{{large, &many}, {small, &one}} {
				rate, err := way.ask(side.gate, lasts)
				if err != nil {
					return err
				}
				side.into.add(rate)
			}
		}
		b.row(way.name+", 1,000 principals", many.rate("/s"), one.rate("/s"), ratios(many, one).p50(), target{})
	}
	b.row("  of which: the decision", decision(large).values("µs"), decision(small).values("µs"), 0, target{})
	return b.policyDecision(ctx)
}

// manyPeople is a definition of 1,000 principals in 50 groups with 100 grants. The last may read where the bench asks.
func manyPeople() platform.Definition {
	var d platform.Definition
	for i := range 999 {
		d.Principals = append(d.Principals, platform.Principal{Name: platform.PrincipalName(fmt.Sprintf("p%04d", i)), LocalUsers: []string{fmt.Sprint("user", i)}})
	}
	for i := range 50 {
		g := platform.Group{Name: platform.GroupName(fmt.Sprintf("g%02d", i))}
		for j := range 19 {
			g.Members = append(g.Members, d.Principals[i*19+j].Name)
		}
		g.Members = append(g.Members, "root")
		d.Groups = append(d.Groups, g)
	}
	d.Roles = []platform.Role{{Name: "admin", Permissions: []platform.Permission{platform.Anything}}, {Name: "reader", Permissions: []platform.Permission{platform.Read, platform.Logs}}}
	for i := range 99 {
		d.Grants = append(d.Grants, platform.Grant{Role: "reader", Groups: []platform.GroupName{d.Groups[i/2].Name}, Environments: []platform.Pattern{platform.Pattern(fmt.Sprintf("team%02d-*", i/2))}})
	}
	return withRoot(d)
}

func onePerson() platform.Definition {
	return withRoot(platform.Definition{Roles: []platform.Role{{Name: "admin", Permissions: []platform.Permission{platform.Anything}}}})
}

// withRoot adds who asks: the user of this process.
func withRoot(d platform.Definition) platform.Definition {
	me, err := user.Current()
	if err != nil {
		panic(err) // a process has a user
	}
	d.Principals = append(d.Principals, platform.Principal{Name: "root", LocalUsers: []string{me.Username}})
	d.Grants = append(d.Grants, platform.Grant{Role: "admin", Principals: []platform.PrincipalName{"root"}, Environments: []platform.Pattern{"*"}})
	return d
}

// gate is the API over a ledger on disk, without any instance.
type gate struct {
	control *control.Service
	handler *handler.Handler
	caller  control.Caller
	secret  string
	path    string // of the unix socket
}

// asked is a cheap operation that needs a permission in an environment.
const asked = "/v1/environments/platform/history"

func (b *bench) newGate(ctx context.Context, name string, def platform.Definition) (*gate, error) {
	signer, verifier, vkey, err := newKey()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	store, err := sqlite.Create(ctx, dir)
	if err != nil {
		return nil, err
	}
	held := &memory{content: map[digest.Digest][]byte{}}
	g := &gate{path: filepath.Join(dir, "s")}
	g.control, err = control.Open(ctx, control.Config{Store: store, Blobs: held, Evaluate: definitionOf, Origin: signer.Name(), Signer: signer, Verifier: verifier,
		VKey: vkey, Version: "bench", Init: true})
	if err != nil {
		return nil, err
	}
	b.defers(func() {
		if err := g.control.Close(context.Background()); err != nil {
			b.note("closing the ledger: %v", err)
		}
		store.Close()
	})
	if err := g.rule(ctx, held, def); err != nil {
		return nil, err
	}
	me := def.Principals[len(def.Principals)-1].LocalUsers[0]
	if g.caller, err = g.control.Identify(identity.Identity{Method: identity.Local, Name: me}); err != nil {
		return nil, err
	}
	if _, g.secret, err = g.control.CreateToken(ctx, g.caller, "bench", control.Scope{}); err != nil {
		return nil, err
	}
	g.handler, err = handler.New(handler.Config{Control: g.control, Source: store, Verifier: verifier, VKey: vkey, Version: "bench", Log: slog.New(slog.DiscardHandler),
		StartedAt: time.Now(), Healthy: func(context.Context) error { return nil }})
	if err != nil {
		return nil, err
	}
	return g, b.listen(g)
}

func (b *bench) listen(g *gate) error {
	l, err := net.Listen("unix", g.path)
	if err != nil {
		return err
	}
	srv := g.handler.Server()
	served := make(chan struct{})
	go func() { defer close(served); srv.Serve(l) }()
	b.defers(func() { srv.Close(); <-served })
	return nil
}

// rule puts a definition in force.
func (g *gate) rule(ctx context.Context, held *memory, def platform.Definition) error {
	source, err := json.Marshal(def)
	if err != nil {
		return err
	}
	name, _, err := held.Put(ctx, bytes.NewReader(source))
	if err != nil {
		return err
	}
	raw, err := release.EncodeBundle(release.Bundle{V: release.Version, App: platform.App, Source: name, Images: map[spec.ImageName]image.Resolved{}})
	if err != nil {
		return err
	}
	bundle, _, err := held.Put(ctx, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	_, err = g.control.Apply(ctx, control.Actor{Kind: state.ActorSystem, Name: "bench"},
		control.Move{Proposal: control.Proposal{Env: platform.Env, Bundle: bundle}, Reason: "bench"})
	return err
}

// definitionOf evaluates sources that are a definition as JSON.
func definitionOf(_ context.Context, source io.Reader, env spec.EnvName, b release.Bundle, name digest.Digest, _ release.Pins) (release.Record, spec.EnvName, error) {
	r := release.Record{V: release.Version, App: b.App, Env: env, Bundle: name, Components: []release.Placed{}, Routes: []release.Route{}, Platform: new(platform.Definition),
		Rollout: release.Rollout{MaxParallel: 1, HealthyDeadlineMillis: 1000, ProgressDeadlineMillis: 2000}}
	return r, "", json.NewDecoder(source).Decode(r.Platform)
}

// memory keeps blobs.
type memory struct {
	mu      sync.Mutex
	content map[digest.Digest][]byte
}

func (m *memory) Put(_ context.Context, r io.Reader) (digest.Digest, int64, error) {
	raw, err := io.ReadAll(r)
	m.mu.Lock()
	defer m.mu.Unlock()
	d := digest.Of(raw)
	m.content[d] = raw
	return d, int64(len(raw)), err
}

func (m *memory) Open(d digest.Digest) (io.ReadCloser, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	raw, ok := m.content[d]
	if !ok {
		return nil, 0, fault.Errorf(fault.NotFound, "blob %s", d)
	}
	return io.NopCloser(bytes.NewReader(raw)), int64(len(raw)), nil
}

func (m *memory) Has(d digest.Digest) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.content[d]
	return ok
}

// direct asks the handler without any connection, one request after the other.
func (g *gate) direct(lasts time.Duration) (float64, error) {
	n, began := 0, time.Now()
	for ; time.Since(began) < lasts; n++ {
		r := httptest.NewRequest(http.MethodGet, asked, nil)
		r.Host, r.RemoteAddr = "127.0.0.1", "127.0.0.1:1"
		r.Header.Set("Authorization", "Bearer "+g.secret)
		w := httptest.NewRecorder()
		if g.handler.ServeHTTP(w, r); w.Code != http.StatusOK {
			return 0, fmt.Errorf("%s: %d %s", asked, w.Code, w.Body)
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// socket asks over the unix socket, on 64 connections.
func (g *gate) socket(lasts time.Duration) (float64, error) {
	const connections = 64
	transport := &http.Transport{MaxIdleConnsPerHost: connections, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", g.path)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var done atomic.Int64
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	began := time.Now()
	for range connections {
		all.Go(func() {
			for time.Since(began) < lasts && failed.Load() == nil {
				if err := history(client); err != nil {
					failed.Store(&err)
					return
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(done.Load()) / time.Since(began).Seconds(), nil
}

func history(client *http.Client) error {
	resp, err := client.Get("http://localhost" + asked)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", asked, resp.Status)
	}
	return nil
}

// decision measures the one question that the gate asks, in microseconds.
func decision(g *gate) sample {
	const times = 1000
	var out sample
	for range 20 {
		began := time.Now()
		for range times {
			g.control.Allows(g.caller, platform.Read, platform.Env)
		}
		out.add(float64(time.Since(began).Microseconds()) / times)
	}
	return out
}

var p99 = regexp.MustCompile(`([0-9.]+) ns/op.* ([0-9.]+) p99-ms`)

// policyDecision reuses the benchmark of package policy: the starter library on a release of 200 components.
func (b *bench) policyDecision(ctx context.Context) error {
	var mean, worst sample
	for range b.pick(5, 1) {
		out, err := output(ctx, "go", "-C", b.repo, "test", "-run", "^$", "-bench", "^BenchmarkDecide$", "-benchtime", fmt.Sprint(b.pick(3, 1), "s"), "./policy")
		if err != nil {
			return err
		}
		found := p99.FindStringSubmatch(out)
		if found == nil {
			return fmt.Errorf("no figures in:\n%s", out)
		}
		ns, _ := strconv.ParseFloat(found[1], 64) // as the expression has it
		ms, _ := strconv.ParseFloat(found[2], 64)
		mean.add(ns / 1e6)
		worst.add(ms)
	}
	b.row("a policy decision, 200 components: mean", mean.ms(), "", 0, target{})
	b.row("  p99", worst.ms(), "", 0, target{})
	return nil
}
