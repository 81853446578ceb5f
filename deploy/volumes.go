package deploy

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// VolumeID names a volume of an environment: COMPONENT/NAME.
type VolumeID string

// IDOf returns the name of a component's volume.
func IDOf(c spec.ComponentName, v spec.VolumeName) VolumeID {
	return VolumeID(string(c) + "/" + string(v))
}

// Volume is what the ledger says of a volume that an instance had, or that was made from a copy.
type Volume struct {
	Component spec.ComponentName `json:"component"`
	Name      spec.VolumeName    `json:"name"`
	Current   int                `json:"current,omitempty"`    // version that instances get; 0: none did yet
	Writer    digest.Digest      `json:"writer,omitempty"`     // component digest of the last instance that got Current; "": none has
	WriterBy  int                `json:"writer_by,omitempty"`  // generation from which on only that digest has got it
	Fresh     int                `json:"fresh,omitempty"`      // snapshot that has what Current has: no instance got that since; 0: none
	Spans     []Span             `json:"spans,omitempty"`      // which version was the current one, oldest first
	Versions  []Kept             `json:"versions,omitempty"`   // that exist, by number
	Snapshots []Kept             `json:"snapshots,omitempty"`  // that exist or are being made, by number
	Made      Place              `json:"made"`                 // the highest numbers so far: none is given twice
	Copy      *Copy              `json:"copy,omitempty"`       // under way
	CopyFor   int                `json:"copy_for,omitempty"`   // the generation whose rollout began it
	Failed    string             `json:"failed,omitempty"`     // why the last copy failed
	FailedFor int                `json:"failed_for,omitempty"` // as CopyFor, of that
	Doomed    []Place            `json:"doomed,omitempty"`     // that are to be deleted from the host
}

// Span says from which generation on a version was the current one.
type Span struct {
	Since   int `json:"since"`
	Version int `json:"version"`
}

// Kept is a version or a snapshot of a volume.
type Kept struct {
	Number     int       `json:"number"`
	Of         int       `json:"of,omitempty"`         // of a snapshot: the version that it has the data of
	From       *Place    `json:"from,omitempty"`       // of a version: what it was made from; nil: it began empty
	Generation int       `json:"generation,omitempty"` // the last one that left the data as they are here; 0: in use, or never used
	At         time.Time `json:"at,omitzero"`          // since when they are so; of the current version, since when it is that
	Content    *Content  `json:"content,omitempty"`    // as copied; nil: it began empty, or is being made
}

// Place is where a volume's data lie: in a version or in a snapshot of it.
type Place struct {
	Env      spec.EnvName `json:"env,omitempty"` // "": the environment at hand
	Version  int          `json:"version,omitempty"`
	Snapshot int          `json:"snapshot,omitempty"`
}

// String names the place as people do.
func (p Place) String() string {
	name := fmt.Sprint("version ", p.Version)
	if p.Snapshot > 0 {
		name = fmt.Sprint("snapshot ", p.Snapshot)
	}
	if p.Env != "" {
		name += " of environment " + string(p.Env)
	}
	return name
}

// Copy is the data of one place, brought to another that is new.
type Copy struct {
	Component  spec.ComponentName `json:"component"`
	Volume     spec.VolumeName    `json:"volume"`
	From       *Place             `json:"from,omitempty"`
	To         Place              `json:"to"`
	Live       bool               `json:"live,omitempty"`       // From may be written to meanwhile
	Generation int                `json:"generation,omitempty"` // of a snapshot: the one that is left
	Content    *Content           `json:"content,omitempty"`    // of one that is complete
}

// Progress says how far a copy is.
type Progress struct {
	Copy  Copy
	Done  int64 // bytes
	Total int64 // 0: not known yet
}

// Content is what a copy has.
type Content struct {
	Bytes   int64         `json:"bytes"` // of files, as their sizes say
	Files   int           `json:"files"` // and directories, links, FIFOs
	Digest  digest.Digest `json:"digest"`
	Changed int           `json:"changed,omitempty"` // of a live one: how many still changed when it ended
}

