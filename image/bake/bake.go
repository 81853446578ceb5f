// Package bake makes images: it locks what is mutable about them, builds or fetches them into a content
// store as OCI images (image-spec 1.1), and builds the root file systems that instances run on.
//
// The same configuration, sources and lock give the same digests on any machine. So that this can be:
// layers are uncompressed tars whose entries are sorted, owned by numbers, and have the time zero (or the
// lock's date, for Debian packages); configurations carry no time and no history. What is in an image and how it came to be
// is attached to it as referrers (package sbom).
//
//	ref      an image from a registry, layout or archive, pinned by digest
//	go       a main package, built static without cgo and without paths, over certificates and a non-root user
//	layers   files of the app's directory over another image
//	debian   packages of a Debian suite, pinned by version and hash, unpacked and configured (package bake/debian)
package bake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	goruntime "runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/image/root"
	"github.com/invarhq/invar/image/sbom"
	"github.com/invarhq/invar/spec"
)

// Request says what to bake.
type Request struct {
	Dir      string           // the app's directory: sources, and what relative references start from
	Images   []spec.Image     // of the app; a base may stand after what is built on it
	Lock     image.Lock       // as read; the zero value pins nothing
	Update   []spec.ImageName // images whose lock entry is made anew
	Frozen   bool             // refuse what the lock does not pin instead of locking it
	LockOnly bool             // resolve references, bake nothing
	Platform image.Platform   // zero: linux on this machine's architecture
	Store    *registry.Store  // of blobs; Debian packages are kept beside it
	Roots    string           // directory of the EROFS files
	GoCache  string           // what the go command compiled before; "": the user's own
	Progress func(Event)      // may be nil; called from several goroutines, one at a time
}

// Result is what baking made.
type Result struct {
	Images map[spec.ImageName]image.Resolved // empty with LockOnly
	Lock   image.Lock                        // with an entry for every image that has something to pin, and no other
}

// Step is what is being done to an image.
type Step string

// The steps, in the order in which an image goes through those that it needs.
const (
	Waiting  Step = "waiting"  // for its base
	Locking  Step = "locking"  // resolving references to digests
	Fetching Step = "fetching" // Detail names what; Done and Total count bytes, where known
	Building Step = "building"
	Packing  Step = "packing" // merging layers into the root
	Finished Step = "done"
	Failed   Step = "failed" // Err says why
)

// Event is progress of one image.
type Event struct {
	Image       spec.ImageName
	Step        Step
	Detail      string // for people: a package, a layer, a file
	Done, Total int64  // of what Detail names; Total is 0 when not known
	Cached      bool   // with Finished: nothing had to be made
	Err         error  // with Failed
}

// Bake locks and bakes all images, several at a time. It returns every problem, joined; each names its image.
// Their kinds are fault.Invalid (the configuration or sources are wrong, or Frozen and not locked), fault.NotFound,
// fault.Unavailable (a registry or the machine's package sources can't be reached), and fault.Corrupt.
func Bake(ctx context.Context, req Request) (Result, error) {
	if req.Platform == (image.Platform{}) {
		req.Platform = image.Platform{OS: "linux", Architecture: goruntime.GOARCH}
	}
	if err := checkBases(req.Images); err != nil {
		return Result{}, err
	}
	lock, err := lockAll(ctx, req)
	if err != nil {
		return Result{}, err
	}
	result := Result{Images: map[spec.ImageName]image.Resolved{}, Lock: lock}
	if req.LockOnly {
		return result, nil
	}
	result.Images, err = bakeAll(ctx, req, lock)
	return result, err
}

// checkBases refuses a base that does not exist and a cycle of bases.
func checkBases(images []spec.Image) error {
	byName := map[spec.ImageName]spec.Image{}
	for _, img := range images {
		byName[img.Name] = img
	}
	var problems []error
	for _, img := range images {
		problems = append(problems, checkBase(byName, img))
	}
	return errors.Join(problems...)
}

func checkBase(byName map[spec.ImageName]spec.Image, img spec.Image) error {
	seen := map[spec.ImageName]bool{img.Name: true}
	for at := img; at.Layers != nil && at.Layers.Base != ""; {
		next, ok := byName[at.Layers.Base]
		if !ok {
			return fault.Errorf(fault.Invalid, "image %q: its base %q does not exist", at.Name, at.Layers.Base)
		}
		if seen[next.Name] {
			return fault.Errorf(fault.Invalid, "image %q is its own base, by way of %q", img.Name, at.Name)
		}
		seen[next.Name] = true
		at = next
	}
	return nil
}

// reporter serialises progress.
type reporter struct {
	mu sync.Mutex
	to func(Event)
}

func (r *reporter) report(e Event) {
	if r.to == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to(e)
}

// pending is an image that is being baked; what is built on it waits for done.
type pending struct {
	done  chan struct{}
	build sbom.Build
	ok    bool
}

