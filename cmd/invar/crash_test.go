package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/api"
)

const (
	kills         = 20                     // of each process
	callers       = 4                      // that ask for pages all the while
	gatewayBack   = 500 * time.Millisecond // from its death to the next page, as the median: 50 ms where the machine has nothing else to do
	gatewayAtMost = 5 * time.Second        // and by every one of them, however loaded the machine
)

// The app: the shop with two catalogs, and a component that no change touches.
const steady = `
component "steady" {
  image    = image.catalog
  replicas = 2
  port "http" { number = 9000 }
  health {
    http {
      port = "http"
      path = "/healthz"
    }
  }
}
route "steady" {
  host = "steady.localhost"
  to   = component.steady.port.http
}
`

var (
	shopPage   = page{"shop.localhost", "/", "Kettle"} // the web component asks the catalog
	steadyPage = page{"steady.localhost", "/items", "Kettle"}
)

// TestKillsDuringRolloutsUnderLoad kills server, launcher and gateway while rollouts and rollbacks go on under load.
func TestKillsDuringRolloutsUnderLoad(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: instances are namespaces and mounts; CI runs it")
	}
	began := time.Now()
	m := newMachine(t)
	m.serve()
	if out, err := m.invar(t.Context(), "-C", m.app, "apply", "staging", "--yes"); err != nil {
		t.Fatalf("the first apply: %v\n%s", err, out)
	}
	m.observe()
	l := startLoad(t.Context(), m.gateway, callers, shopPage, steadyPage)
	r := startRollouts(t.Context(), m)

	pause := func() { time.Sleep(time.Duration(50+rand.IntN(300)) * time.Millisecond) } // the next kill hits another moment
	var away, relaunched, back []time.Duration
	broken := 0
	for range kills {
		pause()
		away = append(away, m.killServer())
		m.observe()
		pause()
		m.none(l, "server")
		relaunched = append(relaunched, m.killLauncher())
		pause()
		m.none(l, "launcher")
		took, lost := m.killGateway(l, pause)
		back, broken = append(back, took), broken+lost
	}
	r.end()
	m.settle()
	l.end()
	m.none(l, "end")
	t.Logf("%d requests answered; commands by exit status: %v", l.served.Load(), r.ends)
	t.Logf("server away: %s; launcher away: %s", spread(away), spread(relaunched))
	t.Logf("gateway: killed to next page %s; %d requests broken in flight", spread(back), broken)
	if median(back) > gatewayBack || slices.Max(back) > gatewayAtMost {
		t.Errorf("gateway back after %s, want a median of at most %v and a maximum of %v", spread(back), gatewayBack, gatewayAtMost)
	}
	if r.ends[0] < 5 || len(r.odd) > 0 {
		t.Errorf("%d rollouts completed, want some; and these ended oddly: %s", r.ends[0], strings.Join(r.odd, "\n"))
	}
	m.verify()
	m.stop()
	t.Logf("took %v", time.Since(began).Round(time.Second))
}

// machine is a server of a test with its app, and what was seen of it.
type machine struct {
	t       *testing.T
	dir     string
	app     string
	gateway string
	server  *daemon
	host    hostOf
	pids    map[string]int // instance to process: never another one
	steady  []string       // the instances that no change touches
}

func newMachine(t *testing.T) *machine {
	dir := t.TempDir()
	m := &machine{t: t, dir: dir, app: filepath.Join(dir, "shop"), gateway: freeAddress(t), pids: map[string]int{}}
	m.host = newHostOf(filepath.Join(dir, "data"))
	t.Cleanup(func() { exec.Command(binary, "server", "stop", "--data", m.host.data).Run() })
	t.Cleanup(m.explain)
	if out, err := exec.Command("cp", "-r", "../../examples/shop", m.app).CombinedOutput(); err != nil {
		t.Fatalf("copying the app: %v\n%s", err, out)
	}
	m.edit(`min_healthy_time = "1s"`, `min_healthy_time = "0s"`)
	m.edit(`keep_warm        = "15m"`, `keep_warm        = "0s"
    drain            = "2s"`)
	m.edit("  image = image.catalog\n", "  image    = image.catalog\n  replicas = 2\n  env      = { ROUND = \"0\" }\n")
	m.edit(`route "shop" {`, steady+`route "shop" {`)
	return m
}

