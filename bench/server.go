package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image/registry"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/store"
	"github.com/invarhq/invar/store/sqlite"
)

func benchServer(ctx context.Context, b *bench) error {
	d, err := b.newDaemon(ctx)
	if err != nil {
		return err
	}
	app, err := b.shop(`min_healthy_time = "1s"`, `min_healthy_time = "0s"`)
	if err != nil {
		return err
	}
	if _, err := d.run(ctx, app, "apply", benchEnv, "--yes"); err != nil {
		return err
	}
	if err := d.memory(ctx, "3 instances, few entries"); err != nil {
		return err
	}
	few, err := d.restarts(ctx, syscall.SIGTERM, nil)
	if err != nil {
		return err
	}
	entries := b.pick(100_000, 5_000)
	if err := d.fill(ctx, int64(entries)); err != nil {
		return err
	}
	name := number(float64(entries)) + " entries"
	b.row("start to API, few entries", few.ms(), "", 0, target{})
	for _, v := range []struct {
		what   string
		signal syscall.Signal
		before func(context.Context) error
	}{
		{"after a clean stop", syscall.SIGTERM, nil},
		{"after SIGKILL", syscall.SIGKILL, nil},
		{"without a snapshot: every entry folded", syscall.SIGKILL, d.forgetSnapshot},
	} {
		took, err := d.restarts(ctx, v.signal, v.before)
		if err != nil {
			return err
		}
		b.row(fmt.Sprintf("start to API, %s, %s", name, v.what), took.ms(), "", 0, target{})
	}
	if err := d.memory(ctx, "3 instances, "+name); err != nil {
		return err
	}
	if err := edit(app, "replicas = 2", "replicas = 59"); err != nil {
		return err
	}
	began := time.Now()
	if _, err := d.run(ctx, app, "apply", benchEnv, "--yes"); err != nil {
		return err
	}
	b.row("apply of 57 more instances, the whole command", fmt.Sprintf("%s s", number(time.Since(began).Seconds())), "", 0, target{})
	return d.memory(ctx, "60 instances, "+name)
}

// memory adds a row with the resident memory of each process, some seconds after the last work.
func (d *daemon) memory(ctx context.Context, when string) error {
	select {
	case <-time.After(time.Duration(d.pick(5, 1)) * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	launcher, err := d.launchers()
	if err != nil {
		return err
	}
	d.row("resident, "+when, fmt.Sprintf("server %s, gateway %s, launcher %s MiB", number(resident(d.cmd.Process.Pid)), number(resident(d.pid)), number(resident(launcher...))), "", 0, target{})
	return nil
}

// launchers finds the launcher's processes by their cgroup, which is named after the data directory (package runtime/local).
func (d *daemon) launchers() ([]int, error) {
	sum := sha256.Sum256([]byte(d.data))
	group := "/invar-" + hex.EncodeToString(sum[:6]) + "/_launcher"
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range files {
		if strings.Contains(read(f), group) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// restarts ends the server's process and starts it again, some times. Instances and gateway run on.
func (d *daemon) restarts(ctx context.Context, signal syscall.Signal, before func(context.Context) error) (sample, error) {
	var took sample
	for range d.pick(min(d.n, 10), 2) {
		if err := d.stop(signal); err != nil {
			return nil, err
		}
		if before != nil {
			if err := before(ctx); err != nil {
				return nil, err
			}
		}
		one, err := d.start(ctx)
		if err != nil {
			return nil, err
		}
		took.took(one)
	}
	return took, nil
}

func (d *daemon) forgetSnapshot(ctx context.Context) error {
	s, err := sqlite.Open(ctx, d.data)
	if err != nil {
		return err
	}
	defer s.Close()
	return s.PutSnapshot(ctx, store.Snapshot{})
}

// fill stops the server, and adds entries as the server itself would: an instance that fails and passes its checks, again and again. Nothing is
// evaluated meanwhile.
func (d *daemon) fill(ctx context.Context, size int64) (err error) {
	if err := d.stop(syscall.SIGTERM); err != nil {
		return err
	}
	s, err := sqlite.Open(ctx, d.data)
	if err != nil {
		return err
	}
	defer s.Close()
	signer, verifier, err := ledger.ParseKey(strings.TrimSpace(read(filepath.Join(d.data, "keys", "ledger.key"))))
	if err != nil {
		return err
	}
	blobs, err := registry.Open(filepath.Join(d.data, "oci"))
	if err != nil {
		return err
	}
	evaluate := func(context.Context, io.Reader, spec.EnvName, release.Bundle, digest.Digest, release.Pins) (release.Record, spec.EnvName, error) {
		return release.Record{}, "", fault.Errorf(fault.Unavailable, "nothing is evaluated here")
	}
	c, err := control.Open(ctx, control.Config{Store: s, Blobs: blobs, Evaluate: evaluate, Origin: signer.Name(), Signer: signer, Verifier: verifier,
		VKey: strings.TrimSpace(read(filepath.Join(d.data, "keys", "ledger.pub"))), Version: "bench"})
	if err != nil {
		return err
	}
	for err == nil && c.State().Size() < size {
		err = flap(ctx, c)
	}
	if e := c.Close(ctx); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	s.Close()
	info, err := os.Stat(filepath.Join(d.data, "ledger.db"))
	if err != nil {
		return err
	}
	d.note("ledger of %d entries: %d MB", size, info.Size()/1e6)
	_, err = d.start(ctx)
	return err
}

// flap records 100 failures and recoveries of one instance.
func flap(ctx context.Context, c *control.Service) error {
	env, err := c.State().Environment(benchEnv)
	if err != nil {
		return err
	}
	var steps []deploy.Step
	for id, i := range env.Instances {
		if i.Healthy() {
			for range 100 {
				steps = append(steps, deploy.Step{Kind: deploy.Failing, ID: id, Cause: "the check timed out"}, deploy.Step{Kind: deploy.Healthy, ID: id})
			}
			return c.Record(ctx, benchEnv, env.Seq, steps)
		}
	}
	return fmt.Errorf("no healthy instance in %s", benchEnv)
}