// Restore asks a head to give a volume the data of another place, as a new version.
type Restore struct {
	Component spec.ComponentName `json:"component"`
	Volume    spec.VolumeName    `json:"volume"`
	From      Place              `json:"from"`
	Live      bool               `json:"live,omitempty"` // From may be in use
}

// Restoring is a Restore that a head's rollout carries out, or takes back.
type Restoring struct {
	Restore
	Version  int  `json:"version,omitempty"` // that it makes, or goes back to; 0: not begun
	Before   int  `json:"before,omitempty"`  // the current one before it was switched; 0: there was none
	Copied   bool `json:"copied,omitempty"`  // that version is complete
	Switched bool `json:"switched,omitempty"`
	Back     bool `json:"back,omitempty"` // it takes back what a failed head did
}

func (r Restoring) id() VolumeID { return IDOf(r.Component, r.Volume) }

// id names the copy's volume.
func (c Copy) id() VolumeID { return IDOf(c.Component, c.Volume) }

// Is reports whether both are the same copy, whatever became of it.
func (c Copy) Is(d Copy) bool { return c.id() == d.id() && c.To == d.To }

func find(list []Kept, number int) int {
	return slices.IndexFunc(list, func(k Kept) bool { return k.Number == number })
}

// kept returns the list that the place is in, and its number there.
func (v *Volume) kept(p Place) (*[]Kept, int) {
	if p.Snapshot > 0 {
		return &v.Snapshots, p.Snapshot
	}
	return &v.Versions, p.Version
}

// set changes what is known of a place.
func (v *Volume) set(p Place, change func(*Kept)) {
	list, number := v.kept(p)
	*list = slices.Clone(*list)
	if n := find(*list, number); n >= 0 {
		change(&(*list)[n])
	}
}

// drop forgets a place, which is to be deleted from the host.
func (v *Volume) drop(p Place) {
	list, number := v.kept(p)
	*list = slices.DeleteFunc(slices.Clone(*list), func(k Kept) bool { return k.Number == number })
	v.Doomed = append(slices.Clip(v.Doomed), p)
}

// Has returns the complete version or snapshot at the place; false: there is none.
func (v Volume) Has(p Place) (Kept, bool) {
	list, number := v.kept(p)
	n := find(*list, number)
	if n < 0 || p.Snapshot > 0 && (*list)[n].Content == nil {
		return Kept{}, false
	}
	return (*list)[n], v.Copy == nil || v.Copy.To != p
}

// AsLeft returns where the data are as the generation left them: in what was kept, earliest, when it or one after it was left. What was
// written to another version than the one that the generation had is never meant. false: nothing was kept.
func (v Volume) AsLeft(generation int) (Place, Kept, bool) {
	version := 0
	for _, s := range v.Spans {
		if s.Since <= generation {
			version = s.Version
		}
	}
	var at Place
	var best Kept
	consider := func(p Place, k Kept) {
		if k.Generation >= generation && (best.Number == 0 || k.Generation < best.Generation) {
			at, best = p, k
		}
	}
	for _, s := range v.Snapshots {
		if s.Of == version && s.Content != nil {
			consider(Place{Snapshot: s.Number}, s)
		}
	}
	if n := find(v.Versions, version); n >= 0 && version != v.Current {
		consider(Place{Version: version}, v.Versions[n])
	}
	return at, best, best.Number > 0
}

// Untouched reports whether only this version of the component got the volume since that generation, and never other data.
func (v Volume) Untouched(since int, writer digest.Digest) bool {
	return v.Writer == writer && v.WriterBy <= since && len(v.Spans) > 0 && v.Spans[len(v.Spans)-1].Since <= since
}