// explain logs what helps to understand a failure.
func (m *machine) explain() {
	if !m.t.Failed() || m.server == nil {
		return
	}
	ctx := context.Background()
	for _, args := range [][]string{{"status", "staging"}, {"history", "staging"}, {"ledger", "log", "-n", "60"}} {
		out, err := m.invar(ctx, args...)
		m.t.Logf("invar %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	m.t.Logf("the last server's log:\n%s", m.server.log)
}

func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// edit changes the app's configuration.
func (m *machine) edit(old, new string) {
	file := filepath.Join(m.app, "invar.hcl")
	b, err := os.ReadFile(file)
	if err != nil || !bytes.Contains(b, []byte(old)) {
		m.t.Fatalf("editing: no %q in %s: %v", old, file, err)
	}
	if err := os.WriteFile(file, bytes.Replace(b, []byte(old), []byte(new), 1), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// invar runs the client.
func (m *machine) invar(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, binary, args...)
	c.Env = append(os.Environ(), "INVAR_SERVER=unix://"+filepath.Join(m.host.data, "invar.sock"), "INVAR_CACHE="+filepath.Join(m.dir, "cache"))
	out, err := c.CombinedOutput()
	return string(out), err
}

func (m *machine) serve() {
	m.t.Helper()
	var err error
	if m.server, err = startServer(m.host.data, os.Environ(), "--gateway", m.gateway); err != nil {
		m.t.Fatal(err)
	}
}

// poll asks until ok, at the real edge, for at most a while.
func (m *machine) poll(what string, ok func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("%s: not within 30 s\n%s", what, m.server.log)
		}
	}
}

// kill kills a process and returns when it has died.
func (m *machine) kill(pid int) (asked, died time.Time) {
	m.t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		m.t.Fatalf("process %d: %v", pid, err)
	}
	defer unix.Close(fd)
	asked = time.Now()
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		m.t.Fatal(err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 10_000)
		if n == 1 {
			return asked, time.Now()
		}
		if !errors.Is(err, unix.EINTR) {
			m.t.Fatalf("process %d did not die: %v", pid, err)
		}
	}
}

// killServer kills the server and starts the next one.
func (m *machine) killServer() time.Duration {
	m.t.Helper()
	asked, _ := m.kill(m.server.cmd.Process.Pid)
	m.serve()
	return time.Since(asked)
}

// killLauncher kills the launcher and waits for the next one.
func (m *machine) killLauncher() time.Duration {
	m.t.Helper()
	old := m.host.launcher()
	asked, _ := m.kill(old)
	m.poll("the next launcher", func() bool { pid := m.host.launcher(); return pid != 0 && pid != old })
	return time.Since(asked)
}

// killGateway kills the gateway and asks for pages on fresh connections until there is one. Requests on connections that the dead gateway
// had may fail; how many did is counted.
func (m *machine) killGateway(l *load, pause func()) (back time.Duration, broken int) {
	m.t.Helper()
	info, err := m.server.info()
	if err != nil || info.Gateway.PID == 0 {
		m.t.Fatalf("finding the gateway: %+v, %v", info, err)
	}
	asked, died := m.kill(info.Gateway.PID)
	m.poll("a page from the next gateway", func() bool { return fetchFresh(m.gateway, shopPage) == nil })
	back = time.Since(asked)
	m.poll("the next gateway's process", func() bool {
		next, err := m.server.info()
		return err == nil && next.Gateway.PID != 0 && next.Gateway.PID != info.Gateway.PID
	})
	pause()
	for _, f := range l.failures() {
		if f.answered || f.connected.IsZero() || f.connected.After(died) {
			m.t.Errorf("gateway killed at %s, dead at %s: %v", asked.Format("15:04:05.000"), died.Format("15:04:05.000"), f)
		}
		broken++
	}
	return back, broken
}

// none fails the test for each request that failed.
func (m *machine) none(l *load, killed string) {
	m.t.Helper()
	for _, f := range l.failures() {
		m.t.Errorf("after killing the %s: %v", killed, f)
	}
}

func (m *machine) environment() api.Environment {
	m.t.Helper()
	var env api.Environment
	if err := m.server.api("GET", "/v1/environments/staging", nil, &env); err != nil {
		m.t.Fatal(err)
	}
	return env
}

// observe holds what runs against what was seen before, and against the ledger.
func (m *machine) observe() {
	m.t.Helper()
	onHost := m.host.instances() // first: what it has then, the ledger had before
	env := m.environment()
	var untouched []string
	for _, i := range env.Instances {
		if i.PID != 0 {
			if was := m.pids[i.ID]; was != 0 && was != i.PID {
				m.t.Errorf("instance %s was process %d and is %d", i.ID, was, i.PID)
			}
			m.pids[i.ID] = i.PID
		}
		if i.Component == "steady" {
			untouched = append(untouched, i.ID)
		}
	}
	if m.steady == nil {
		m.steady = untouched
	}
	if !slices.Equal(m.steady, untouched) {
		m.t.Errorf("no change touches %v, but now there are %v", m.steady, untouched)
	}
	created := m.created()
	for kind, ids := range onHost {
		for _, id := range ids {
			if !created[id] {
				m.t.Errorf("%s %s has no entry", kind, id)
			}
		}
	}
}

// created returns the instances that have an entry.
func (m *machine) created() map[string]bool {
	m.t.Helper()
	out, err := m.invar(m.t.Context(), "ledger", "log", "--kind", "instance.create", "-n", "0", "-o", "json")
	var entries []struct {
		Data struct {
			Instance struct {
				ID string `json:"id"`
			} `json:"instance"`
		} `json:"data"`
	}
	if err = errors.Join(err, json.Unmarshal([]byte(out), &entries)); err != nil {
		m.t.Fatalf("reading the ledger: %v\n%s", err, out)
	}
	ids := map[string]bool{}
	for _, e := range entries {
		ids[e.Data.Instance.ID] = true
	}
	return ids
}

