package local_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/local"
)

func TestEvidenceTellsWhatWasDoneAndNoSecret(t *testing.T) {
	m := newMachine(t)
	s := m.everything("web-1")
	m.start(s)
	first := m.until("web-1", "passing", func(o instance.Observation) bool { return o.Health == instance.Passing }).PID
	scratch := fmt.Sprintf("/proc/%d/root/tmp", first)
	asUser(t, local.UIDBase, func() error {
		return errors.Join(os.WriteFile(scratch+"/tool", []byte("x"), 0o700), os.Symlink("/etc/shadow", scratch+"/out"), os.Mkdir(scratch+"/dir", 0o755))
	})
	if err := os.WriteFile(filepath.Join(m.host.Run(), "instances/web-1/files/0"), []byte("127.0.0.1 evil\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.host.Freeze(t.Context(), s.Identity.ID); err != nil {
		t.Fatal(err)
	}
	e, err := m.host.Evidence(t.Context(), runtime.Question{Spec: s.WithoutSecrets()})
	if err != nil {
		t.Fatal(err)
	}
	b, err := digest.Canonical(e)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := digest.Canonical(e); string(again) != string(b) || !e.Frozen {
		t.Error("it is not frozen, or has two spellings")
	}
	if text := string(b); strings.Contains(text, string(digest.Of([]byte("secret")))) || strings.Contains(text, `"secret"`+`,`) {
		t.Error("it tells of the secret")
	}
	if len(e.Findings) == 0 || e.Findings[0].Key() != "file /etc/hosts" {
		t.Errorf("findings %v", e.Findings)
	}
	found := map[string]runtime.FileFact{}
	for _, f := range append(e.Scratches, e.Files...) {
		found[f.Path] = f
	}
	if f := found["/tmp/tool"]; f.SHA256 != digest.Of([]byte("x")) || f.Mode != "-rwx------" {
		t.Errorf("tool %+v", f)
	}
	if f := found["/tmp/out"]; f.Target != "/etc/shadow" || f.SHA256 != "" {
		t.Errorf("link %+v", f)
	}
	if f := found["/run/secrets/key"]; !f.Secret || f.SHA256 != "" || f.Mode != "-r--------" {
		t.Errorf("secret %+v", f)
	}
	if f := found["/etc/hosts"]; f.SHA256 != digest.Of([]byte("127.0.0.1 evil\n")) {
		t.Errorf("hosts %+v", f)
	}
	p := e.Processes[0]
	if p.PID != first || !slices.Contains(p.Args, "/bin/server") || len(p.Namespaces) < 6 || len(p.Open) < 3 || len(p.Mapped) == 0 {
		t.Errorf("process %+v", p)
	}
	if !slices.ContainsFunc(e.Sockets, func(x runtime.Socket) bool { return x.State == "listening" && strings.HasSuffix(x.Local, ":80") }) {
		t.Errorf("sockets %+v", e.Sockets)
	}
	if len(e.Mounts) < 5 || len(e.Cgroup) < 5 || len(e.Truncated) > 0 || len(e.Missing) > 0 {
		t.Errorf("%d mounts, %d of cgroup, truncated %v, missing %v", len(e.Mounts), len(e.Cgroup), e.Truncated, e.Missing)
	}
}

func TestFreezingNeedsAFreezer(t *testing.T) {
	m := newMachine(t)
	s := m.serving("web-1")
	m.start(s)
	m.host.Restrict(func(f *local.Features) { f.Freezer = local.Feature{Detail: "no cgroup freezer"} })
	if err := m.host.Freeze(t.Context(), s.Identity.ID); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "no cgroup freezer") {
		t.Errorf("got %v", err)
	}
}

// asUser does something to files as a user of the machine whom an instance knows.
func asUser(t *testing.T, id int, do func() error) {
	t.Helper()
	done := make(chan error)
	go func() { // its thread ends with it
		goruntime.LockOSThread()
		_, err1 := unix.SetfsuidRetUid(id)
		_, err2 := unix.SetfsgidRetGid(id)
		done <- errors.Join(err1, err2, do())
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