// Newest returns the snapshot that was completed last; false: there is none.
func (v Volume) Newest() (Kept, bool) {
	for _, s := range slices.Backward(v.Snapshots) {
		if s.Content != nil {
			return s, true
		}
	}
	return Kept{}, false
}

// Doom returns the environment in which a version or a snapshot of a volume is to be deleted. fault.Conflict for what is in use.
func (e Environment) Doom(id VolumeID, p Place) (Environment, error) {
	v, ok := e.Data[id]
	_, has := v.Has(p)
	switch {
	case !ok || !has:
		return e, fault.Errorf(fault.NotFound, "volume %s of environment %s has no %s", id, e.Name, p)
	case p.Snapshot == 0 && p.Version == v.Current:
		return e, fault.Errorf(fault.Conflict, "version %d of volume %s is the one that instances of environment %s get", p.Version, id, e.Name)
	case e.ReadsFrom(id, p):
		return e, fault.Errorf(fault.Conflict, "%s of volume %s is being copied from", p, id)
	}
	e = e.clone()
	if v.Fresh == p.Snapshot {
		v.Fresh = 0
	}
	v.drop(p)
	e.Data[id] = v
	e.Seq++
	return e, nil
}

// ReadsFrom reports whether the head restores from the place, or may have to go back to it.
func (e Environment) ReadsFrom(id VolumeID, p Place) bool {
	return e.Head.Outcome == Rolling && slices.ContainsFunc(e.Head.Restores, func(r Restoring) bool {
		return r.id() == id && (r.From == p || p.Env == "" && p.Snapshot == 0 && (r.Version == p.Version || r.Before == p.Version))
	})
}

// Forget returns the environment without any volume: they are deleted.
func (e Environment) Forget() Environment {
	e = e.clone()
	e.Data = nil
	e.Seq++
	return e
}

// Copying reports whether a volume is being copied, or one is to be deleted.
func (e Environment) Copying() bool {
	for _, v := range e.Data {
		if v.Copy != nil || len(v.Doomed) > 0 {
			return true
		}
	}
	return false
}

// Copies returns the copies that are under way, by volume.
func Copies(e Environment) []Copy {
	var out []Copy
	for _, id := range slices.Sorted(maps.Keys(e.Data)) {
		if c := e.Data[id].Copy; c != nil {
			out = append(out, *c)
		}
	}
	return out
}

// Doomed returns what is to be deleted from the host, by volume. What is being copied is left alone until that has ended.
func Doomed(e Environment) []Copy {
	var out []Copy
	for _, id := range slices.Sorted(maps.Keys(e.Data)) {
		v := e.Data[id]
		for _, p := range v.Doomed {
			out = append(out, Copy{Component: v.Component, Volume: v.Name, To: p})
		}
	}
	return out
}

// CopyEnded returns the step that records how a copy ended: with this content, or with an error.
func CopyEnded(c Copy, content Content, err error) Step {
	if err != nil {
		return Step{Kind: CopyFailed, Copy: &c, Cause: err.Error()}
	}
	c.Content = &content
	return Step{Kind: Copied, Copy: &c}
}

// give notes that an instance gets its component's volumes.
func (e *Environment) give(i *Instance, c release.Component, at time.Time) error {
	for _, vol := range c.Volumes {
		id := IDOf(c.Name, vol.Name)
		if v := e.Data[id]; v.Copy != nil && v.Copy.To.Snapshot > 0 {
			return fault.Errorf(fault.Conflict, "volume %s is being copied", vol.Name)
		}
	}
	for _, vol := range c.Volumes {
		id := IDOf(c.Name, vol.Name)
		v := e.Data[id]
		if v.Current == 0 {
			v.Component, v.Name = c.Name, vol.Name
			v.Made.Version = max(v.Made.Version, 1)
			v.use(Kept{Number: 1}, e.Head.Number, at)
		}
		if v.Writer != i.Digest {
			v.Writer, v.WriterBy = i.Digest, e.Head.Number
		}
		v.Fresh = 0
		e.Data[id] = v
		if v.Current > 1 {
			if i.Volumes == nil {
				i.Volumes = map[spec.VolumeName]int{}
			}
			i.Volumes[vol.Name] = v.Current
		}
	}
	return nil
}