// rollouts changes the app's configuration and goes back, over and over.
type rollouts struct {
	stop context.CancelFunc
	done sync.WaitGroup
	ends map[int]int // exit status to how often
	odd  []string    // what those said last that ended otherwise than for want of a server
}

// nothingToGoBackTo is what a rollback says, rightly, when kills kept every change since the first from reaching the server.
const nothingToGoBackTo = "no earlier generation completed with another release"

func startRollouts(ctx context.Context, m *machine) *rollouts {
	ctx, stop := context.WithCancel(ctx)
	r := &rollouts{stop: stop, ends: map[int]int{}}
	r.done.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			out, err := m.change(context.WithoutCancel(ctx), n)
			status := 0
			if e, ok := errors.AsType[*exec.ExitError](err); ok {
				status = e.ExitCode()
			}
			r.ends[status]++
			if status != 0 && !strings.Contains(out, "the server") && !strings.Contains(out, nothingToGoBackTo) {
				r.odd = append(r.odd, fmt.Sprintf("exit status %d:\n%s", status, out))
			}
		}
	})
	return r
}

// change is the nth: of the page's configuration, of the catalog's, or a rollback.
func (m *machine) change(ctx context.Context, n int) (string, error) {
	switch n % 3 {
	case 0:
		return m.invar(ctx, "rollback", "staging", "--yes")
	case 1:
		m.replaceLine(`default     = "`, fmt.Sprintf("  default     = \"Welcome, visitor %d\"", n))
	case 2:
		m.replaceLine("ROUND =", fmt.Sprintf("  env      = { ROUND = \"%d\" }", n))
	}
	return m.invar(ctx, "-C", m.app, "apply", "staging", "--yes")
}

// replaceLine replaces the line with the text.
func (m *machine) replaceLine(text, line string) {
	file := filepath.Join(m.app, "invar.hcl")
	b, err := os.ReadFile(file)
	if err != nil {
		m.t.Error(err)
		return
	}
	lines := strings.Split(string(b), "\n")
	for i, l := range lines {
		if strings.Contains(l, text) {
			lines[i] = line
		}
	}
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		m.t.Error(err)
	}
}

func (r *rollouts) end() {
	r.stop()
	r.done.Wait()
}

// settle waits until all that runs is the head, and holds the host against it.
func (m *machine) settle() {
	m.t.Helper()
	m.replaceLine(`default     = "`, `  default     = "The end"`)
	if out, err := m.invar(m.t.Context(), "-C", m.app, "apply", "staging", "--yes"); err != nil {
		m.t.Fatalf("the last apply: %v\n%s", err, out)
	}
	var env api.Environment
	m.poll("convergence", func() bool {
		env = m.environment()
		return env.State == api.Completed && env.Healthy == env.Wanted && env.Total == env.Wanted
	})
	if env.Wanted != 6 {
		m.t.Errorf("%d instances wanted, want 6", env.Wanted)
	}
	m.observe()
	var live []string
	for _, i := range env.Instances {
		if i.Phase != "gone" {
			live = append(live, i.ID)
		}
	}
	slices.Sort(live)
	for kind, ids := range m.host.instances() {
		if slices.Sort(ids); !slices.Equal(ids, live) {
			m.t.Errorf("%s on the host: %v\nwant %v", kind, ids, live)
		}
	}
}

// verify verifies the ledger offline, and folds it anew in the next server.
func (m *machine) verify() {
	m.t.Helper()
	before := m.environment()
	m.server.cmd.Process.Signal(syscall.SIGTERM)
	m.poll("the end of the server", func() bool { return syscall.Kill(m.server.cmd.Process.Pid, 0) != nil })
	dir := filepath.Join(m.dir, "copy")
	if out, err := exec.Command("cp", "-r", m.host.data, dir).CombinedOutput(); err != nil {
		m.t.Fatalf("copying: %v\n%s", err, out)
	}
	out, err := m.invar(m.t.Context(), "ledger", "verify", dir)
	if err != nil || !strings.Contains(out, "ok: ") {
		m.t.Errorf("verifying a copy: %v\n%s", err, out)
	}
	m.t.Log(strings.TrimSpace(out))
	m.serve()
	m.observe()
	if after := m.environment(); after.Generation != before.Generation || after.Release != before.Release || after.State != before.State {
		m.t.Errorf("after a restart: generation %d, release %s, %s; was %d, %s, %s",
			after.Generation, after.Release, after.State, before.Generation, before.Release, before.State)
	}
}

// stop stops everything: nothing may be left.
func (m *machine) stop() {
	m.t.Helper()
	if out, err := m.invar(m.t.Context(), "server", "stop", "--data", m.host.data); err != nil {
		m.t.Errorf("stopping: %v\n%s", err, out)
	}
	var left []string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if left = m.host.leftovers(); len(left) == 0 {
			return
		}
	}
	m.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

func spread(d []time.Duration) string {
	return fmt.Sprintf("p50 %v, max %v (%d kills)", median(d).Round(time.Millisecond/10), slices.Max(d).Round(time.Millisecond/10), len(d))
}
