// Package tampering does what somebody who is root on the machine can do to what runs there, for tests and measurements that
// find out whether it is found, and when. None of it asks the server.
//
//	undo, err := tampering.Named("the hosts file edited").Do(target)
//
// Kinds has each with the entry of the ledger that shows that it was found. What such an act leaves on the machine (a process, a socket)
// is taken away by what Do returns; what it leaves in the instance goes with the instance.
package tampering

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/instance"
)

// Target is a running instance, and where its server keeps what belongs to it.
type Target struct {
	ID   string
	PID  int    // of its first process, on the machine
	Run  string // the server's run directory: /run/invar/KEY
	Data string // and its data directory

	// Stays is a command of the instance's root that does nothing until its input ends.
	Stays []string
}

// Act tampers. When it fails, there is nothing to undo.
type Act func(Target) (undo func(), err error)

// Kind is one way to tamper with an instance.
type Kind struct {
	Name  string
	Do    Act
	Shows Evidence

	// Wide says that it hits every instance that runs on the same root, not the target alone.
	Wide bool
	// Alert says that it is told and left alone.
	Alert bool
	// Diverts says that requests reach the intruder until it is found and healed.
	Diverts bool
	// Unwatched says that it is done while no server runs. One that runs sees at once that an instance is ended and started again, and
	// replaces it; what was under way in the instance is lost.
	Unwatched bool
}

// Evidence tells the entry that shows that something was found.
type Evidence struct {
	Entry string // its kind
	Kind  string // of a finding in it; "": the entry has none
	Field string // of that finding, or how it begins

	OrDrift bool // any finding of drift.detected shows it as well: whichever look comes first
	OrMount bool // the finding that the instance's root is another mount shows it as well
}

// In tells whether an entry of a kind, with that data, is the evidence, and which instance it is about.
func (e Evidence) In(kind string, data []byte) (id string, ok bool) {
	var told struct {
		ID       string             `json:"id"`
		Findings []instance.Finding `json:"findings"`
	}
	drifted := e.OrDrift && kind == "drift.detected"
	if kind != e.Entry && !drifted || json.Unmarshal(data, &told) != nil {
		return "", false
	}
	return told.ID, drifted || e.Kind == "" || slices.ContainsFunc(told.Findings, func(f instance.Finding) bool {
		return f.Kind == e.Kind && strings.HasPrefix(f.Field, e.Field) || e.OrMount && f.Kind == "mount" && f.Field == "/"
	})
}

func (e Evidence) String() string { return strings.TrimSpace(e.Entry + " " + e.Kind + " " + e.Field) }

func drifted(kind, field string) Evidence {
	return Evidence{Entry: "drift.detected", Kind: kind, Field: field}
}

// touched is the evidence of a change of a root's file. Who makes a replacement mounts the root anew, and then the mount shows it as well.
func touched(field string) Evidence {
	e := drifted("root", field)
	e.OrMount = true
	return e
}

func odd(kind, field string) Evidence { return Evidence{Entry: "host.drift", Kind: kind, Field: field} }

// foreign shows that a process from outside was found.
var foreign = Evidence{Entry: "instance.taint", OrDrift: true}