// use makes a version the current one.
func (v *Volume) use(k Kept, generation int, at time.Time) {
	if find(v.Versions, k.Number) < 0 {
		v.Versions = append(slices.Clip(v.Versions), k)
	}
	old := v.Current
	v.Current = k.Number
	v.set(Place{Version: old}, func(k *Kept) { k.Generation, k.At = generation-1, at })
	v.set(Place{Version: v.Current}, func(k *Kept) { k.Generation, k.At = 0, at })
	v.Spans = append(slices.Clip(v.Spans), Span{generation, v.Current})
	v.Writer, v.WriterBy, v.Fresh = "", 0, 0
}

// occupied reports whether an instance of the component is not gone yet.
func (e *Environment) occupied(c spec.ComponentName) bool {
	for _, i := range e.Instances {
		if i.Component == c {
			return true
		}
	}
	return false
}

// copies folds the begin and the end of a copy, and what follows from it.
func (e *Environment) copies(s Step, at time.Time) error {
	if s.Copy == nil || s.Copy.Component == "" || s.Copy.Volume == "" || (s.Copy.To.Version > 0) == (s.Copy.To.Snapshot > 0) || s.Copy.To.Env != "" {
		return fault.Errorf(fault.Invalid, "names no volume, or not one place in it")
	}
	c := *s.Copy
	v := e.Data[c.id()]
	v.Component, v.Name = c.Component, c.Volume
	var err error
	switch s.Kind {
	case Copying:
		err = e.beginCopy(&v, c)
	case Switch:
		err = e.switchTo(&v, c, at)
	case Deleted:
		n := slices.Index(v.Doomed, c.To)
		if n < 0 {
			return fault.Errorf(fault.Conflict, "%s was not to be deleted", c.To)
		}
		v.Doomed = slices.Delete(slices.Clone(v.Doomed), n, n+1)
	default:
		err = e.endCopy(&v, s, at)
	}
	if err != nil {
		return err
	}
	e.Data[c.id()] = v
	return nil
}

func (e *Environment) beginCopy(v *Volume, c Copy) error {
	switch {
	case c.From == nil || c.Content != nil:
		return fault.Errorf(fault.Invalid, "says not from where, or what it will have")
	case v.Copy != nil:
		return fault.Errorf(fault.Conflict, "%s is being made", v.Copy.To)
	case c.To.Snapshot > 0 && (c.To.Snapshot != v.Made.Snapshot+1 || *c.From != Place{Version: v.Current} || c.Live || e.occupied(c.Component)):
		return fault.Errorf(fault.Conflict, "%s can't be taken of %s now", c.To, *c.From)
	case c.To.Snapshot > 0:
		v.Snapshots = append(slices.Clip(v.Snapshots), Kept{Number: c.To.Snapshot, Of: v.Current, Generation: c.Generation})
		v.Made.Snapshot, v.Fresh = c.To.Snapshot, c.To.Snapshot
	default:
		n := slices.IndexFunc(e.Head.Restores, func(r Restoring) bool {
			return r.id() == c.id() && r.Version == 0 && r.From == *c.From && r.Live == c.Live
		})
		if n < 0 || c.To.Version != v.Made.Version+1 {
			return fault.Errorf(fault.Conflict, "nobody asked for %s from %s", c.To, *c.From)
		}
		e.restoring(n, func(r *Restoring) { r.Version = c.To.Version })
		v.Versions = append(slices.Clip(v.Versions), Kept{Number: c.To.Version, From: c.From})
		v.Made.Version = c.To.Version
	}
	v.Copy, v.CopyFor = &c, e.Head.Number
	return nil
}

