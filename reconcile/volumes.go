package reconcile

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/spec"
)

// maxCopies is how many volumes are copied at a time: a disk is no faster with more.
const maxCopies = 2

// copying is what is being done to one volume on the host. It is guarded by the owner's mu.
type copying struct {
	copy    deploy.Copy
	deletes bool // it deletes Copy.To, and copies nothing
	cancel  context.CancelFunc
	done    int64
	total   int64
	step    *deploy.Step // that records how it ended; nil: it goes on, or is to be tried again
	again   retryAt
	idle    bool // it ended, and is to be tried again
}

// Copies returns how far the copies of an environment's volumes are, in order of volume.
func (r *Reconciler) Copies(name spec.EnvName) []deploy.Progress {
	r.mu.Lock()
	o := r.owners[name]
	r.mu.Unlock()
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []deploy.Progress
	for _, c := range o.copies {
		if !c.deletes && c.step == nil {
			out = append(out, deploy.Progress{Copy: c.copy, Done: c.done, Total: c.total})
		}
	}
	slices.SortFunc(out, func(a, b deploy.Progress) int {
		return cmp.Or(cmp.Compare(a.Copy.Component, b.Copy.Component), cmp.Compare(a.Copy.Volume, b.Copy.Volume))
	})
	return out
}

// concluded returns the steps that record copies and deletions which have ended, and forgets those that nobody asks about any more.
func (o *owner) concluded(e deploy.Environment) []deploy.Step {
	o.mu.Lock()
	defer o.mu.Unlock()
	var steps []deploy.Step
	for id, c := range o.copies {
		switch {
		case c.step == nil:
		case c.asked(e.Data[id]):
			steps = append(steps, *c.step)
		default:
			delete(o.copies, id)
		}
	}
	slices.SortFunc(steps, func(a, b deploy.Step) int {
		return cmp.Or(cmp.Compare(a.Copy.Component, b.Copy.Component), cmp.Compare(a.Copy.Volume, b.Copy.Volume))
	})
	return steps
}

// asked reports whether the ledger has the copy, or the deletion, as something to be done.
func (c *copying) asked(v deploy.Volume) bool {
	if c.deletes {
		return slices.Contains(v.Doomed, c.copy.To)
	}
	return v.Copy != nil && v.Copy.Is(c.copy)
}

// tend begins the copies and the deletions that are left to do, and ends those that nobody has a use for.
func (o *owner) tend(ctx context.Context, acts *sync.WaitGroup, e deploy.Environment, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, c := range o.copies {
		switch {
		case c.step != nil || c.asked(e.Data[id]):
		case c.idle:
			delete(o.copies, id)
		default:
			c.cancel()
		}
	}
	for _, c := range deploy.Copies(e) {
		o.handle(ctx, acts, &copying{copy: c}, now)
	}
	for _, c := range deploy.Doomed(e) {
		o.handle(ctx, acts, &copying{copy: c, deletes: true}, now)
	}
}

// handle begins to copy or to delete, unless something is being done to the volume already. It is called with mu held.
func (o *owner) handle(ctx context.Context, acts *sync.WaitGroup, c *copying, now time.Time) {
	id := deploy.IDOf(c.copy.Component, c.copy.Volume)
	if last := o.copies[id]; last != nil {
		if !last.idle || now.Before(last.again.at) {
			return
		}
		c.again = last.again
	}
	ctx, c.cancel = context.WithCancel(ctx)
	o.copies[id] = c
	acts.Go(func() {
		defer c.cancel()
		step := o.copyOrDelete(ctx, c)
		o.mu.Lock()
		defer o.mu.Unlock()
		if step == nil {
			c.idle = true
			c.again.at = time.Now().Add(c.again.next())
			if ctx.Err() != nil {
				delete(o.copies, id)
			}
		}
		c.step = step
		o.poke()
	})
}

// copyOrDelete returns the step that records how it ended, nil when it is to be done again.
func (o *owner) copyOrDelete(ctx context.Context, c *copying) *deploy.Step {
	select {
	case o.r.copySlots <- struct{}{}:
		defer func() { <-o.r.copySlots }()
	case <-ctx.Done():
		return nil
	}
	to := o.place(c.copy, c.copy.To)
	if c.deletes {
		if err := o.r.config.Host.DeleteVolume(ctx, to); err != nil {
			o.r.log.Warn("deleting a volume's data", "place", to.String(), "error", err)
			return nil
		}
		return &deploy.Step{Kind: deploy.Deleted, Copy: &c.copy}
	}
	content, err := o.r.config.Host.CopyVolume(ctx, runtime.VolumeCopy{From: o.place(c.copy, *c.copy.From), To: to, Live: c.copy.Live}, func(done, total int64) {
		o.mu.Lock()
		defer o.mu.Unlock()
		c.done, c.total = done, total
	})
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	if err != nil {
		o.r.log.Warn("copying a volume", "to", to.String(), "error", err)
	}
	step := deploy.CopyEnded(c.copy, deploy.Content(content), err)
	return &step
}

// place is where the host has a place of the copy's volume.
func (o *owner) place(c deploy.Copy, p deploy.Place) runtime.Place {
	return runtime.Place{Env: string(cmp.Or(p.Env, o.name)), Component: string(c.Component), Name: string(c.Volume), Version: p.Version, Snapshot: p.Snapshot}
}
