package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/runtime/local/tampering"
)

// An app whose programs have children and ask by UDP, and one component that the kernel kills for want of memory over and over.
const lively = lanesHead + `
component "busy" {
  image    = image.probe
  replicas = 2
  env      = { MODE = "busy", ROUND = "0" }
  port "http" { number = 8080 }
  health {
    http {
      port = "http"
      path = "/healthz"
    }
    interval = "100ms"
  }
  scratch "/tmp" { size = "1Mi" }
  resources { memory = "128Mi" }
}
component "user" {
  image = image.probe
  env   = { MODE = "serve", PORT = "9090" }
  uses  = [component.busy.port.http]
  port "http" { number = 9090 }
  health {
    exec { command = ["/app/probe", "shell"] }
    interval = "100ms"
  }
}
component "hungry" {
  image = image.probe
  env   = { MODE = "eat" }
  port "http" { number = 8080 }
  resources { memory = "32Mi" }
}
route "busy" {
  host = "busy.localhost"
  to   = component.busy.port.http
}
`

// TestNothingIsFoundWhereNothingWasTampered does what operators, failures and programs do all day: none of it is drift.
func TestNothingIsFoundWhereNothingWasTampered(t *testing.T) {
	m := newLanes(t, nil)
	m.write(m.app+"/invar.hcl", lively)
	m.serve()
	book := m.follow()
	out, err := m.invar(t.Context(), "-C", m.app, "apply", "staging", "--yes")
	if starved := book.count("instance.exit", `"oom":true`); err == nil || starved == 0 {
		t.Fatalf("the hungry component was to be killed for want of memory, and was so %d times: %v\n%s", starved, err, out)
	}
	m.edit(`  env   = { MODE = "eat" }`, `  env   = { MODE = "serve" }`)
	m.apply()
	load := startLoad(t.Context(), m.gateway, 2, page{"busy.localhost", "/", "mode busy"})
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"a change", func() { m.edit(`ROUND = "0"`, `ROUND = "1"`); m.apply() }},
		{"scaled up", func() { m.edit("replicas = 2", "replicas = 5"); m.apply() }},
		{"scaled down", func() { m.edit("replicas = 5", "replicas = 2"); m.apply() }},
		{"a session", m.session},
		{"the server killed", func() { m.killServer() }},
		{"the launcher killed", func() { m.killLauncher() }},
		{"rolled back", func() { m.must("rollback", "staging", "--yes") }},
		{"the gateway killed", m.killGatewayAlone},
		{"upgraded", m.upgrade},
		{"another change", func() { m.edit(`ROUND = "1"`, `ROUND = "2"`); m.apply() }},
		{"verified", func() { m.must("verify", "staging") }},
	} {
		step.do()
		time.Sleep(2500 * time.Millisecond) // longer than between two looks
		t.Log(step.what)
	}
	load.end()
	for _, said := range book.drift() {
		t.Error(said)
	}
	m.sound()
	m.stop()
}

// TestWhatIsAdmittedIsNotFound keeps docs/security.md honest, in both directions: what it says that root on the machine can do unseen is
// done, and is not found. What is found one day is to move from there to docs/drift.md.
func TestWhatIsAdmittedIsNotFound(t *testing.T) {
	doc, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	m := newLanes(t, []lane{{name: "lane"}})
	m.serve()
	m.apply()
	book := m.follow()
	for _, k := range tampering.Unseen() {
		if !strings.Contains(string(doc), k.Name) {
			t.Errorf("docs/security.md does not admit: %s", k.Name)
		}
		undo, err := k.Do(m.target(m.environment().Instances[0]))
		if err != nil {
			t.Errorf("%s: %v", k.Name, err)
			continue
		}
		defer undo()
	}
	time.Sleep(foundWithin)
	for _, said := range book.drift() {
		t.Errorf("this is found, which docs/security.md denies: %s", said)
	}
	m.sound()
	m.stop()
}

// drift returns what entries call drift or a taint, but for the sessions that invar itself opened.
func (b *book) drift() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []string
	for _, e := range b.entries {
		var d told
		json.Unmarshal(e.Data, &d)
		session := e.Kind == string(deploy.Tainted) && strings.HasPrefix(d.By, deploy.BySession(""))
		if !session && (e.Kind == string(deploy.Tainted) || strings.HasPrefix(e.Kind, "drift.") || strings.HasPrefix(e.Kind, "host.")) {
			found = append(found, fmt.Sprintf("entry %d %s: %s", e.Index, e.Kind, e.Data))
		}
	}
	return found
}

// count counts the entries of a kind that have a text.
func (b *book) count(kind, text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, e := range b.entries {
		if e.Kind == kind && strings.Contains(string(e.Data), text) {
			n++
		}
	}
	return n
}

// must runs the client, which must be content.
func (m *machine) must(args ...string) {
	m.t.Helper()
	if out, err := m.invar(m.t.Context(), args...); err != nil {
		m.t.Errorf("invar %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// session has somebody look into an instance by invar itself, which is a taint and no drift.
func (m *machine) session() {
	m.t.Helper()
	m.must("exec", "staging/user", "--reason", "a look", "--", "/app/probe", "shell")
}

func (m *machine) killGatewayAlone() {
	m.t.Helper()
	old := m.gatewayPID()
	m.kill(old)
	m.anotherGateway(old)
}

func (m *machine) gatewayPID() int {
	m.t.Helper()
	info, err := m.server.info()
	if err != nil || info.Gateway.PID == 0 {
		m.t.Fatalf("finding the gateway: %+v, %v", info, err)
	}
	return info.Gateway.PID
}

func (m *machine) anotherGateway(old int) {
	m.t.Helper()
	m.poll("the next gateway's process", func() bool {
		next, err := m.server.info()
		return err == nil && next.Gateway.PID != 0 && next.Gateway.PID != old
	})
}

// upgrade starts a server of another version in place of the one that runs, which upgrades the gateway as well.
func (m *machine) upgrade() {
	m.t.Helper()
	b, err := os.ReadFile(binary)
	if err != nil {
		m.t.Fatal(err)
	}
	said, err := exec.Command(binary, "--version").Output()
	if err != nil {
		m.t.Fatal(err)
	}
	version := []byte(strings.TrimPrefix(strings.TrimSpace(string(said)), "invar version "))
	next := m.dir + "/invar-next"
	if err := os.WriteFile(next, bytes.ReplaceAll(b, version, bytes.Repeat([]byte("n"), len(version))), 0o755); err != nil {
		m.t.Fatal(err)
	}
	old := m.gatewayPID()
	m.server.cmd.Process.Signal(syscall.SIGTERM)
	m.poll("the end of the server", func() bool { return syscall.Kill(m.server.cmd.Process.Pid, 0) != nil })
	if m.server, err = startServerOf(next, m.host.data, os.Environ(), "--gateway", m.gateway); err != nil {
		m.t.Fatal(err)
	}
	m.anotherGateway(old)
}