// bakeAll bakes every image once its base is there. Few work at a time: baking waits for disks and networks, too.
func bakeAll(ctx context.Context, req Request, lock image.Lock) (map[spec.ImageName]image.Resolved, error) {
	b := &baker{req: req, lock: lock, progress: &reporter{to: req.Progress}, slots: make(chan struct{}, max(4, goruntime.NumCPU()))}
	all := map[spec.ImageName]*pending{}
	for _, img := range req.Images {
		all[img.Name] = &pending{done: make(chan struct{})}
	}
	errs := make([]error, len(req.Images))
	var wg sync.WaitGroup
	for i, img := range req.Images {
		wg.Go(func() {
			p := all[img.Name]
			defer close(p.done)
			p.build, errs[i] = b.one(ctx, img, all)
			p.ok = errs[i] == nil
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	out := map[spec.ImageName]image.Resolved{}
	for name, p := range all {
		out[name] = p.build.Resolved
	}
	return out, nil
}

// baker holds what does not change while images are baked.
type baker struct {
	req      Request
	lock     image.Lock
	progress *reporter
	slots    chan struct{}
}

// errBase marks an image that was not baked because its base was not.
var errBase = errors.New("its base could not be baked")

func (b *baker) one(ctx context.Context, img spec.Image, all map[spec.ImageName]*pending) (sbom.Build, error) {
	made, cached, err := b.bake(ctx, img, all)
	if err != nil {
		b.progress.report(Event{Image: img.Name, Step: Failed, Err: err})
		return sbom.Build{}, fmt.Errorf("image %q: %w", img.Name, err)
	}
	b.progress.report(Event{Image: img.Name, Step: Finished, Cached: cached})
	return made, nil
}

func (b *baker) bake(ctx context.Context, img spec.Image, all map[spec.ImageName]*pending) (sbom.Build, bool, error) {
	base, err := b.await(ctx, img, all)
	if err != nil {
		return sbom.Build{}, false, err
	}
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
	case <-ctx.Done():
		return sbom.Build{}, false, ctx.Err()
	}
	made := sbom.Build{Image: img, Locked: b.lock.Images[string(img.Name)], Base: base}
	manifest, err := b.make(ctx, img, base)
	if err != nil {
		return sbom.Build{}, false, err
	}
	b.progress.report(Event{Image: img.Name, Step: Packing})
	var built bool
	if made.Resolved, built, err = root.Build(ctx, b.req.Store, b.req.Roots, manifest); err != nil {
		return sbom.Build{}, false, err
	}
	return made, !built, sbom.Maker{Store: b.req.Store, Roots: b.req.Roots}.Attach(ctx, made)
}

// await waits for the image's base and returns how it was made, or nil without a base.
func (b *baker) await(ctx context.Context, img spec.Image, all map[spec.ImageName]*pending) (*sbom.Build, error) {
	if img.Layers == nil || img.Layers.Base == "" {
		return nil, nil
	}
	b.progress.report(Event{Image: img.Name, Step: Waiting, Detail: string(img.Layers.Base)})
	p := all[img.Layers.Base]
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if !p.ok {
		return nil, fault.As(fault.Invalid, errBase)
	}
	return &p.build, nil
}

// make returns the manifest of the image in the store.
func (b *baker) make(ctx context.Context, img spec.Image, base *sbom.Build) (digest.Digest, error) {
	report := func(e Event) {
		e.Image = img.Name
		b.progress.report(e)
	}
	switch {
	case img.Ref != "":
		return b.fetch(ctx, img, report)
	case img.Go != nil:
		return b.buildGo(ctx, img, report)
	case img.Layers != nil:
		return b.layer(ctx, *img.Layers, base, report)
	case img.Debian != nil:
		return b.buildDebian(ctx, img, report)
	}
	return "", fault.Errorf(fault.Invalid, "it has none of ref, go, layers and debian")
}

// lockAll returns the lock with an entry for every image that has something to pin.
func lockAll(ctx context.Context, req Request) (image.Lock, error) {
	var mu sync.Mutex
	var problems []error
	entries := map[string]image.LockedImage{}
	progress := &reporter{to: req.Progress}
	var g errgroup.Group
	g.SetLimit(max(2, goruntime.NumCPU()))
	for _, img := range req.Images {
		w := want(img)
		if !w.Needed() {
			continue
		}
		g.Go(func() error {
			e, err := lockOne(ctx, req, img, w, progress)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				problems = append(problems, fmt.Errorf("image %q: %w", img.Name, err))
				return nil
			}
			entries[string(img.Name)] = e
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return image.Lock{}, err
	}
	slices.SortFunc(problems, func(a, b error) int { return compare(a.Error(), b.Error()) })
	if err := errors.Join(problems...); err != nil {
		return image.Lock{}, err
	}
	return image.Lock{Images: maps.Clone(entries)}.Sorted(), nil
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// want is what the image's lock entry must pin.
func want(img spec.Image) image.Want {
	if img.Debian != nil {
		return image.Want{Suite: img.Debian.Suite, Packages: img.Debian.Packages}
	}
	return image.Want{Ref: img.Ref}
}

// lockOne keeps an entry that pins what is asked, and makes a new one otherwise.
func lockOne(ctx context.Context, req Request, img spec.Image, w image.Want, progress *reporter) (image.LockedImage, error) {
	update := slices.Contains(req.Update, img.Name)
	err := req.Lock.Check(string(img.Name), w)
	if err == nil && !update {
		return req.Lock.Images[string(img.Name)], nil
	}
	if req.Frozen {
		return image.LockedImage{}, fault.WithHint(fault.Errorf(fault.Invalid, "it is not pinned: %w", err),
			"run invar lock, and commit invar.lock.hcl")
	}
	report := func(e Event) {
		e.Image = img.Name
		progress.report(e)
	}
	report(Event{Step: Locking})
	if img.Debian != nil {
		return lockDebian(ctx, req, *img.Debian, report)
	}
	return lockRef(ctx, req, img.Ref, report)
}
