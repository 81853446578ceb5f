package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/gateway/proxy"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

const (
	caddyModule  = "github.com/caddyserver/caddy/v2/cmd/caddy"
	caddyVersion = "v2.11.9"
	connections  = 64
)

// load is one run of wrk: requests per second, latencies in milliseconds, and the processor time of the proxy for a request in
// microseconds, which says more than the rate when others use the machine.
type load struct{ rate, p50, p99, cpu float64 }

// loads collects them.
type loads struct{ rate, p50, p99, cpu sample }

func (l *loads) add(one load) {
	l.rate.add(one.rate)
	l.p50.add(one.p50)
	l.p99.add(one.p99)
	l.cpu.add(one.cpu)
}

// benchGateway has one backend, on the host's loopback, for all. Ours enters a network namespace for each connection to it, as it
// always does; here that is the host's own.
func benchGateway(ctx context.Context, b *bench) error {
	wrk, err := b.debian(ctx, "wrk", "wrk")
	if err != nil {
		return err
	}
	caddy, err := b.goTool(ctx, caddyModule, caddyVersion, "0", "")
	if err != nil {
		return err
	}
	server, err := b.own(ctx, "serve")
	if err != nil {
		return err
	}
	backend, err := freePort()
	if err != nil {
		return err
	}
	if _, _, err := b.background(ctx, server, strconv.Itoa(backend)); err != nil {
		return err
	}
	pids := map[string]int{}
	caddyAt, caddyPID, err := b.startCaddy(ctx, caddy, backend)
	if err != nil {
		return err
	}
	logged, loggedPID, err := b.startGateway(ctx, "logged", backend, false)
	if err != nil {
		return err
	}
	unlogged, unloggedPID, err := b.startGateway(ctx, "unlogged", backend, true)
	if err != nil {
		return err
	}
	pids[caddyAt], pids[logged], pids[unlogged] = caddyPID, loggedPID, unloggedPID
	direct := net.JoinHostPort("127.0.0.1", strconv.Itoa(backend))
	b.note("peer: Caddy %s, reverse_proxy, its access log off, as it is unless told otherwise; wrk, %d connections, one thread", caddyVersion, connections)
	results := map[string]*loads{}
	targets := []string{logged, caddyAt, unlogged, direct}
	for round := range b.pick(6, 2) + 1 {
		for _, at := range targets {
			lasts := time.Duration(b.pick(3, 1)) * time.Second
			before := processorTime(pids[at])
			one, err := runWrk(ctx, wrk, at, lasts)
			if err != nil {
				return err
			}
			one.cpu = float64((processorTime(pids[at]) - before).Microseconds()) / (one.rate * lasts.Seconds())
			if results[at] == nil {
				results[at] = &loads{}
			}
			if round > 0 {
				results[at].add(one)
			}
		}
	}
	peer := results[caddyAt]
	for _, v := range []struct{ what, at string }{{"without access log", unlogged}, {"with access log, the default", logged}} {
		ours := results[v.at]
		ratio := ratios(ours.rate, peer.rate).p50()
		b.row("throughput, "+v.what, ours.rate.rate("/s"), peer.rate.rate("/s"), ratio, atLeast(ratio, 1.3, " ×"))
		b.row("  processor time of a request", ours.cpu.rate("µs"), peer.cpu.rate("µs"), ratios(ours.cpu, peer.cpu).p50(), target{})
		b.row("  p99 of a request", ours.p99.rate("ms"), peer.p99.rate("ms"), ratios(ours.p99, peer.p99).p50(), target{})
	}
	b.row("the backend without a proxy", "", results[direct].rate.rate("/s"), 0, target{})
	return nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// processorTime is what a process has used so far: proc_pid_stat(5), in ticks of 10 ms.
func processorTime(pid int) time.Duration {
	_, rest, _ := strings.Cut(read(fmt.Sprintf("/proc/%d/stat", pid)), ") ")
	var ticks time.Duration
	if f := strings.Fields(rest); len(f) > 12 {
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		ticks = time.Duration(user + system)
	}
	return ticks * 10 * time.Millisecond
}

func (b *bench) startCaddy(ctx context.Context, caddy string, backend int) (at string, pid int, err error) {
	port, err := freePort()
	if err != nil {
		return "", 0, err
	}
	file := filepath.Join(b.dir, "Caddyfile")
	text := fmt.Sprintf("{\n\tadmin off\n\tauto_https off\n\tpersist_config off\n\tstorage file_system %s\n}\nhttp://:%d {\n\tbind 127.0.0.1\n\treverse_proxy 127.0.0.1:%d\n}\n",
		filepath.Join(b.dir, "caddy"), port, backend)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return "", 0, err
	}
	cmd, _, err := b.background(ctx, caddy, "run", "--config", file, "--adapter", "caddyfile")
	if err != nil {
		return "", 0, err
	}
	at = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	return at, cmd.Process.Pid, answers(ctx, at)
}

