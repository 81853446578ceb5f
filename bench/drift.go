package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/invarhq/invar/digest"
)

// benchDrift measures what measuring costs.
func benchDrift(ctx context.Context, b *bench) error {
	if err := b.inspectionCost(ctx); err != nil {
		return err
	}
	return b.hashSpeed(ctx)
}

// inspectionCost compares the server's own processor time with and without looking at 100 instances at the default interval. Scans for
// processes from outside go on in both, and are measured by their own benchmark, on the same number of instances.
func (b *bench) inspectionCost(ctx context.Context) error {
	scan, err := b.scanShare(ctx) // before the server has its own hundred
	if err != nil {
		return err
	}
	d, err := b.newDaemon(ctx)
	if err != nil {
		return err
	}
	app, err := b.shop(`min_healthy_time = "1s"`, `min_healthy_time = "0s"`, "replicas = 2", "replicas = 99")
	if err != nil {
		return err
	}
	if _, err := d.run(ctx, app, "apply", benchEnv, "--yes"); err != nil {
		return err
	}
	window := time.Duration(b.pick(60, 10)) * time.Second
	var with, without sample
	for range b.pick(3, 1) {
		for _, v := range []struct {
			to   *sample
			args []string
		}{{&without, []string{"--inspect", "0"}}, {&with, nil}} {
			if err := d.stop(syscall.SIGTERM); err != nil {
				return err
			}
			d.args = v.args
			if _, err := d.start(ctx); err != nil {
				return err
			}
			share, err := d.busy(ctx, 10*time.Second, window)
			if err != nil {
				return err
			}
			v.to.add(share)
		}
	}
	looks := with.p50() - without.p50()
	b.note("100 instances of examples/shop, each checked by HTTP every second; %v of the server's own time with and without looks, %d rounds in turn", window, len(with))
	b.row("comparing 100 instances with their release, every 3 s", percent(looks), "", 0, target{})
	b.row("scans for processes from outside, every second, 100 instances", percent(scan), "", 0, target{})
	b.row("both: continuous measuring, of one core", percent(looks+scan), "", 0, atMost(looks+scan, 2, " %"))
	b.row("  the server as a whole, with and without comparing", percent(with.p50())+" and "+percent(without.p50()), "", 0, target{})
	return nil
}

func percent(v float64) string { return number(v) + " %" }

// busy returns how much of one core the server's process used during a window, in percent.
func (d *daemon) busy(ctx context.Context, settle, window time.Duration) (float64, error) {
	if err := pause(ctx, settle); err != nil {
		return 0, err
	}
	began := time.Now()
	before := processorTime(d.cmd.Process.Pid)
	if err := pause(ctx, window); err != nil {
		return 0, err
	}
	return 100 * float64(processorTime(d.cmd.Process.Pid)-before) / float64(time.Since(began)), nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var scanLine = regexp.MustCompile(`(?m)^BenchmarkInspect/scan\S*\s.*?([0-9.e+]+) cpu-µs/instance`)

// scanShare returns how much of one core the scans for processes from outside take at 100 instances, in percent.
func (b *bench) scanShare(ctx context.Context) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := command(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkInspect$/^scan$", "-benchtime", fmt.Sprintf("%dx", b.pick(200, 20)), "./runtime/local")
	cmd.Dir = filepath.Clean(b.repo)
	out, err := outputOf(cmd)
	if err != nil {
		return 0, err
	}
	m := scanLine.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("no result in:\n%s", out)
	}
	micros, err := strconv.ParseFloat(m[1], 64)
	return 100 * 100 * micros / 1e6, err
}

// hashSpeed compares the full hash of a root with sha256sum, on one file that is in memory.
func (b *bench) hashSpeed(ctx context.Context) error {
	if _, err := exec.LookPath("sha256sum"); err != nil {
		return skip{"sha256sum is not on this machine"}
	}
	path := filepath.Join(b.dir, "root.erofs")
	size := int64(b.pick(512, 64)) << 20
	if err := fillFile(path, size); err != nil {
		return err
	}
	var ours, theirs sample
	rate := func(began time.Time) float64 { return float64(size) / 1e6 / time.Since(began).Seconds() }
	for range b.n {
		began := time.Now()
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		_, _, err = digest.OfReader(f)
		f.Close()
		if err != nil {
			return err
		}
		ours.add(rate(began))
		began = time.Now()
		if _, err := output(ctx, "sha256sum", path); err != nil {
			return err
		}
		theirs.add(rate(began))
	}
	ratio := ratios(ours, theirs).p50()
	b.row(fmt.Sprintf("full hash of a root of %d MiB; peer: sha256sum", size>>20), ours.rate("MB/s"), theirs.rate("MB/s"), ratio, atLeast(ratio, 1, " ×"))
	return nil
}

func fillFile(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.Reader, size)
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}
