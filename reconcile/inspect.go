package reconcile

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/spec"
)

const (
	confirmAfter = 200 * time.Millisecond // between the two looks that a finding needs
	contentEvery = time.Hour              // how often each root is read from the first byte to the last
	contentPause = time.Minute            // between two roots
)

// inspector compares what runs with what was released, again and again.
type inspector struct {
	r        *Reconciler
	read     map[digest.Digest]time.Time // when each root was last read
	lastRead time.Time
}

// suspect is an instance in which the first look found something.
type suspect struct {
	owner    *owner
	question runtime.Question
	findings []instance.Finding
}

// rest is how long to wait after a round that began that long ago, of which looking took a part. It is at least as long as that: with ten
// thousand instances, or on a machine where looking takes long, looking leaves half of a core, and it takes longer until all were looked at.
func rest(every, took, looked time.Duration) time.Duration {
	return max(every-took, looked)
}

// inspectAll inspects until ctx ends.
func (r *Reconciler) inspectAll(ctx context.Context) {
	n := &inspector{r: r, read: map[digest.Digest]time.Time{}}
	for ctx.Err() == nil {
		began := time.Now()
		looked := n.once(ctx)
		sleep(ctx, rest(r.config.InspectEvery, time.Since(began), looked))
	}
}

// once looks at every instance that runs and is to run, and again at those where something was found. It returns how long it looked.
func (n *inspector) once(ctx context.Context) (looked time.Duration) {
	var suspects []suspect
	began := time.Now()
	for name, e := range n.r.config.Source.Environments() {
		o := n.r.owner(ctx, name)
		view, _ := n.r.observer.view(name)
		for _, seen := range view {
			i, known := e.Instances[seen.Identity.ID]
			if seen.State != instance.Running || !known || !i.Live() {
				continue
			}
			q, err := Question(ctx, i.Identity, e.Components[i.Digest])
			if err != nil {
				n.r.log.Warn("inspecting", "instance", i.ID, "error", err)
				continue
			}
			q.Content = n.dueContent(q.Spec.Root)
			if found := n.look(ctx, q); len(found) > 0 {
				suspects = append(suspects, suspect{o, q, found})
			} else {
				o.found(i.ID, nil)
			}
		}
	}
	if looked = time.Since(began); len(suspects) == 0 {
		return looked
	}
	sleep(ctx, confirmAfter)
	began = time.Now()
	for _, s := range suspects {
		s.owner.found(s.question.Spec.Identity.ID, drift.Confirmed(s.findings, n.look(ctx, s.question)))
	}
	return looked + time.Since(began)
}

// Inspect compares an instance with its component, and returns what two looks found.
func Inspect(ctx context.Context, host runtime.Host, i instance.Identity, c release.Component) ([]instance.Finding, error) {
	q, err := Question(ctx, i, c)
	if err != nil {
		return nil, err
	}
	first, err := host.Inspect(ctx, q)
	if err != nil {
		return nil, err
	}
	found := drift.Compare(first.Want, first.Got)
	if len(found) == 0 {
		return nil, nil
	}
	sleep(ctx, confirmAfter)
	second, err := host.Inspect(ctx, q)
	if err != nil {
		return nil, err
	}
	return drift.Confirmed(found, drift.Compare(second.Want, second.Got)), nil
}

// look inspects once. An instance that ends meanwhile has no findings.
func (n *inspector) look(ctx context.Context, q runtime.Question) []instance.Finding {
	x, err := n.r.config.Host.Inspect(ctx, q)
	if err != nil {
		if !errors.Is(err, fault.NotFound) && !errors.Is(err, fault.Conflict) && ctx.Err() == nil {
			n.r.log.Warn("inspecting", "instance", q.Spec.Identity.ID, "error", err)
		}
		return nil
	}
	return drift.Compare(x.Want, x.Got)
}

// dueContent reports whether it is time to read all of a root: one at a time, each once in a while.
func (n *inspector) dueContent(root digest.Digest) bool {
	now := time.Now()
	last, known := n.read[root]
	if !known {
		n.read[root] = now // it was read when it was mounted, or is when its turn comes
		return false
	}
	if now.Sub(last) < contentEvery || now.Sub(n.lastRead) < contentPause {
		return false
	}
	n.read[root], n.lastRead = now, now
	return true
}

// found keeps how an instance differs, and has a turn begin when that is new.
func (o *owner) found(id instance.ID, findings []instance.Finding) {
	o.mu.Lock()
	defer o.mu.Unlock()
	same := slices.EqualFunc(o.differs[id], findings, func(a, b instance.Finding) bool { return a.Key() == b.Key() })
	if len(findings) == 0 {
		delete(o.differs, id)
	} else {
		o.differs[id] = findings
	}
	if !same {
		o.poke()
	}
}

// Question is what an instance of the component should be, for a host to compare with what it is.
func Question(ctx context.Context, i instance.Identity, c release.Component) (runtime.Question, error) {
	s, err := Spec(ctx, i, c, func(context.Context, spec.EnvName, release.Secret) ([]byte, error) { return nil, nil })
	q := runtime.Question{Spec: s, Listeners: gateway.Listeners(deploy.Uses(c), len(c.Egress) > 0)}
	return q, err
}
