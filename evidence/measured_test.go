package evidence_test

import (
	"time"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/image/sbom"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/state"
)

// measurement is what a server says of a measurement, and how it lies.
type measurement struct {
	of    attest.Verification
	found []attest.Instance
	skey  string                                       // that signs the statement
	lie   func(*attest.Statement[attest.Verification]) // about what was found
	edit  func(*state.Entry, *state.Verify)            // of the entry
}

// running gives prod two healthy instances.
func (w *world) running() {
	w.t.Helper()
	env, err := w.now.Environment("prod")
	if err != nil {
		w.t.Fatal(err)
	}
	if len(env.Instances) > 0 {
		return
	}
	for _, id := range []instance.ID{"web-aaaaaaaaaa", "web-bbbbbbbbbb"} {
		w.add(system, "prod", state.Step{Step: deploy.Step{Kind: deploy.Create, Instance: &instance.Identity{ID: id, Env: "prod", Component: "web",
			Digest: env.Head.Digests["web"], Release: env.Head.Release, Generation: env.Head.Number}}})
		w.add(system, "prod", state.Step{Step: deploy.Step{Kind: deploy.Healthy, ID: id}})
	}
	w.later(time.Minute)
}

// measured measures prod: what edit does not change is as released.
func (w *world) measured(by string, edit func(*measurement)) state.Entry {
	w.t.Helper()
	w.running()
	env, err := w.now.Environment("prod")
	if err != nil {
		w.t.Fatal(err)
	}
	placed := env.Head.Record.Components[0]
	m := measurement{skey: w.skey, lie: func(*attest.Statement[attest.Verification]) {}, edit: func(*state.Entry, *state.Verify) {},
		of: attest.Verification{Env: "prod", Generation: env.Head.Number, Release: env.Head.Release, From: w.at, To: w.at, Who: by, By: origin, Server: "test",
			Components: []attest.Component{{Name: "web", Digest: env.Head.Digests["web"], Root: placed.Component.Root, Replicas: placed.Replicas}}}}
	for _, id := range []instance.ID{"web-aaaaaaaaaa", "web-bbbbbbbbbb"} {
		m.found = append(m.found, attest.Instance{ID: id, Component: "web", Digest: env.Head.Digests["web"], State: attest.Running, Expected: placed.Component.Root, Found: placed.Component.Root})
	}
	edit(&m)
	s := attest.Verified(m.of, m.found)
	bad := s.Predicate.Bad()
	d := state.Verify{Instances: len(s.Predicate.Instances), Generation: s.Predicate.Generation, Result: s.Predicate.Result, Differ: bad}
	m.lie(&s)
	body := envelope(w, m.skey, s)
	e := w.entry(person(by), "prod", d)
	e.Body = body
	m.edit(&e, &d)
	return w.add(person(by), "prod", d, func(to *state.Entry) { to.Body, to.Outcome = body, e.Outcome })
}

// envelope signs a statement, and keeps it.
func envelope[P any](w *world, skey string, s attest.Statement[P]) *state.Body {
	w.t.Helper()
	raw, err := s.Encode()
	if err != nil {
		w.t.Fatal(err)
	}
	_, key, err := ledger.PrivateKey(skey)
	if err != nil {
		w.t.Fatal(err)
	}
	signed, err := sbom.Sign(raw, key)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.keep(signed, attest.TypeEnvelope)
}

// reproduced attests what came of making prod's release again, and records perhaps something else.
func (w *world) reproduced(says, records string) state.Entry {
	w.t.Helper()
	env, err := w.now.Environment("prod")
	if err != nil {
		w.t.Fatal(err)
	}
	bundle := env.Head.Record.Bundle
	body := envelope(w, w.skey, attest.New("https://github.com/invarhq/invar/reproduction/v1", map[string]any{
		"result": says, "release": env.Head.Release, "bundle": bundle, "who": "root",
	}, attest.Of("release", env.Head.Release)))
	return w.add(person("root"), "prod", state.AttestReproduced{Release: env.Head.Release, Bundle: bundle, Result: records,
		Builder: state.Builder{Version: "1.0", Platform: "linux/amd64", Sources: state.SourcesBundle}}, func(e *state.Entry) { e.Body = body })
}

// promotion brings prod's bundle to staging, an hour after it completed, and says so as edit has it.
func (w *world) promotion(edit func(*state.Promoted)) state.Entry {
	w.t.Helper()
	w.running()
	w.add(system, "prod", state.Step{Step: deploy.Step{Kind: deploy.Done, Generation: w.generation("prod")}})
	w.later(time.Hour)
	env, err := w.now.Environment("prod")
	if err != nil {
		w.t.Fatal(err)
	}
	p := state.Promoted{From: "prod", Generation: env.Head.Number, HealthyForMS: (30 * time.Minute).Milliseconds(), Completed: env.Calm.Completed, Newest: env.Calm.Newest}
	edit(&p)
	r := w.shop("staging", "1", 2)
	d := w.known(r)
	_, body := w.plan("staging", r, d)
	return w.add(person("dave"), "staging", state.Apply{App: "shop", Generation: 1, Release: d, Bundle: r.Bundle, Plan: body.Digest, Promoted: &p}, func(e *state.Entry) { e.Body = body })
}

// deletion has staging keep a snapshot of a volume, and somebody delete it.
func (w *world) deletion(by string) state.Entry {
	r := w.shop("staging", "1", 1)
	r.Components[0].Component.Volumes = []release.Volume{{Name: "data", Path: "/data"}}
	w.apply(person("dave"), r, state.Governed{}, "")
	v, err := r.Components[0].Component.Digest()
	if err != nil {
		w.t.Fatal(err)
	}
	step := func(s deploy.Step) { w.add(system, "staging", state.Step{Step: s}) }
	id := instance.ID("web-cccccccccc")
	step(deploy.Step{Kind: deploy.Create, Instance: &instance.Identity{ID: id, Env: "staging", Component: "web", Digest: v, Release: w.known(r), Generation: 1}})
	step(deploy.Step{Kind: deploy.Gone, ID: id})
	c := deploy.Copy{Component: "web", Volume: "data", From: &deploy.Place{Version: 1}, To: deploy.Place{Snapshot: 1}, Generation: 1}
	step(deploy.Step{Kind: deploy.Copying, Copy: &c})
	step(deploy.CopyEnded(c, deploy.Content{Bytes: 1, Files: 1, Digest: digest.Of([]byte("data"))}, nil))
	return w.add(person(by), "staging", state.VolumeDelete{Component: "web", Volume: "data", Snapshot: 1})
}
