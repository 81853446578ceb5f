package image

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// Want is what the configuration asks an image's lock entry to pin: a reference, or a suite's packages.
type Want struct {
	Ref      string
	Suite    string
	Packages []string
}

// Mutable reports whether ref can come to mean another image: it names no digest.
func Mutable(ref string) bool {
	_, d, ok := strings.Cut(ref, "@")
	if !ok {
		return true
	}
	_, err := digest.Parse(d)
	return err != nil
}

// Needed reports whether there is anything to pin in w.
func (w Want) Needed() bool {
	return w.Suite != "" || (w.Ref != "" && Mutable(w.Ref))
}

// Check says why the lock does not pin image name as w asks: fault.NotFound without an entry, fault.Conflict
// when the entry is of another request. It returns nil when it pins it, or when there is nothing to pin.
func (l Lock) Check(name string, w Want) error {
	if !w.Needed() {
		return nil
	}
	e, ok := l.Images[name]
	switch {
	case !ok:
		return fault.Errorf(fault.NotFound, "image %q is not in the lock", name)
	case e.Ref != w.Ref:
		return fault.Errorf(fault.Conflict, "the lock has image %q for %q, the configuration says %q", name, e.Ref, w.Ref)
	case e.Suite != w.Suite:
		return fault.Errorf(fault.Conflict, "the lock has image %q for suite %q, the configuration says %q", name, e.Suite, w.Suite)
	case !slices.Equal(e.Request, sortedSet(w.Packages)):
		return fault.Errorf(fault.Conflict, "the lock has image %q for the packages [%s], the configuration asks for [%s]",
			name, strings.Join(e.Request, " "), strings.Join(sortedSet(w.Packages), " "))
	}
	return nil
}

// Names returns the locked images' names, sorted.
func (l Lock) Names() []string { return slices.Sorted(maps.Keys(l.Images)) }

// Sorted returns the lock with every list in its canonical order, sharing nothing with l.
func (l Lock) Sorted() Lock {
	out := Lock{Images: make(map[string]LockedImage, len(l.Images))}
	for name, e := range l.Images {
		e.Request = sortedSet(e.Request)
		e.Packages = slices.SortedFunc(slices.Values(e.Packages), LockedPackage.compare)
		out.Images[name] = e
	}
	return out
}

// With returns the lock with one entry set; l is unchanged.
func (l Lock) With(name string, e LockedImage) Lock {
	out := l.Sorted()
	out.Images[name] = e
	return out.Sorted()
}

// Prune returns the lock without the entries of images for which keep is false.
func (l Lock) Prune(keep func(name string) bool) Lock {
	out := l.Sorted()
	maps.DeleteFunc(out.Images, func(name string, _ LockedImage) bool { return !keep(name) })
	return out
}

func (p LockedPackage) compare(q LockedPackage) int {
	return cmp.Or(cmp.Compare(p.Name, q.Name), cmp.Compare(p.Architecture, q.Architecture), cmp.Compare(p.Version, q.Version))
}

// Validate says what is wrong with an entry by itself. Its errors are of kind fault.Invalid.
func (e LockedImage) Validate() error {
	switch {
	case (e.Ref == "") == (e.Suite == ""):
		return fault.Errorf(fault.Invalid, "a locked image has either ref or suite")
	case e.Ref != "" && (len(e.Request) > 0 || len(e.Packages) > 0 || e.Date != ""):
		return fault.Errorf(fault.Invalid, "a locked reference has ref and digest alone")
	case e.Ref != "":
		_, err := digest.Parse(string(e.Digest))
		return err
	case e.Digest != "":
		return fault.Errorf(fault.Invalid, "a locked suite has no digest")
	}
	return e.validateSuite()
}

func (e LockedImage) validateSuite() error {
	if t, err := time.Parse(time.RFC3339, e.Date); err != nil || t.UTC().Format(time.RFC3339) != e.Date {
		return fault.Errorf(fault.Invalid, "date %q: want RFC 3339 in UTC, as 2026-01-02T15:04:05Z", e.Date)
	}
	for i, p := range e.Packages {
		if err := p.validate(); err != nil {
			return err
		}
		if i > 0 && e.Packages[i-1].Name == p.Name && e.Packages[i-1].Architecture == p.Architecture {
			return fault.Errorf(fault.Invalid, "package %q is locked twice", p.Name)
		}
	}
	return nil
}

func (p LockedPackage) validate() error {
	for _, s := range []string{p.Name, p.Version, p.Architecture} {
		if s == "" || strings.ContainsAny(s, " \t\r\n") {
			return fault.Errorf(fault.Invalid, "package %q: name, version and architecture are words", p.Name)
		}
	}
	if p.SizeBytes < 0 {
		return fault.Errorf(fault.Invalid, "package %q: size %d", p.Name, p.SizeBytes)
	}
	_, err := digest.Parse(string(p.SHA256))
	return err
}

func sortedSet(in []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(in)))
}
