package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer/system"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime/local/wire"
)

// command is a container of an OCI runtime's command line, as of gVisor's runsc.
type command struct {
	program string
	root    string // the runtime's state directory
	id      string
	made    made // the sandbox's process
	exits   *exitWatch
	cgroups map[string]string
}

// createTimeout bounds one call of the runtime.
const createTimeout = 30 * time.Second

func newCommand(r *record) *command {
	return &command{program: r.create.Runtime, root: filepath.Join(r.launcher.dir, "oci-runtime"), id: r.id}
}

func createWithCommand(r *record) (engine, error) {
	c := newCommand(r)
	stdout, stderr, err := r.logs.open()
	if err != nil {
		return nil, err
	}
	defer stdout.Close()
	defer stderr.Close()
	if err := c.loadSpec(r); err != nil {
		return nil, err
	}
	pidFile := filepath.Join(r.bundle(), "pid")
	ctx, cancel := context.WithTimeout(context.Background(), createTimeout)
	defer cancel()
	log := filepath.Join(r.bundle(), "runtime.log")
	cmd := c.cmd(ctx, "--log", log, "create", "--bundle", r.bundle(), "--pid-file", pidFile, c.id)
	cmd.Stdout, cmd.Stderr = stdout, stderr // the sandbox keeps them
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(log)
		return nil, errors.Join(fmt.Errorf("%s create: %w: %s", c.program, err, lastLine(said)), c.destroy())
	}
	return c, c.noteSandbox(r, pidFile)
}

func loadFromCommand(r *record) (engine, error) {
	c := newCommand(r)
	if err := c.loadSpec(r); err != nil {
		return nil, err
	}
	if err := readJSON(filepath.Join(r.bundle(), "container.json"), &c.made); err != nil {
		return nil, err
	}
	var err error
	c.exits, err = c.made.watch()
	return c, err
}

func (c *command) loadSpec(r *record) error {
	var spec specs.Spec
	if err := readJSON(filepath.Join(r.bundle(), "config.json"), &spec); err != nil {
		return err
	}
	c.made.Process = *spec.Process
	c.cgroups = map[string]string{
		"memory": filepath.Join("/sys/fs/cgroup/memory", spec.Linux.CgroupsPath),
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		c.cgroups = map[string]string{"": filepath.Join("/sys/fs/cgroup", spec.Linux.CgroupsPath)}
	}
	return nil
}

// noteSandbox notes the sandbox's process, as complete does a container's.
func (c *command) noteSandbox(r *record, pidFile string) error {
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	if c.made.PID, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
		return fmt.Errorf("reading the sandbox's PID: %w", err)
	}
	if c.exits, err = watchExit(c.made.PID); err != nil {
		return err
	}
	stat, err := system.Stat(c.made.PID)
	if err != nil {
		return err
	}
	c.made.StartTime = stat.StartTime
	return writeJSON(filepath.Join(r.bundle(), "container.json"), c.made)
}

// cmd calls the runtime: --network=host is the instance's own network namespace, since its own network stack would have a
// loopback that no socket of ours reaches.
func (c *command) cmd(ctx context.Context, args ...string) *exec.Cmd {
	global := []string{"--root", c.root, "--network=host", "--host-uds=none", "--overlay2=none"}
	return exec.CommandContext(ctx, c.program, append(global, args...)...)
}

func (c *command) run(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), createTimeout)
	defer cancel()
	out, err := c.cmd(ctx, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", c.program, args[0], err, lastLine(out))
	}
	return nil
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

func (c *command) pid() int     { return c.made.PID }
func (c *command) start() error { return c.run("start", c.id) }
func (c *command) oom() bool    { return oomKilled(c.cgroups) }

func (c *command) signal(s unix.Signal) error {
	return c.run("kill", c.id, strconv.Itoa(int(s)))
}

// wait asks the runtime, which answers when the container has ended. A sandbox that ends before it has answered has
// the container's exit code itself.
func (c *command) wait() exit {
	out, err := c.cmd(context.Background(), "wait", c.id).Output()
	var said struct {
		ExitStatus int `json:"exitStatus"`
	}
	if err == nil {
		err = json.Unmarshal(bytes.TrimSpace(out), &said)
	}
	if err != nil {
		return c.exits.wait()
	}
	return exit{code: said.ExitStatus, at: time.Now()}
}

func (c *command) destroy() error {
	if c.exits != nil {
		defer c.exits.close()
	}
	return c.run("delete", "--force", c.id)
}

// session is not to be had: the runtime's own command line would have to pass a terminal on.
func (c *command) session(wire.Session) (*session, error) {
	return nil, fault.Errorf(fault.Invalid, "an instance with isolation = %q can have no sessions", "gvisor")
}

func (c *command) exec(e wire.Exec) (*wire.ExecResult, error) {
	ctx, cancel := context.WithTimeout(context.Background(), e.Timeout)
	defer cancel()
	user := fmt.Sprintf("%d:%d", c.made.Process.User.UID, c.made.Process.User.GID)
	args := append([]string{"exec", "--user", user, "--cwd", c.made.Process.Cwd, c.id}, e.Args...)
	out, err := c.cmd(ctx, args...).CombinedOutput()
	result := &wire.ExecResult{TimedOut: ctx.Err() != nil, Output: string(out[:min(len(out), maxOutput)])}
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		result.ExitCode = failed.ExitCode()
		return result, nil
	}
	return result, err
}