// startGateway starts the gateway as the server does, as a process of its own, with a table of one route.
func (b *bench) startGateway(ctx context.Context, name string, backend int, noLog bool) (at string, pid int, err error) {
	dir := filepath.Join(b.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", 0, err
	}
	config := proxy.Config{Dir: dir, HTTP: "127.0.0.1:0", Version: "bench", NoAccessLog: noLog}
	g, err := proxy.Supervise(ctx, config, []string{b.invar(), "gateway"})
	if err != nil {
		return "", 0, err
	}
	b.defers(func() { g.Stop(context.Background()) })
	const host = instance.ID("host")
	table := gateway.Table{
		Backends: []gateway.Backend{{ID: host, Network: fmt.Sprintf("/proc/%d/ns/net", os.Getpid())}},
		Services: []gateway.Service{{Name: "bench/web/http", Port: backend, Pools: []gateway.Pool{{Weight: 100, Instances: []instance.ID{host}}}}},
		HTTP:     []gateway.Route{{Env: "bench", Name: spec.RouteName("web"), Host: "127.0.0.1", Path: "/", Service: "bench/web/http"}},
	}
	if err := g.Apply(ctx, table); err != nil {
		return "", 0, err
	}
	status, err := g.Status(ctx)
	if err != nil {
		return "", 0, err
	}
	return status.HTTP, status.PID, answers(ctx, status.HTTP)
}

// invar is the program as make built it.
func (b *bench) invar() string { return filepath.Join(b.repo, "bin", "invar") }

// answers waits until a server does.
func answers(ctx context.Context, at string) error {
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK && string(body) == "hello\n" {
				return nil
			}
			err = fmt.Errorf("%s: %s", resp.Status, body)
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("asking http://%s: %w", at, err)
		}
	}
}

var wrkLine = regexp.MustCompile(`(?m)^\s+(50%|99%)\s+([0-9.]+)(us|ms|s)$|^Requests/sec:\s+([0-9.]+)$|^\s+(Non-2xx.*|Socket errors.*)$`)

// runWrk asks as fast as it can. Any failed request is an error.
func runWrk(ctx context.Context, wrk, at string, lasts time.Duration) (load, error) {
	out, err := output(ctx, wrk, "-t1", fmt.Sprintf("-c%d", connections), fmt.Sprintf("-d%ds", int(lasts.Seconds())), "--latency", "http://"+at+"/")
	if err != nil {
		return load{}, err
	}
	var l load
	unit := map[string]float64{"us": 0.001, "ms": 1, "s": 1000}
	for _, m := range wrkLine.FindAllStringSubmatch(out, -1) {
		value, _ := strconv.ParseFloat(m[2], 64)
		switch {
		case m[5] != "":
			return l, fmt.Errorf("requests to %s failed: %s", at, strings.TrimSpace(m[5]))
		case m[4] != "":
			l.rate, _ = strconv.ParseFloat(m[4], 64)
		case m[1] == "50%":
			l.p50 = value * unit[m[3]]
		case m[1] == "99%":
			l.p99 = value * unit[m[3]]
		}
	}
	if l.rate == 0 {
		return l, fmt.Errorf("wrk told nothing:\n%s", out)
	}
	return l, nil
}
