package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/invarhq/invar/api/client"
)

// daemon is an invar server on a data directory of its own.
type daemon struct {
	*bench
	data    string
	cmd     *exec.Cmd
	ended   chan struct{}
	log     *os.File
	client  *client.Client
	gateway string   // address of its HTTP gateway
	pid     int      // of the gateway
	args    []string // of the server, beside those of every one
}

// newDaemon starts a server. When the section ends, `invar server stop` retires all that it runs.
func (b *bench) newDaemon(ctx context.Context) (_ *daemon, err error) {
	d := &daemon{bench: b, data: filepath.Join(b.dir, "data")}
	if d.log, err = os.Create(filepath.Join(b.dir, "server.log")); err != nil {
		return nil, err
	}
	b.defers(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := quiet(ctx, d.log, b.invar(), "server", "stop", "--data", d.data); err != nil {
			b.note("stopping the server: %v", err)
		}
		d.await()
		d.log.Close()
	})
	_, err = d.start(ctx)
	return d, err
}

func (d *daemon) socket() string { return "unix://" + filepath.Join(d.data, "invar.sock") }

// start starts the server's process, and returns how long it took until the API answered.
func (d *daemon) start(ctx context.Context) (time.Duration, error) {
	d.cmd = exec.Command(d.invar(), append([]string{"server", "--data", d.data, "--listen", "", "--gateway", "127.0.0.1:0", "--gateway-tls", ""}, d.args...)...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	began := time.Now()
	if err := d.cmd.Start(); err != nil {
		return 0, err
	}
	d.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) { cmd.Wait(); close(ended) }(d.cmd, d.ended)
	var err error
	if d.client, err = client.New(d.socket(), client.Options{}); err != nil {
		return 0, err
	}
	for deadline := time.After(time.Minute); ; {
		info, err := d.client.Server(ctx)
		if err == nil {
			took := time.Since(began)
			d.gateway, d.pid = info.Gateway.HTTP, info.Gateway.PID
			return took, nil
		}
		select {
		case <-d.ended:
			return 0, fmt.Errorf("the server ended: %v\n%s", d.cmd.ProcessState, tail(read(d.log.Name()), 10))
		case <-deadline:
			return 0, fmt.Errorf("the server does not answer: %w", err)
		case <-time.After(time.Millisecond):
		}
	}
}

// stop ends the server's process, and nothing else: instances and gateway run on.
func (d *daemon) stop(signal syscall.Signal) error {
	if err := d.cmd.Process.Signal(signal); err != nil {
		return err
	}
	d.await()
	d.client.Close()
	return nil
}

func (d *daemon) await() {
	select {
	case <-d.ended:
	case <-time.After(20 * time.Second):
		d.cmd.Process.Kill()
		<-d.ended
	}
}

// run runs a command of invar on an app's directory, and returns what it wrote to stdout.
func (d *daemon) run(ctx context.Context, app string, args ...string) (string, error) {
	return output(ctx, d.invar(), append([]string{"-C", app, "--server", d.socket(), "--no-color"}, args...)...)
}

// shop copies the sample app, changed by pairs of old and new text.
func (b *bench) shop(changes ...string) (string, error) {
	dir := filepath.Join(b.dir, "shop")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(b.repo, "examples", "shop"))); err != nil {
		return "", err
	}
	return dir, edit(dir, changes...)
}

// edit replaces text in an app's configuration; all of it must be there.
func edit(dir string, changes ...string) error {
	file := filepath.Join(dir, "invar.hcl")
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text := string(raw)
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(text, changes[i]) {
			return fmt.Errorf("%s has no %q", file, changes[i])
		}
		text = strings.ReplaceAll(text, changes[i], changes[i+1])
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// resident returns the resident memory of processes in MiB.
func resident(pids ...int) float64 {
	total := 0.0
	for _, pid := range pids {
		for line := range strings.Lines(read("/proc/" + strconv.Itoa(pid) + "/status")) {
			var kib float64
			if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
				total += kib / 1024
			}
		}
	}
	return total
}
