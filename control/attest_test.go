package control_test

import (
	"encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/state"
)

// attesting is a desk whose server signs statements, with a release that may be made again.
func attesting(t *testing.T) (*desk, digest.Digest, control.Reproduction) {
	t.Helper()
	d := newDesk(t)
	d.config.SignStatement = func(s []byte) ([]byte, error) { return append([]byte("signed "), s...), nil }
	d.crash()
	d.apply("prod", shop("1"))
	head := d.env("prod").Head
	r := control.Reproduction{Builder: state.Builder{Version: "1.0", Platform: "linux/amd64", Host: "ci", Sources: state.SourcesBundle}}
	for name, part := range map[string]digest.Digest{
		"release": head.Release, "bundle": d.push(shop("1")), "image web": digest.Of(manifest), "root web": digest.Of([]byte("root")),
	} {
		r.Parts = append(r.Parts, control.ReproducedPart{Name: name, Recorded: part, Made: part})
	}
	return d, head.Release, r
}

func (d *desk) body(name digest.Digest) []byte {
	d.t.Helper()
	in, _, err := d.blobs.Open(name)
	if err != nil {
		d.t.Fatal(err)
	}
	raw, err := io.ReadAll(in)
	if err != nil {
		d.t.Fatal(err)
	}
	return raw
}

func TestAttestationSaysWhoSaidWhatAndThatTheServerDidNotSeeIt(t *testing.T) {
	d, release, r := attesting(t)
	index, name, err := d.Attest(t.Context(), alice, release, r)
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range d.Entries(t.Context(), index, index+1) {
		if err != nil {
			t.Fatal(err)
		}
		e := e.Entry
		a, ok := e.Data.(state.AttestReproduced)
		if !ok || a.Result != state.Same || a.Release != release || a.Builder != r.Builder || e.Actor != alice || len(e.Subject) != 4 || e.Body.Digest != name {
			t.Errorf("entry %+v", e)
		}
	}
	var s control.ReproductionStatement
	if err := json.Unmarshal(d.body(name)[len("signed "):], &s); err != nil {
		t.Fatal(err)
	}
	p := s.Predicate
	if len(s.Subject) != 4 || p.Result != state.Same || p.Who != alice.Who() || p.By != "example.com/ledger" || len(p.Claimed) != 1 || len(p.Checked) == 0 {
		t.Errorf("statement %+v", s)
	}
	d.audit()
	d.crash()
	d.audit()
}

func TestADifferenceIsAttestedAsOne(t *testing.T) {
	d, release, r := attesting(t)
	r.Parts[0].Made, r.Differences = digest.Of([]byte("other")), []string{"one byte"}
	index, _, err := d.Attest(t.Context(), alice, release, r)
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range d.Entries(t.Context(), index, index+1) {
		if err != nil || e.Entry.Data.(state.AttestReproduced).Result != state.Different {
			t.Errorf("%+v, %v", e, err)
		}
	}
}

func TestAttestationOfWhatIsNotRecordedIsRefused(t *testing.T) {
	d, release, good := attesting(t)
	size := d.State().Size()
	for name, c := range map[string]struct {
		edit func(*control.Reproduction)
		want fault.Kind
	}{
		"another digest is recorded": {func(r *control.Reproduction) { r.Parts[1].Recorded = digest.Of([]byte("x")) }, fault.Invalid},
		"a part is left out":         {func(r *control.Reproduction) { r.Parts = r.Parts[1:] }, fault.Invalid},
		"a part is said twice":       {func(r *control.Reproduction) { r.Parts[0] = r.Parts[1] }, fault.Invalid},
		"a part that there is not":   {func(r *control.Reproduction) { r.Parts[0].Name = "image other" }, fault.Invalid},
		"made is no digest":          {func(r *control.Reproduction) { r.Parts[0].Made = "x" }, fault.Invalid},
		"no builder":                 {func(r *control.Reproduction) { r.Builder = state.Builder{} }, fault.Invalid},
		"too many differences":       {func(r *control.Reproduction) { r.Differences = make([]string, control.MaxDifferences+1) }, fault.Invalid},
	} {
		r := good
		r.Parts = append([]control.ReproducedPart{}, good.Parts...)
		c.edit(&r)
		if _, _, err := d.Attest(t.Context(), alice, release, r); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
	}
	if _, _, err := d.Attest(t.Context(), alice, digest.Of([]byte("x")), good); !errors.Is(err, fault.NotFound) {
		t.Errorf("an unknown release: %v", err)
	}
	if d.State().Size() != size {
		t.Error("a refused attestation left an entry")
	}
}
