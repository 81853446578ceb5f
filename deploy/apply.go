package deploy

import (
	"fmt"
	"slices"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
)

// Apply folds one recorded step into the environment. A step that is not legal in this state is an error of kind
// fault.Invalid or fault.Conflict, and changes nothing.
func (e Environment) Apply(s Step, at time.Time) (Environment, error) {
	return e.ApplyAll([]Step{s}, at)
}

// ApplyAll folds the steps of one turn. If one of them is not legal, none counts.
func (e Environment) ApplyAll(steps []Step, at time.Time) (Environment, error) {
	next := e.clone()
	for _, s := range steps {
		if err := next.apply(s, at); err != nil {
			return e, fmt.Errorf("environment %s: %s %s: %w", e.Name, s.Kind, s.subject(), err)
		}
	}
	return next, nil
}

// subject names what the step is about, for messages.
func (s Step) subject() string {
	switch {
	case s.Instance != nil:
		return string(s.Instance.ID)
	case s.ID != "":
		return string(s.ID)
	case s.Component != "":
		return string(s.Component)
	case s.Copy != nil:
		return string(s.Copy.id())
	}
	return fmt.Sprint("generation ", s.Generation)
}

// apply changes e in place; when it fails, e is as before.
func (e *Environment) apply(s Step, at time.Time) error {
	var err error
	switch s.Kind {
	case Create:
		err = e.create(s, at)
	case Tainted:
		err = e.taint(s, at)
	case Drifted:
		err = e.drift(s, at)
	case Freeze, Frozen:
		err = e.freeze(s, at)
	case Settled:
		err = e.settle(s, at)
	case Healthy, Failing, Exited, Gone, Retire:
		err = e.change(s, at)
	case Shift:
		err = e.shift(s, at)
	case Done, Failed:
		err = e.end(s, at)
	case Revert:
		err = e.revert(s, at)
	case Copying, Copied, CopyFailed, Switch, Deleted:
		err = e.copies(s, at)
	default:
		err = fault.Errorf(fault.Invalid, "unknown kind of step")
	}
	if err == nil && s.Kind != Revert { // setHead has counted it
		e.Seq++
	}
	return err
}

func (e *Environment) create(s Step, at time.Time) error {
	if s.Instance == nil || s.Instance.ID == "" {
		return fault.Errorf(fault.Invalid, "names no instance")
	}
	i := *s.Instance
	c, known := e.Components[i.Digest]
	switch _, exists := e.Instances[i.ID]; {
	case exists:
		return fault.Errorf(fault.Conflict, "it already exists")
	case i.Env != e.Name:
		return fault.Errorf(fault.Invalid, "it belongs to environment %q", i.Env)
	case !known || c.Name != i.Component:
		return fault.Errorf(fault.Conflict, "no release of this environment has component %s with digest %s", i.Component, i.Digest)
	case i.Generation != e.Head.Number:
		return fault.Errorf(fault.Conflict, "made for generation %d, the head is %d", i.Generation, e.Head.Number)
	}
	made := Instance{Identity: i, CreatedAt: at, Cause: s.Cause}
	if err := e.give(&made, c, at); err != nil {
		return err
	}
	e.Instances[i.ID] = made
	return nil
}

// change folds what happened to one instance.
func (e *Environment) change(s Step, at time.Time) error {
	i, ok := e.Instances[s.ID]
	if !ok {
		return fault.Errorf(fault.Conflict, "no such instance")
	}
	was := i
	if err := i.become(s, at); err != nil {
		return err
	}
	if was.Live() && (s.Kind == Failing || s.Kind == Exited || s.Kind == Gone) {
		e.count(was, s, at)
	}
	if s.Kind == Gone {
		delete(e.Instances, s.ID)
		if e.Head.Digests[i.Component] != i.Digest && e.Previous.Digests[i.Component] != i.Digest {
			e.prune()
		}
		return nil
	}
	if s.Kind == Healthy && slices.Contains(e.Changing, i.Component) {
		e.ProgressAt = at
	}
	e.Instances[s.ID] = i
	return nil
}

