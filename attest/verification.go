package attest

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

// VerificationPredicate is the type of statements about what an environment was found to run. docs/drift.md describes it.
const VerificationPredicate = "https://github.com/invarhq/invar/verification/v1"

// Results of measuring an environment or an instance, the worst last.
const (
	AsReleased  = "as-released"
	NotMeasured = "not-measured" // of some of it nothing could be told, and nothing else differs
	Differs     = "differs"
)

// Limits of what is said of one instance.
const (
	maxFindings     = 100
	maxFindingBytes = 2000
)

// Verification says what an environment was found to run, between two times, by a server that looked at it from outside.
type Verification struct {
	Result     string        `json:"result"` // the worst of the instances', or NotMeasured
	Env        spec.EnvName  `json:"environment"`
	Generation int           `json:"generation"` // that was its head all the time
	Release    digest.Digest `json:"release"`    // of that head
	From       time.Time     `json:"from"`
	To         time.Time     `json:"to"`
	Who        string        `json:"who"`      // asked for it, as the server authenticated him; "system:schedule": the rule did
	By         string        `json:"by"`       // the name of the ledger, whose key signs
	Server     string        `json:"server"`   // version of the program that measured
	Measured   []string      `json:"measured"` // of every instance, in sentences
	Excluded   []string      `json:"excluded"` // what was not looked at, likewise
	Components []Component   `json:"components"`
	Instances  []Instance    `json:"instances"`
	Detail     string        `json:"detail,omitempty"` // why nothing could be measured
}

// Component is what the release has of a component, and how much of it was found.
type Component struct {
	Name     spec.ComponentName `json:"name"`
	Digest   digest.Digest      `json:"digest"`
	Root     digest.Digest      `json:"root"`
	Replicas int                `json:"replicas"` // asked for
	Good     int                `json:"good"`     // instances of it that run as released
}

// Whether an instance runs.
const (
	Running = "running"
	Waiting = "waiting" // it is made, and not started yet
	Missing = "missing" // the ledger says that it runs, and it does not
	Unknown = "unknown" // it runs, and the ledger does not know it
)

// Instance says what one instance was found to be.
type Instance struct {
	ID        instance.ID        `json:"id"`
	Component spec.ComponentName `json:"component"`
	Digest    digest.Digest      `json:"digest,omitempty"` // of the component, as the ledger has it; unset: Unknown
	State     string             `json:"state"`
	Result    string             `json:"result"`
	Expected  digest.Digest      `json:"expected,omitempty"` // of its root, as the release has it
	Found     digest.Digest      `json:"found,omitempty"`    // of the root that it runs on, read from the first byte to the last
	Findings  []instance.Finding `json:"findings,omitempty"` // how it differs otherwise, with the controls that each concerns
	More      int                `json:"more,omitempty"`     // findings that are left out
	Detail    string             `json:"detail,omitempty"`   // why it could not be measured
}

// OK reports whether the instance is as released.
func (i Instance) OK() bool { return i.Result == AsReleased }

// judged returns the instance with its result, and no more findings than a statement has.
func (i Instance) judged() Instance {
	switch {
	case i.State == Missing || i.State == Unknown || i.Found != "" && i.Found != i.Expected || len(i.Findings) > 0:
		i.Result = Differs
	case i.Found == "" || i.Detail != "":
		i.Result = NotMeasured
	default:
		i.Result = AsReleased
	}
	if n := len(i.Findings); n > maxFindings {
		i.More, i.Findings = n-maxFindings, i.Findings[:maxFindings]
	}
	i.Findings = slices.Clone(i.Findings)
	for j, f := range i.Findings {
		i.Findings[j].Expected, i.Findings[j].Found = short(f.Expected, maxFindingBytes), short(f.Found, maxFindingBytes)
	}
	i.Detail = short(i.Detail, maxFindingBytes)
	return i
}

// ResultOf is the result of all of them: that of the worst, and NotMeasured when there was a reason why nothing was measured.
func ResultOf(all []Instance, detail string) string {
	result := AsReleased
	if detail != "" {
		result = NotMeasured
	}
	for _, i := range all {
		if i.Result == Differs || i.Result == NotMeasured && result == AsReleased {
			result = i.Result
		}
	}
	return result
}

// Verified completes a verification by what was found, and returns the statement. Its subjects are the release, and the root of every
// component.
func Verified(v Verification, found []Instance) Statement[Verification] {
	v.Detail = short(v.Detail, maxFindingBytes)
	v.Instances = make([]Instance, 0, len(found))
	for _, i := range found {
		v.Instances = append(v.Instances, i.judged())
	}
	slices.SortFunc(v.Instances, func(a, b Instance) int { return cmp.Compare(a.ID, b.ID) })
	v.Result = ResultOf(v.Instances, v.Detail)
	v.Components = slices.Clone(v.Components)
	for n := range v.Components {
		for _, i := range v.Instances {
			if i.OK() && i.State == Running && i.Digest == v.Components[n].Digest {
				v.Components[n].Good++
			}
		}
	}
	return New(VerificationPredicate, v, v.subjects()...)
}

func (v Verification) subjects() []Subject {
	about := []Subject{Of("release", v.Release)}
	for _, c := range v.Components {
		about = append(about, Of("root "+string(c.Name), c.Root))
	}
	return about
}

// Bad lists the instances that are not as released.
func (v Verification) Bad() []instance.ID {
	var out []instance.ID
	for _, i := range v.Instances {
		if !i.OK() {
			out = append(out, i.ID)
		}
	}
	return out
}

// Check says whether a statement goes together: its results are those of what it says was found, and its subjects those of its release.
func Check(s Statement[Verification]) error {
	v := s.Predicate
	for _, i := range v.Instances {
		if want := i.judged().Result; i.Result != want {
			return fault.Errorf(fault.Corrupt, "instance %s is said to be %s; what was found is %s", i.ID, i.Result, want)
		}
	}
	if want := ResultOf(v.Instances, v.Detail); v.Result != want {
		return fault.Errorf(fault.Corrupt, "the result is said to be %s; that of the instances is %s", v.Result, want)
	}
	if !slices.EqualFunc(s.Subject, v.subjects(), func(a, b Subject) bool { return a.Name == b.Name && maps.Equal(a.Digest, b.Digest) }) {
		return fault.Errorf(fault.Corrupt, "its subjects are not its release and the roots of its components")
	}
	return nil
}

// What a server looks at, and what it does not: docs/drift.md says more.
var (
	measures = []string{
		"the root's bytes, from the first to the last, against the digest in the release",
		"the root's file and mount; every mount and its flags; arguments, working directory and environment as the launcher was told them; of every process its program, users, groups, capabilities, seccomp mode and no_new_privs; namespaces and network interfaces; limits; listeners; files in scratches that are executable; the hosts file, resolv.conf, files and the modes of secrets",
		"instances that the ledger says run and do not, and instances that run and the ledger does not know",
	}
	excludes = []string{
		"the content of volumes and secrets; memory, and code that was made in it; what lies past 256 processes of an instance, and past 200 files of its scratches",
		"of instances in a gVisor sandbox: processes, mounts and scratches",
		"the machine, its kernel, and the server itself",
	}
)

// Scope says what a verification looks at, and what it does not.
func Scope() (measured, excluded []string) { return slices.Clone(measures), slices.Clone(excludes) }