// Kinds returns every kind of tampering with an instance that is found.
func Kinds() []Kind {
	return []Kind{
		{Name: "a byte of the root's file flipped", Do: FlipByte, Shows: touched("content"), Wide: true},
		{Name: "a byte flipped, size, time and attribute put back", Do: FlipByteUnseen, Shows: touched("content"), Wide: true},
		{Name: "the immutable attribute taken off", Do: Mutable, Shows: touched("attribute"), Wide: true},
		{Name: "another root mounted over the right one", Do: OtherRoot, Shows: touched("mount"), Wide: true},
		{Name: "another root mounted in the instance", Do: OtherRootInside, Shows: drifted("mount", "/")},
		{Name: "a file mounted over one in the root", Do: Overmount, Shows: drifted("mount", "/")},
		{Name: "a scratch made executable", Do: ExecutableScratch, Shows: drifted("mount", "")},
		{Name: "a program dropped into a scratch", Do: DropProgram, Shows: drifted("writable", "/tmp/evil")},
		{Name: "a read-only mount made writable", Do: WritableMount, Shows: drifted("mount", "/proc/sys")},
		{Name: "the hosts file edited", Do: EditHosts, Shows: drifted("file", "/etc/hosts")},
		{Name: "resolv.conf edited", Do: EditResolver, Shows: drifted("file", "/etc/resolv.conf")},
		{Name: "a process injected into all namespaces", Do: Inject("--all"), Shows: foreign},
		{Name: "a process injected into the network", Do: Inject("--net"), Shows: foreign},
		{Name: "a thread joined the network", Do: JoinNetwork, Shows: foreign},
		{Name: "a process moved into the cgroup", Do: JoinCgroup, Shows: foreign},
		{Name: "a debugger attached", Do: Trace, Shows: drifted("process", "traced by")},
		{Name: "the limit of processes raised", Do: Limit("pids", "pids.max", "pids.max", "100000"), Shows: drifted("limit", "processes")},
		{Name: "the limit of memory raised", Do: raiseMemory, Shows: drifted("limit", "memory bytes")},
		{Name: "the limit of CPU taken away", Do: freeCPU, Shows: drifted("limit", "cpu thousandths")},
		{Name: "a listener on an undeclared port", Do: Listen, Shows: drifted("port", "tcp 127.0.0.1:9999")},
		{Name: "started by hand with other arguments", Do: Again(OtherArguments), Shows: drifted("process", "arguments"), Unwatched: true},
		{Name: "started by hand with other variables", Do: Again(OtherVariables), Shows: drifted("variable", "LD_PRELOAD"), Unwatched: true},
		{Name: "started by hand as another user", Do: Again(OtherUser), Shows: drifted("user", "uids"), Unwatched: true},
		{Name: "started by hand with a capability", Do: Again(WithCapability), Shows: drifted("capability", "CapEff"), Unwatched: true},
		{Name: "started by hand without seccomp", Do: Again(WithoutSeccomp), Shows: drifted("confinement", "seccomp mode"), Unwatched: true},
		{Name: "a command run over the launcher's socket", Do: Exec, Shows: foreign},
		{Name: "a command run over the launcher's socket, without a server", Do: ExecBriefly, Shows: foreign, Unwatched: true},
		{Name: "the network connected to the machine's", Do: Connect, Shows: drifted("namespace", "interfaces")},
		{Name: "started by hand, and the record put back", Do: AgainUnseen(OtherArguments), Shows: drifted("process", "record"), Unwatched: true},
		{Name: "an undeclared UDP socket", Do: ListenUDP, Shows: drifted("port", "udp 127.0.0.1:9999")},
		{Name: "the pinned network replaced", Do: OtherNetwork, Shows: drifted("namespace", "net"), Diverts: true},
	}
}

// Beside returns every kind of tampering with what a server has beside its instances, and that is found. The target is an instance that
// serves as a pattern, and is left alone.
func Beside() []Kind {
	all := []Kind{
		{Name: "another route table put in force", Do: ForeignTable, Shows: odd("table", "in force"), Diverts: true},
		{Name: "the gateway's control socket taken over", Do: TakeControlSocket, Shows: odd("gateway", "control link")},
		{Name: "a listener beside the gateway's", Do: ListenBeside, Shows: odd("listener", "tcp "), Diverts: true, Alert: true},
	}
	for _, s := range Strays() {
		do := func(t Target) (func(), error) {
			return s.Do(t, "by-hand-"+strconv.FormatInt(time.Now().UnixNano(), 36))
		}
		all = append(all, Kind{Name: s.Name, Do: do, Shows: odd("stray", s.Field), Alert: !s.Ended})
	}
	return all
}

// Named returns the kind of that name. It panics when there is none: the program's text is wrong then.
func Named(name string) Kind {
	for _, k := range append(Kinds(), Beside()...) {
		if k.Name == name {
			return k
		}
	}
	panic("tampering: no kind is named " + strconv.Quote(name))
}

// nothing undoes what goes with the instance.
func nothing() {}

func (t Target) proc(name string) string { return filepath.Join("/proc", strconv.Itoa(t.PID), name) }

func (t Target) dir() string { return filepath.Join(t.Run, "instances", t.ID) }

// spec is what of the instance's specification an intruder needs.
type spec struct {
	Root      digest.Digest `json:"root"`
	Scratches []struct {
		Path string `json:"path"`
	} `json:"scratches"`
	Ports []int `json:"ports"`
}

func (t Target) spec() (spec, error) {
	var s spec
	b, err := os.ReadFile(filepath.Join(t.dir(), "spec.json"))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("reading what %s is: %w", t.ID, err)
	}
	return s, nil
}
