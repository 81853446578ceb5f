package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/local/wire"
)

// An instance that has started is checked often at first, so that it gets traffic milliseconds after it can take it: every
// firstInterval, slowing down to lastInterval, for eagerFor or until it passes once. Failures in that time don't count.
const (
	firstInterval = 2 * time.Millisecond
	lastInterval  = 50 * time.Millisecond
	eagerFor      = time.Second
)

// defaultHealth is of a spec that names no check: all ports accept.
var defaultHealth = runtime.Health{Interval: 5 * time.Second, Timeout: time.Second, Failures: 3}

// checker checks one instance, one check at a time.
type checker struct {
	host  *Host
	i     *inst
	what  runtime.Health
	ports []int
	netns string
	http  *http.Client
}

// beginChecks starts to check a running instance. The caller holds mu.
func (h *Host) beginChecks(i *inst) {
	if h.closing.Err() != nil || h.freezer(i.spec.Identity.ID).frozen() {
		return
	}
	ctx, cancel := context.WithCancel(h.closing)
	i.checks = cancel
	c := &checker{host: h, i: i, what: defaultHealth, netns: h.nets.path(string(i.spec.Identity.ID))}
	if i.spec.Health != nil {
		c.what = *i.spec.Health
		c.what.Interval = cmp.Or(c.what.Interval, defaultHealth.Interval)
		c.what.Timeout = cmp.Or(c.what.Timeout, defaultHealth.Timeout)
		c.what.Failures = cmp.Or(c.what.Failures, defaultHealth.Failures)
		c.ports = []int{c.what.Port}
	} else {
		c.ports = i.spec.Ports
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialIn(ctx, c.netns, c.what.Port)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	h.loops.Go(func() { c.run(ctx) })
}

// run checks until ctx ends.
func (c *checker) run(ctx context.Context) {
	failed := 0
	wait := firstInterval
	for eagerUntil := time.Now().Add(eagerFor); ; {
		err := c.check(ctx)
		if ctx.Err() != nil {
			return
		}
		eager := time.Now().Before(eagerUntil)
		switch {
		case err == nil:
			failed, eagerUntil, eager = 0, time.Time{}, false
			c.host.setHealth(c.i, instance.Passing, "")
		case eager:
			c.host.setDetail(c.i, err.Error())
		default:
			failed++
			if failed >= c.what.Failures {
				c.host.setHealth(c.i, instance.Failing, err.Error())
			}
		}
		pause := c.what.Interval
		if eager {
			pause = min(wait, c.what.Interval)
			wait = min(wait*3/2, lastInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (c *checker) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.what.Timeout)
	defer cancel()
	switch {
	case len(c.what.Exec) > 0:
		return c.exec(ctx)
	case c.what.HTTPPath != "":
		return c.get(ctx)
	}
	for _, port := range c.ports {
		conn, err := dialIn(ctx, c.netns, port)
		if err != nil {
			return fmt.Errorf("port %d: %w", port, err)
		}
		conn.Close()
	}
	return nil
}

func (c *checker) get(ctx context.Context) error {
	url := fmt.Sprintf("http://localhost:%d%s", c.what.Port, c.what.HTTPPath)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("User-Agent", "invar-health/1")
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10))
	if response.StatusCode < 200 || response.StatusCode > 399 {
		return fmt.Errorf("GET %s: %s", c.what.HTTPPath, response.Status)
	}
	return nil
}

func (c *checker) exec(ctx context.Context) error {
	// The launcher ends the command at the timeout; this waits a little longer for it to say so.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.what.Timeout+time.Second)
	defer cancel()
	response, err := c.host.launcher.call(ctx, wire.Request{Op: wire.OpExec, ID: string(c.i.spec.Identity.ID),
		Exec: &wire.Exec{Args: c.what.Exec, Timeout: c.what.Timeout}})
	if err != nil {
		return err
	}
	switch r := response.Exec; {
	case r == nil:
		return errors.New("the launcher told no result")
	case r.TimedOut:
		return fmt.Errorf("%s: no result after %v", c.what.Exec[0], c.what.Timeout)
	case r.ExitCode != 0 && c.i.spec.HasSecrets():
		// What it says of itself goes into the ledger, for good; and it can read them.
		return fmt.Errorf("%s: exit code %d; what it wrote is not kept, since the instance has secrets", c.what.Exec[0], r.ExitCode)
	case r.ExitCode != 0:
		return fmt.Errorf("%s: exit code %d: %s", c.what.Exec[0], r.ExitCode, strings.TrimSpace(r.Output))
	}
	return nil
}

func (h *Host) setHealth(i *inst, health instance.Health, detail string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i.seen.State != instance.Running {
		return
	}
	if i.seen.Health != health {
		i.seen.Health, i.seen.Since, i.seen.Detail = health, time.Now(), detail
		h.note()
	}
	i.seen.Detail = detail
}

// setDetail says why there is no result yet; that alone is no change.
func (h *Host) setDetail(i *inst, detail string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i.seen.State == instance.Running {
		i.seen.Detail = detail
	}
}

// Check runs a command in a running instance, as its user and within its limits, and returns its exit code and the
// beginning of what it wrote. It is for checks; for what a person runs there is Exec.
func (h *Host) Check(ctx context.Context, id instance.ID, args []string, timeout time.Duration) (code int, output string, err error) {
	if len(args) == 0 {
		return 0, "", fault.Errorf(fault.Invalid, "running a command in instance %s: no command", id)
	}
	response, err := h.launcher.call(ctx, wire.Request{Op: wire.OpExec, ID: string(id), Exec: &wire.Exec{Args: args, Timeout: timeout}})
	if err != nil {
		return 0, "", err
	}
	return response.Exec.ExitCode, response.Exec.Output, nil
}
