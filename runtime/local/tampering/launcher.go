package tampering

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/invarhq/invar/runtime/local/wire"
)

// Again has the launcher end the instance and start one of its name in its place, changed.
func Again(change func(*specs.Spec)) Act {
	return func(t Target) (func(), error) { return nothing, t.again(change) }
}

// AgainUnseen does the same, and then writes into the instance's directory what the server had the launcher told.
func AgainUnseen(change func(*specs.Spec)) Act {
	return func(t Target) (func(), error) {
		file := filepath.Join(t.dir(), "oci", "config.json")
		was, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if err := t.again(change); err != nil {
			return nil, err
		}
		return nothing, os.WriteFile(file, was, 0o600)
	}
}

func (t Target) again(change func(*specs.Spec)) error {
	l, err := t.dial()
	if err != nil {
		return err
	}
	defer l.Close()
	s, create, err := t.record()
	if err != nil {
		return err
	}
	change(&s)
	if create.OCI, err = json.Marshal(s); err != nil {
		return err
	}
	if _, err := l.ask(wire.Request{Op: wire.OpRemove, ID: t.ID}); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(t.dir(), "oci")); err != nil {
		return err
	}
	return l.start(t.ID, create)
}

// record reads what the launcher was told of the instance.
func (t Target) record() (specs.Spec, wire.Create, error) {
	var s specs.Spec
	var create wire.Create
	oci := filepath.Join(t.dir(), "oci")
	b, err := os.ReadFile(filepath.Join(oci, "config.json"))
	told, err2 := os.ReadFile(filepath.Join(oci, "launcher.json"))
	if err = errors.Join(err, err2); err == nil {
		err = errors.Join(json.Unmarshal(b, &s), json.Unmarshal(told, &create))
	}
	if err != nil {
		return s, create, fmt.Errorf("reading what the launcher was told of %s: %w", t.ID, err)
	}
	return s, create, nil
}

// OtherArguments, OtherVariables and so on change what the launcher is told.
func OtherArguments(s *specs.Spec) { s.Process.Args = append(s.Process.Args, "by-hand") }
func OtherVariables(s *specs.Spec) {
	s.Process.Env = append(s.Process.Env, "LD_PRELOAD=/tmp/evil.so")
}
func OtherUser(s *specs.Spec)      { s.Process.User = specs.User{UID: 1, GID: 1} }
func NewPrivileges(s *specs.Spec)  { s.Process.NoNewPrivileges = false }
func WithoutSeccomp(s *specs.Spec) { s.Linux.Seccomp = nil }
func WithoutLimits(s *specs.Spec)  { s.Linux.Resources = nil }
func ScratchRunsFiles(s *specs.Spec) {
	for n, m := range s.Mounts {
		if m.Type == "tmpfs" && m.Destination != "/dev" {
			s.Mounts[n].Options = []string{"nosuid", "nodev"}
		}
	}
}

// WithCapability gives the process a capability, in its own user namespace.
func WithCapability(s *specs.Spec) {
	caps := []string{"CAP_NET_ADMIN"}
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps, Ambient: caps}
}

// SharedIPC leaves the process in the machine's IPC namespace.
func SharedIPC(s *specs.Spec) {
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.IPCNamespace })
}

// Exec has the launcher run the command that stays in the instance, beside its process.
func Exec(t Target) (func(), error) {
	l, err := t.dial()
	if err != nil {
		return nil, err
	}
	// A session ends with its connection, and its input with it.
	if _, err := l.ask(wire.Request{Op: wire.OpSession, ID: t.ID, Session: &wire.Session{Args: t.Stays}}); err != nil {
		l.Close()
		return nil, err
	}
	return func() { l.Close() }, nil
}

// ExecBriefly does the same with a command that ends at once.
func ExecBriefly(t Target) (func(), error) {
	l, err := t.dial()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	_, err = l.ask(wire.Request{Op: wire.OpExec, ID: t.ID, Exec: &wire.Exec{Args: t.Stays, Timeout: time.Second}})
	return nothing, err
}

// launcher is a connection to the launcher's socket.
type launcher struct{ net.Conn }

func (t Target) dial() (launcher, error) {
	c, err := net.DialTimeout("unix", filepath.Join(t.Run, "launcher.sock"), time.Second)
	if err != nil {
		return launcher{}, fmt.Errorf("reaching the launcher: %w", err)
	}
	return launcher{c}, nil
}

func (l launcher) ask(q wire.Request) (wire.Response, error) {
	q.Version = wire.Version
	if err := wire.Write(l, q); err != nil {
		return wire.Response{}, err
	}
	r, err := wire.Read[wire.Response](wire.NewReader(l))
	if err = errors.Join(err, r.Err()); err != nil {
		return r, fmt.Errorf("asking the launcher to %s: %w", q.Op, err)
	}
	return r, nil
}

// start creates an instance and lets it go.
func (l launcher) start(id string, create wire.Create) error {
	if _, err := l.ask(wire.Request{Op: wire.OpCreate, ID: id, Create: &create}); err != nil {
		return err
	}
	_, err := l.ask(wire.Request{Op: wire.OpStart, ID: id})
	return err
}
