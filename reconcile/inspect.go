package reconcile

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/spec"
)

// reopenWithin is how long a listener of the gateway's that is missing may take to come back: somebody else's table was in force.
const reopenWithin = 1500 * time.Millisecond

// inspector compares what runs with what was released, again and again.
type inspector struct {
	r      *Reconciler
	looked map[instance.ID]bool // at least once
}

// suspect is an instance in which the first look found something, or nothing any more.
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
	n := &inspector{r: r, looked: map[instance.ID]bool{}}
	for ctx.Err() == nil {
		began := time.Now()
		touched := r.touched()
		looked := n.once(ctx, func(instance.ID) bool { return true })
		n.wait(ctx, rest(r.config.InspectEvery, time.Since(began), looked), touched, looked)
	}
}

func (r *Reconciler) touched() <-chan struct{} {
	if r.config.Touched == nil {
		return nil
	}
	return r.config.Touched()
}

// touchedShare bounds what signs cost that something was touched: between the rounds that they cause, it rests that many times as long as
// a round looked.
const touchedShare = 10

// wait returns when it is time for the next round, or sooner when something was touched. What runs since the last round is looked at meanwhile.
func (n *inspector) wait(ctx context.Context, atMost time.Duration, touched <-chan struct{}, looked time.Duration) {
	due := time.NewTimer(atMost)
	defer due.Stop()
	for began := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-due.C:
			return
		case <-touched:
			sleep(ctx, min(atMost, touchedShare*looked)-time.Since(began))
			return
		case <-n.r.observer.news:
			n.once(ctx, func(id instance.ID) bool { return !n.looked[id] })
		}
	}
}

// once looks at the instances that run and are to run, those that are chosen, and again at those where something was found. It returns how
// long it looked.
func (n *inspector) once(ctx context.Context, chosen func(instance.ID) bool) (looked time.Duration) {
	var suspects []suspect
	runs := map[instance.ID]bool{}
	began := time.Now()
	for name, e := range n.r.config.Source.Environments() {
		o := n.r.owner(ctx, name)
		view, _ := n.r.observer.view(name)
		for _, seen := range view {
			i, known := e.Instances[seen.Identity.ID]
			if seen.State != instance.Running || !known || !i.Live() {
				continue
			}
			runs[i.ID] = true
			if !chosen(i.ID) {
				continue
			}
			q, err := Question(ctx, i, e.Components[i.Digest])
			if err != nil {
				n.r.log.Warn("inspecting", "instance", i.ID, "error", err)
				continue
			}
			q.Opened = o.opened(i.ID)
			switch found, ok := n.look(ctx, q); {
			case !ok:
			case len(found) > 0 || len(i.Drift) > 0:
				suspects = append(suspects, suspect{o, q, found})
			default:
				o.measured(i.ID, measurement{})
			}
		}
	}
	n.looked = runs
	looked = time.Since(began)
	for _, after := range []time.Duration{drift.ConfirmAfter, reopenWithin - drift.ConfirmAfter} {
		if len(suspects) == 0 {
			break
		}
		sleep(ctx, after)
		began = time.Now()
		suspects = n.again(ctx, suspects, after != drift.ConfirmAfter)
		looked += time.Since(began)
	}
	return looked
}

// again looks again at suspects, and keeps what was found both times. It returns those that need another look, unless it is the last.
func (n *inspector) again(ctx context.Context, suspects []suspect, last bool) (undecided []suspect) {
	for _, s := range suspects {
		again, ok := n.look(ctx, s.question)
		if !ok {
			continue
		}
		clean := len(s.findings)+len(again) == 0
		s.findings = drift.Confirmed(s.findings, again)
		if !last && slices.ContainsFunc(s.findings, missesListener) {
			undecided = append(undecided, s)
			continue
		}
		s.owner.measured(s.question.Spec.Identity.ID, measurement{s.findings, clean})
	}
	return undecided
}

// missesListener says that nothing listens where the gateway should.
func missesListener(f instance.Finding) bool { return f.Kind == string(drift.Port) && f.Found == "" }

// opened reports whether the gateway said that it has opened what listens in the instance.
func (o *owner) opened(id instance.ID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, reachable := o.networks[id]
	return reachable && o.number != 0 && o.r.gateway.inForceSince(o.number)
}

// Inspect compares an instance with its component, and returns what two looks found.
func Inspect(ctx context.Context, host runtime.Host, i deploy.Instance, c release.Component) ([]instance.Finding, error) {
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
	sleep(ctx, drift.ConfirmAfter)
	second, err := host.Inspect(ctx, q)
	if err != nil {
		return nil, err
	}
	return drift.Confirmed(found, drift.Compare(second.Want, second.Got)), nil
}

// look inspects once. It reports false when that was not possible: the instance ends meanwhile, perhaps.
func (n *inspector) look(ctx context.Context, q runtime.Question) ([]instance.Finding, bool) {
	x, err := n.r.config.Host.Inspect(ctx, q)
	if err != nil {
		if !errors.Is(err, fault.NotFound) && !errors.Is(err, fault.Conflict) && ctx.Err() == nil {
			n.r.log.Warn("inspecting", "instance", q.Spec.Identity.ID, "error", err)
		}
		return nil, false
	}
	return drift.Compare(x.Want, x.Got), true
}

// measurement is what two looks at an instance came to.
type measurement struct {
	differs []instance.Finding // that both have
	clean   bool               // neither has any
}

func (m measurement) same(other measurement) bool {
	return m.clean == other.clean && slices.EqualFunc(m.differs, other.differs, func(a, b instance.Finding) bool { return a.Key() == b.Key() })
}

// measured keeps what an instance was found to be, and has a turn begin when that is new.
func (o *owner) measured(id instance.ID, m measurement) {
	o.mu.Lock()
	defer o.mu.Unlock()
	same := m.same(o.measures[id])
	if m.same(measurement{}) {
		delete(o.measures, id)
	} else {
		o.measures[id] = m
	}
	if !same {
		o.poke()
	}
}

// Question is what an instance of the component should be, for a host to compare with what it is.
func Question(ctx context.Context, i deploy.Instance, c release.Component) (runtime.Question, error) {
	s, err := Spec(ctx, i, c, func(context.Context, spec.EnvName, release.Secret) ([]byte, error) { return nil, nil })
	q := runtime.Question{Spec: s, Listeners: gateway.Listeners(deploy.Uses(c), len(c.Egress) > 0)}
	return q, err
}
