package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	_ "github.com/opencontainers/cgroups/devices" // without it, no device rules can be set
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runc/libcontainer/system"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime/local/wire"
)

// container is libcontainer's.
type container struct {
	made  made
	exits *exitWatch
	load  func() (*libcontainer.Container, error) // once, when it is needed: reading its state takes milliseconds
}

// made is what a later launcher must know of a container to watch it. It is written when the container is complete.
type made struct {
	PID       int           `json:"pid"`        // of the first process, on the host
	StartTime uint64        `json:"start_time"` // of that process, in clock ticks since the machine's start: a PID is used again
	Process   specs.Process `json:"process"`
}

// maxOutput is how much of a command's output is kept.
const maxOutput = 4 << 10

// createContainer makes the container with its first process waiting.
func createContainer(r *record) (_ engine, err error) {
	var spec specs.Spec
	if err := json.Unmarshal(r.create.OCI, &spec); err != nil {
		return nil, fault.As(fault.Invalid, fmt.Errorf("decoding the OCI configuration: %w", err))
	}
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: r.id, Spec: &spec})
	if err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	c, err := libcontainer.Create(r.launcher.stateDir(), r.id, config)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Destroy())
		}
	}()
	p := process(*spec.Process, spec.Process.Args)
	p.Init = true
	stdout, stderr, err := r.logs.open()
	if err != nil {
		return nil, err
	}
	defer stdout.Close()
	defer stderr.Close()
	p.Stdout, p.Stderr = stdout, stderr
	if err := c.Start(p); err != nil {
		return nil, err
	}
	return complete(r, c, *spec.Process)
}

// complete notes what was made.
func complete(r *record, c *libcontainer.Container, p specs.Process) (engine, error) {
	state, err := c.State()
	if err != nil {
		return nil, err
	}
	exits, err := watchExit(state.InitProcessPid)
	if err != nil {
		return nil, err
	}
	m := made{PID: state.InitProcessPid, StartTime: state.InitProcessStartTime, Process: p}
	if err := writeJSON(filepath.Join(r.bundle(), "container.json"), m); err != nil {
		return nil, err
	}
	return &container{made: m, exits: exits, load: func() (*libcontainer.Container, error) { return c, nil }}, nil
}

// loadContainer finds a container that an earlier launcher made.
func loadContainer(r *record) (engine, error) {
	c := &container{load: sync.OnceValues(func() (*libcontainer.Container, error) { return libcontainer.Load(r.launcher.stateDir(), r.id) })}
	if err := readJSON(filepath.Join(r.bundle(), "container.json"), &c.made); err != nil {
		return nil, err
	}
	var err error
	c.exits, err = c.made.watch()
	return c, err
}

// watch watches the process that was made, not one that has its PID now.
func (m made) watch() (*exitWatch, error) {
	w, err := watchExit(m.PID)
	if err != nil {
		return nil, err
	}
	// Asked after the descriptor was opened: it is of the process that has this time.
	if stat, err := system.Stat(m.PID); err != nil || stat.StartTime != m.StartTime {
		w.close()
		return lostExit(), nil
	}
	return w, nil
}

func (l *launcher) stateDir() string { return filepath.Join(l.dir, "state") }

func process(p specs.Process, args []string) *libcontainer.Process {
	out := &libcontainer.Process{
		Args: args, Env: p.Env, Cwd: p.Cwd,
		UID: int(p.User.UID), GID: int(p.User.GID),
		NoNewPrivileges: &p.NoNewPrivileges,
	}
	for _, g := range p.User.AdditionalGids {
		out.AdditionalGroups = append(out.AdditionalGroups, int(g))
	}
	for _, limit := range p.Rlimits {
		if kind, ok := rlimits[limit.Type]; ok {
			out.Rlimits = append(out.Rlimits, configs.Rlimit{Type: kind, Hard: limit.Hard, Soft: limit.Soft})
		}
	}
	return out
}

// rlimits are those that the host sets.
var rlimits = map[string]int{"RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE}

func (c *container) pid() int   { return c.made.PID }
func (c *container) wait() exit { return c.exits.wait() }

func (c *container) start() error {
	box, err := c.load()
	if err != nil {
		return err
	}
	return box.Exec()
}

// signal signals the first process. SIGKILL to it kills all others of its PID namespace.
func (c *container) signal(s unix.Signal) error { return c.exits.signal(s) }

func (c *container) oom() bool {
	box, err := c.load()
	if err != nil {
		return false
	}
	state, err := box.State()
	return err == nil && oomKilled(state.CgroupPaths)
}

func (c *container) destroy() error {
	defer c.exits.close()
	box, err := c.load()
	if err != nil {
		return err
	}
	if state, err := box.State(); err == nil {
		if err := killMembers(state.CgroupPaths); err != nil {
			return err
		}
	}
	return box.Destroy()
}

// exec runs a command in the container's namespaces and limits, as its user.
func (c *container) exec(e wire.Exec) (*wire.ExecResult, error) {
	box, err := c.load()
	if err != nil {
		return nil, err
	}
	p := process(c.made.Process, e.Args)
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.Stdout, p.Stderr = in, in
	err = box.Run(p)
	in.Close()
	if err != nil {
		return nil, err
	}
	timer := time.AfterFunc(e.Timeout, func() { p.Signal(unix.SIGKILL) })
	text := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(out, maxOutput))
		text <- b
		io.Copy(io.Discard, out)
	}()
	state, err := p.Wait()
	timedOut := !timer.Stop()
	if state == nil {
		return nil, err
	}
	out.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // what it left running may hold the pipe open
	status := state.Sys().(interface {
		Exited() bool
		ExitStatus() int
	})
	result := &wire.ExecResult{ExitCode: -1, TimedOut: timedOut, Output: string(<-text)}
	if status.Exited() {
		result.ExitCode = status.ExitStatus()
	}
	return result, nil
}
