package reconcile_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/reconcile"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/runtimetest"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
	"github.com/invarhq/invar/store/storetest"
)

// TestSimulationOnRealLedger runs the loops on the real ledger, with its one writer, signed checkpoints and snapshots, over a
// disk that fails and a process that dies at appends. At the end the ledger verifies, the state is the fold of its entries, and the
// host has what the head wants.
func TestSimulationOnRealLedger(t *testing.T) {
	seeds := max(1, *simSeeds/8)
	if testing.Short() {
		seeds = min(seeds, 10)
	}
	var crashes, entries int
	for seed := range uint64(seeds) {
		if *simSeed != 0 {
			seed = *simSeed
		}
		synctest.Test(t, func(t *testing.T) {
			s := newServer(t, seed)
			s.run()
			crashes, entries = crashes+s.crashes, entries+int(s.State().Size())
			s.close()
		})
		if t.Failed() || *simSeed != 0 {
			t.Logf("seed %d", seed)
			break
		}
	}
	t.Logf("%d crashes, %d entries", crashes, entries)
}

// server is a server's control and loops, with what outlives them.
type server struct {
	*control.Service
	t    *testing.T
	rand *rand.Rand
	disk *storetest.Disk
	host *runtimetest.Fake
	road *roads

	content *memory
	signer  note.Signer
	check   note.Verifier
	vkey    string
	stop    context.CancelFunc
	ended   chan struct{}
	crashes int

	mu   sync.Mutex
	dead bool // the disk says that the process died
	left int  // appends until something happens
	kind storetest.Fault
}

func newServer(t *testing.T, seed uint64) *server {
	skey, vkey, err := ledger.GenerateKey("example.com/ledger")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{
		t: t, rand: rand.New(rand.NewPCG(seed, 2)), disk: storetest.NewDisk(), road: &roads{}, content: &memory{}, vkey: vkey,
		host: runtimetest.New(runtimetest.Config{Seed: seed, Behave: func(r runtime.Spec) runtimetest.Behaviour {
			if version(r) == "dies" {
				return runtimetest.Behaviour{Ready: time.Second, ExitAfter: 100 * time.Millisecond, ExitCode: 1}
			}
			return runtimetest.Behaviour{CreateTakes: 5 * time.Millisecond, Ready: 50 * time.Millisecond, StopTakes: 20 * time.Millisecond}
		}}),
	}
	if s.signer, s.check, err = ledger.ParseKey(skey); err != nil {
		t.Fatal(err)
	}
	s.disk.SetFaults(s.meet)
	s.open(true)
	return s
}

// meet decides what an operation of the disk meets.
func (s *server) meet(op storetest.Op) storetest.Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if op != storetest.OpAppend || s.left == 0 {
		return storetest.None
	}
	if s.left--; s.left > 0 {
		return storetest.None
	}
	s.dead = s.kind == storetest.Crash || s.kind == storetest.CrashAfter
	return s.kind
}