// restoring changes what is known of a restore of the head.
func (e *Environment) restoring(n int, change func(*Restoring)) {
	e.Head.Restores = slices.Clone(e.Head.Restores)
	change(&e.Head.Restores[n])
}

func (e *Environment) endCopy(v *Volume, s Step, at time.Time) error {
	c := *s.Copy
	switch {
	case v.Copy == nil || !v.Copy.Is(c):
		return fault.Errorf(fault.Conflict, "%s is not being made", c.To)
	case (s.Kind == Copied) == (c.Content == nil):
		return fault.Errorf(fault.Invalid, "says not how it ended")
	}
	v.Copy = nil
	e.ProgressAt = at
	if s.Kind == CopyFailed {
		v.Failed, v.FailedFor = s.Cause, v.CopyFor
		if v.Fresh == c.To.Snapshot {
			v.Fresh = 0
		}
		v.drop(c.To)
		return nil
	}
	v.set(c.To, func(k *Kept) { k.Content, k.At = c.Content, at })
	for n, r := range e.Head.Restores {
		if r.id() == c.id() && r.Version == c.To.Version && c.To.Version > 0 {
			e.restoring(n, func(r *Restoring) { r.Copied = true })
		}
	}
	return nil
}

// switchTo makes another version the current one.
func (e *Environment) switchTo(v *Volume, c Copy, at time.Time) error {
	n := slices.IndexFunc(e.Head.Restores, func(r Restoring) bool {
		return r.id() == c.id() && r.Version == c.To.Version && r.Copied && !r.Switched
	})
	if n < 0 || e.Head.Outcome != Rolling || e.occupied(c.Component) {
		return fault.Errorf(fault.Conflict, "%s can't be used now", c.To)
	}
	e.restoring(n, func(r *Restoring) { r.Switched, r.Before = true, v.Current })
	v.use(Kept{Number: c.To.Version}, e.Head.Number, at)
	e.ProgressAt = at
	return nil
}

// takeBack returns what a revert has to do so that the volumes have the data again that the head took from them.
func (g Generation) takeBack() []Restoring {
	var out []Restoring
	for _, r := range g.Restores {
		if r.Switched && r.Before > 0 && !r.Back {
			out = append(out, Restoring{Restore: r.Restore, Version: r.Before, Copied: true, Back: true})
		}
	}
	return out
}

// owed returns what the next head has to take back, since this one did not come to it.
func (g Generation) owed(next []Restoring) []Restoring {
	var out []Restoring
	for _, r := range g.Restores {
		if r.Back && !r.Switched && !slices.ContainsFunc(next, func(n Restoring) bool { return n.id() == r.id() }) {
			out = append(out, r)
		}
	}
	return out
}

// refresh notes that a further generation leaves what was copied last as it is.
func (e *Environment) refresh(next int) {
	for id, v := range e.Data {
		if v.Fresh > 0 {
			v.set(Place{Snapshot: v.Fresh}, func(k *Kept) { k.Generation = next - 1 })
			e.Data[id] = v
		}
	}
}

// unswitched returns the restores that the head has yet to bring about for the component; "" for any.
func (e *Environment) unswitched(c spec.ComponentName) []Restoring {
	if e.Head.Outcome != Rolling {
		return nil
	}
	var out []Restoring
	for _, r := range e.Head.Restores {
		if (c == "" || r.Component == c) && !r.Switched {
			out = append(out, r)
		}
	}
	return out
}

// guarded reports whether the volume is to be copied before the head's version of its component gets it. A revert waits for nothing, and
// what a restore puts aside is a copy already.
func (e *Environment) guarded(c spec.ComponentName, name spec.VolumeName) bool {
	v := e.Data[IDOf(c, name)]
	next, known := e.Head.Digests[c]
	restored := slices.ContainsFunc(e.Head.Restores, func(r Restoring) bool { return r.Component == c && r.Volume == name })
	return known && v.Writer != "" && v.Writer != next && !e.Head.Reverts && !restored && slices.Contains(placed(e.Head.Record, c).Snapshots, name)
}

