package image_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
)

var d = digest.Of(nil)

func pkg(name, arch string) image.LockedPackage {
	return image.LockedPackage{Name: name, Version: "1", Architecture: arch, SHA256: d}
}

func lock() image.Lock {
	return image.Lock{Images: map[string]image.LockedImage{
		"web": {Ref: "r/web:1", Digest: d},
		"db":  {Suite: "bookworm", Date: "2026-01-02T03:04:05Z", Request: []string{"b", "a"}, Packages: []image.LockedPackage{pkg("b", "amd64"), pkg("a", "arm64"), pkg("a", "amd64")}},
	}}
}

func TestCheckTellsMissingFromStale(t *testing.T) {
	l := lock().Sorted()
	for _, c := range []struct {
		name string
		want image.Want
		kind fault.Kind
	}{
		{"web", image.Want{Ref: "r/web:1"}, ""},
		{"web", image.Want{Ref: "r/web:2"}, fault.Conflict},
		{"web", image.Want{Suite: "bookworm"}, fault.Conflict},
		{"new", image.Want{Ref: "r/new"}, fault.NotFound},
		{"new", image.Want{Ref: "r/new@" + string(d)}, ""},
		{"new", image.Want{Ref: "r/new@sha256:123"}, fault.NotFound},
		{"new", image.Want{Ref: "oci:dir"}, fault.NotFound},
		{"new", image.Want{}, ""},
		{"db", image.Want{Suite: "bookworm", Packages: []string{"a", "b", "a"}}, ""},
		{"db", image.Want{Suite: "trixie", Packages: []string{"a", "b"}}, fault.Conflict},
		{"db", image.Want{Suite: "bookworm", Packages: []string{"a"}}, fault.Conflict},
	} {
		if got := fault.KindOf(l.Check(c.name, c.want)); got != c.kind {
			t.Errorf("%s %+v: got %q, want %q", c.name, c.want, got, c.kind)
		}
	}
}

func TestLocksAreValues(t *testing.T) {
	l, before := lock(), lock()
	l.With("x", image.LockedImage{Ref: "r/x", Digest: d})
	l.Prune(func(string) bool { return false })
	if diff := cmp.Diff(before, l); diff != "" {
		t.Errorf("changed (-want +got):\n%s", diff)
	}
	sorted := l.Sorted().Images["db"]
	if diff := cmp.Diff([]string{"a", "b"}, sorted.Request); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]image.LockedPackage{pkg("a", "amd64"), pkg("a", "arm64"), pkg("b", "amd64")}, sorted.Packages); diff != "" {
		t.Errorf("packages (-want +got):\n%s", diff)
	}
	if got := l.With("x", image.LockedImage{Ref: "r/x", Digest: d}).Names(); !cmp.Equal(got, []string{"db", "web", "x"}) {
		t.Errorf("names %v", got)
	}
	if got := l.Prune(func(n string) bool { return n == "db" }).Names(); !cmp.Equal(got, []string{"db"}) {
		t.Errorf("names %v", got)
	}
}

func TestValidateRefusesHalfEntries(t *testing.T) {
	good := lock().Sorted().Images["db"]
	twice, worded, dated := good, good, good
	twice.Packages = []image.LockedPackage{pkg("a", "amd64"), pkg("a", "amd64")}
	worded.Packages = []image.LockedPackage{pkg("a b", "amd64")}
	dated.Date = "2026-01-02T03:04:05+01:00"
	for name, e := range map[string]image.LockedImage{
		"empty": {}, "both": {Ref: "r", Suite: "s"}, "no digest": {Ref: "r"}, "ref with packages": {Ref: "r", Digest: d, Request: []string{"a"}},
		"no date": {Suite: "s"}, "suite with digest": {Suite: "s", Digest: d, Date: good.Date}, "package twice": twice, "two words": worded, "not UTC": dated,
	} {
		if err := e.Validate(); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v, want fault.Invalid", name, err)
		}
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}