// become changes the instance as the step says.
func (i *Instance) become(s Step, at time.Time) error {
	switch s.Kind {
	case Gone:
		return nil
	case Retire:
		if !i.RetiringAt.IsZero() {
			return fault.Errorf(fault.Conflict, "it is retiring already")
		}
		i.RetiringAt = at
	case Exited:
		if !i.Live() {
			return fault.Errorf(fault.Conflict, "it is not live")
		}
		i.ExitedAt, i.Health, i.HealthAt = at, instance.Failing, at
	case Healthy:
		if !i.Live() || i.Health == instance.Passing {
			return fault.Errorf(fault.Conflict, "it is not live, or healthy already")
		}
		i.Health, i.HealthAt, i.EverHealthy = instance.Passing, at, true
	case Failing:
		if !i.Live() || i.Health == instance.Failing {
			return fault.Errorf(fault.Conflict, "it is not live, or failing already")
		}
		i.Health, i.HealthAt = instance.Failing, at
	}
	i.Cause = s.Cause
	return nil
}

// count adds a failure of instance i. Failures of instances that were created before the last failure come from the
// same cause as that, and count with it.
func (e *Environment) count(i Instance, s Step, at time.Time) {
	t := e.Trouble[i.Digest]
	switch {
	case i.Health == instance.Passing && at.Sub(i.HealthAt) >= steadyAfter:
		t.Count, t.Last = 1, at
	case t.Count == 0 || !i.CreatedAt.Before(t.Last):
		t.Count, t.Last = t.Count+1, at
	}
	t.Late = t.Late || s.Kind == Failing && !i.EverHealthy
	t.Cause = s.Cause
	e.Trouble[i.Digest] = t
}

func (e *Environment) shift(s Step, at time.Time) error {
	sum := 0
	for n, sh := range s.Shares {
		if c, ok := e.Components[sh.Version]; !ok || c.Name != s.Component {
			return fault.Errorf(fault.Conflict, "no version %s", sh.Version)
		}
		if sh.Percent < 1 || share(s.Shares[:n], sh.Version) > 0 {
			return fault.Errorf(fault.Invalid, "version %s has no share, or two", sh.Version)
		}
		sum += sh.Percent
	}
	if s.Component == "" || len(s.Shares) > 0 && sum != 100 {
		return fault.Errorf(fault.Invalid, "the shares sum to %d", sum)
	}
	e.leave(s, at)
	e.ProgressAt = at
	if len(s.Shares) == 0 {
		delete(e.Traffic, s.Component)
		delete(e.ShiftedAt, s.Component)
		return nil
	}
	e.Traffic[s.Component] = slices.Clone(s.Shares)
	e.ShiftedAt[s.Component] = at
	return nil
}

// leave notes which instances lose their traffic by the shift, and which get it again.
func (e *Environment) leave(s Step, at time.Time) {
	before := e.Traffic[s.Component]
	for id, i := range e.Instances {
		if i.Component != s.Component {
			continue
		}
		had, has := share(before, i.Digest) > 0, share(s.Shares, i.Digest) > 0
		switch {
		case had && !has && i.Healthy():
			i.LeftTraffic = at
		case has && !i.Barred:
			i.LeftTraffic = time.Time{}
		}
		i.Barred = i.Barred || !has && len(i.Taints) > 0
		e.Instances[id] = i
	}
}

func (e *Environment) end(s Step, at time.Time) error {
	if s.Generation != e.Head.Number || e.Head.Outcome != Rolling {
		return fault.Errorf(fault.Conflict, "the head is generation %d, %s", e.Head.Number, e.Head.Outcome)
	}
	e.Head.Outcome, e.Head.EndedAt, e.Head.Cause = Completed, at, ""
	if s.Kind == Failed {
		e.Head.Outcome, e.Head.Cause = Broken, s.Cause
	}
	return nil
}

func (e *Environment) revert(s Step, at time.Time) error {
	target := e.Previous
	switch {
	case e.Head.Outcome != Broken || s.Generation != e.Head.Number+1:
		return fault.Errorf(fault.Conflict, "the head is generation %d, %s", e.Head.Number, e.Head.Outcome)
	case s.Release != target.Release || s.Release == digest.Digest("") || e.Head.Reverts || s.Release == e.Head.Release && len(e.Head.takeBack()) == 0:
		return fault.Errorf(fault.Conflict, "release %s is not the one to revert to", s.Release)
	}
	if target.Revoked {
		return fault.Errorf(fault.Denied, "release %s is revoked", s.Release)
	}
	e.setHead(Generation{Number: s.Generation, Release: target.Release, Record: target.Record, Reverts: true, Restores: e.Head.takeBack()}, at)
	return nil
}