// wants reports whether the head has a use for a copy.
func (e *Environment) wants(c Copy) bool {
	if e.Head.Outcome != Rolling {
		return false
	}
	if c.To.Snapshot > 0 {
		return e.guarded(c.Component, c.Volume)
	}
	return slices.ContainsFunc(e.unswitched(c.Component), func(r Restoring) bool { return r.Volume == c.Volume && r.Version == c.To.Version })
}

// spoiled says which copy that the head asked for failed, and why; "": none did.
func (e *Environment) spoiled() string {
	for _, id := range slices.Sorted(maps.Keys(e.Data)) {
		if v := e.Data[id]; v.Failed != "" && v.FailedFor == e.Head.Number {
			return fmt.Sprintf("%s: copying volume %s: %s", v.Component, v.Name, v.Failed)
		}
	}
	return ""
}

// abandon gives up copies that a head before this one asked for.
func (t *turn) abandon() {
	for _, id := range slices.Sorted(maps.Keys(t.e.Data)) {
		if c := t.e.Data[id].Copy; c != nil && !t.e.wants(*c) {
			t.emit(Step{Kind: CopyFailed, Copy: c, Cause: fmt.Sprintf("generation %d has no use for it", t.e.Head.Number)})
		}
	}
}

// protect copies the volumes that are to be copied before the version gets them; true: that is done. It is asked when no instance of
// the component is left: the one moment at which nobody writes.
func (t *turn) protect(f fleet) bool {
	done := true
	for _, name := range f.snapshots {
		v := t.e.Data[IDOf(f.name, name)]
		switch {
		case !t.e.guarded(f.name, name):
		case v.Copy != nil:
			done = false
		case v.Fresh == 0:
			done = false
			if t.e.Head.Outcome == Rolling {
				t.emit(Step{Kind: Copying, Copy: &Copy{
					Component: f.name, Volume: name, From: &Place{Version: v.Current}, To: Place{Snapshot: v.Made.Snapshot + 1}, Generation: t.e.Head.Number - 1,
				}})
			}
		}
	}
	return done
}

// furnish gives the component's volumes the data that the head asks for; true: its instances may go on. Copies are made while what runs
// still runs, since nobody writes to what they are made from; so only the switch itself needs the old instances gone.
func (t *turn) furnish(p release.Placed) bool {
	name := p.Component.Name
	todo := t.e.unswitched(name)
	if len(todo) == 0 || !t.ready(p.Component) {
		return true
	}
	copied := true
	for _, r := range todo {
		if r.Version == 0 && t.e.Data[r.id()].Copy == nil {
			t.emit(Step{Kind: Copying, Copy: &Copy{
				Component: name, Volume: r.Volume, From: &r.From, To: Place{Version: t.e.Data[r.id()].Made.Version + 1}, Live: r.Live,
			}})
		}
		copied = copied && r.Copied
	}
	if !copied {
		return share(t.e.Traffic[name], t.e.Head.Digests[name]) == 100
	}
	if !t.vacateAll(name) {
		return false
	}
	for _, r := range todo {
		t.emit(Step{Kind: Switch, Copy: &Copy{Component: name, Volume: r.Volume, To: Place{Version: r.Version}}})
	}
	return true
}

// vacateAll ends every instance of the component; true: none is left.
func (t *turn) vacateAll(c spec.ComponentName) bool {
	if len(t.e.Traffic[c]) > 0 {
		t.emit(Step{Kind: Shift, Component: c, Cause: "its volumes get other data: the old instances end before the new ones begin"})
	}
	for _, id := range t.groups[c] {
		if i, ok := t.e.Instances[id]; ok && i.Live() {
			t.retire(id, "its volumes get other data")
		}
	}
	return !t.e.occupied(c)
}