func (s *server) open(first bool) {
	store, err := s.disk.Open()
	if err != nil {
		s.t.Fatal(err)
	}
	s.Service, err = control.Open(s.t.Context(), control.Config{
		Store: store, Blobs: s.content, Evaluate: evaluate, Origin: "example.com/ledger", Signer: s.signer, Verifier: s.check, VKey: s.vkey,
		Version: "0.1.0", Init: first, SnapshotEvery: 50,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(s.t.Context())
	s.stop, s.ended = stop, make(chan struct{})
	r := reconcile.New(reconcile.Config{Source: s.Rollouts(), Recorder: s.Service, Host: s.host, Traffic: s.road})
	go func() {
		defer close(s.ended)
		r.Run(ctx)
	}()
}

func (s *server) close() {
	s.stop()
	<-s.ended
	s.disk.Crash()
	_ = s.Ledger().Close() // its store is gone: it can only fail
}

// crash kills the process and starts it again.
func (s *server) crash() {
	s.crashes++
	s.close()
	s.mu.Lock()
	s.dead, s.left = false, 0
	s.mu.Unlock()
	time.Sleep(time.Duration(s.rand.IntN(2000)) * time.Millisecond)
	s.open(false)
}

func (s *server) died() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

func (s *server) run() {
	for range 25 {
		if err := s.event(); err != nil && fault.KindOf(err) == "" {
			s.t.Errorf("failed without a kind: %v", err)
		}
		time.Sleep(time.Duration(s.rand.IntN(800)) * time.Millisecond)
		if s.died() {
			s.crash()
		}
	}
	s.mu.Lock()
	s.left = 0
	s.mu.Unlock()
	synctest.Wait()
	if s.died() {
		s.crash()
	}
	settle(5 * time.Minute)
	if err := s.apply("final"); err != nil {
		s.t.Fatal(err)
	}
	settle(30 * time.Minute)
	s.audit()
}

// event has something happen.
func (s *server) event() error {
	switch s.rand.IntN(10) {
	case 0, 1, 2:
		return s.apply([]string{"a", "b", "dies"}[s.rand.IntN(3)])
	case 3:
		_, err := s.Rollback(s.t.Context(), operator, "prod", 0, "", control.How{})
		return err
	case 4:
		if s.rand.IntN(3) == 0 {
			_, err := s.Destroy(s.t.Context(), operator, "prod", false, "", control.How{})
			return err
		}
	case 5:
		s.crash()
	case 6, 7:
		s.mu.Lock()
		s.left, s.kind = 1+s.rand.IntN(4), storetest.Fault(1+s.rand.IntN(4))
		s.mu.Unlock()
	default:
		if all := s.host.Specs(); len(all) > 0 {
			return s.hurt(all[s.rand.IntN(len(all))].Identity.ID)
		}
	}
	return nil
}

func (s *server) hurt(id instance.ID) error {
	if s.rand.IntN(2) == 0 {
		return s.host.Vanish(id)
	}
	return s.host.Kill(id)
}

var operator = control.Actor{Kind: state.ActorLocal, Name: "operator"}

// manifest is that of the only image.
var manifest = fmt.Appendf(nil, `{"config":{"digest":%q},"layers":[{"digest":%q}]}`, digest.Of([]byte("config")), digest.Of([]byte("layer")))

// apply makes a client's bundle, and moves the head to its release.
func (s *server) apply(v string) error {
	source := s.content.put([]byte(v))
	img := image.Resolved{Manifest: s.content.put(manifest), Size: int64(len(manifest)), Root: s.content.put([]byte("root")), RootSize: 4,
		Platform: image.Platform{OS: "linux", Architecture: "amd64"}}
	raw, err := release.EncodeBundle(release.Bundle{V: 1, App: "shop", Source: source, Images: map[spec.ImageName]image.Resolved{"web": img}})
	if err != nil {
		s.t.Fatal(err)
	}
	p := control.Proposal{Env: "prod", Bundle: s.content.put(raw)}
	planned, err := s.Plan(s.t.Context(), p)
	if err != nil {
		return err
	}
	p.Release = planned.Plan.Release
	_, err = s.Apply(s.t.Context(), operator, control.Move{Proposal: p, Base: planned.Plan.Base.Generation, Plan: planned.Digest, Reason: "a reason"})
	return err
}

// evaluate makes a release of a version, which is all that the sources have in them.
func evaluate(_ context.Context, source io.Reader, env spec.EnvName, _ release.Bundle, name digest.Digest, _ release.Pins) (release.Record, spec.EnvName, error) {
	v, err := io.ReadAll(source)
	if err != nil {
		return release.Record{}, "", err
	}
	r := app(fast, "web×2="+string(v)+" >db", "db×1=a*")
	r.Env, r.Bundle = env, name
	for i := range r.Components {
		c := &r.Components[i].Component
		c.Image, c.Root = digest.Of(manifest), digest.Of([]byte("root"))
		c.Resources, c.StopSignal, c.StopMillis = release.Resources{MemoryBytes: 512 << 20, PIDs: 512}, "SIGTERM", 10_000
	}
	return r, "", nil
}

// audit checks what must be at the end.
func (s *server) audit() {
	e, err := s.State().Environment("prod")
	if err != nil {
		s.t.Fatal(err)
	}
	if e.Head.Outcome != deploy.Completed || len(e.Instances) != 3 || s.host.Len() != 3 || s.host.Passing() != 3 {
		s.t.Errorf("generation %d is %s (%s), with %d instances in the ledger and %d on the host, %d passing; want 3",
			e.Head.Number, e.Head.Outcome, e.Head.Cause, len(e.Instances), s.host.Len(), s.host.Passing())
	}
	if got := len(s.road.to("prod/web/http")); got != 2 {
		s.t.Errorf("%d instances have the traffic of web, want 2", got)
	}
	copied, err := s.disk.Clone().Open()
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := ledger.Verify(s.t.Context(), copied, s.vkey); err != nil {
		s.t.Errorf("the ledger does not verify: %v", err)
	}
	s.refold()
}

// refold checks that the state is the fold of all entries.
func (s *server) refold() {
	now := s.State()
	fold := state.New(func(d digest.Digest) (release.Record, error) { return release.Decode(s.content.get(d)) })
	for e, err := range s.Entries(s.t.Context(), 0, now.Size()) {
		if err == nil {
			fold, err = fold.Apply(e.Index, e.Entry)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	got, gotErr := now.Encode()
	want, wantErr := fold.Encode()
	if err := errors.Join(gotErr, wantErr); err != nil || !bytes.Equal(got, want) || !json.Valid(got) {
		s.t.Errorf("the state is not the fold of the entries: %v\n got %s\nwant %s", err, got, want)
	}
}

// memory is a store of blobs.
type memory struct{ content sync.Map } // digest.Digest to []byte

func (m *memory) put(raw []byte) digest.Digest {
	d := digest.Of(raw)
	m.content.Store(d, raw)
	return d
}

func (m *memory) get(d digest.Digest) []byte {
	raw, _ := m.content.Load(d)
	b, _ := raw.([]byte)
	return b
}

func (m *memory) Put(_ context.Context, r io.Reader) (digest.Digest, int64, error) {
	raw, err := io.ReadAll(r)
	if err != nil {
		return "", 0, err
	}
	return m.put(raw), int64(len(raw)), nil
}

func (m *memory) Open(d digest.Digest) (io.ReadCloser, int64, error) {
	raw := m.get(d)
	if raw == nil {
		return nil, 0, fault.Errorf(fault.NotFound, "blob %s is not in the store", d)
	}
	return io.NopCloser(bytes.NewReader(raw)), int64(len(raw)), nil
}

func (m *memory) Has(d digest.Digest) bool { return m.get(d) != nil }
