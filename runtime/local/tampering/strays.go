package tampering

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/runtime/local/wire"
)

// What somebody who is root on the machine can start beside the instances, with the marks of one. A Stray is a finding of host.drift.
type Stray struct {
	Name  string
	Do    func(t Target, name string) (undo func(), err error)
	Field string // of the finding, before the name or PID
	Ended bool   // it is ended; else it is told and left alone
}

// Strays returns every kind of stray that is found.
func Strays() []Stray {
	return []Stray{
		{"an instance started over the launcher's socket", StrayInstance, "instance ", true},
		{"a process in a cgroup of its own below invar's", StrayCgroup, "cgroup ", true},
		{"a container's state among those of instances", StrayState, "state ", true},
		{"files among those of instances", StrayDirectory, "directory ", true},
		{"a process on an instance's root", StrayRoot, "process ", false},
	}
}

// StrayInstance starts another instance like the target over the launcher's socket.
func StrayInstance(t Target, name string) (func(), error) {
	request, err := t.like(name)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(t.Run, "instances", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	for _, fifo := range []string{"stdout", "stderr"} {
		if err := unix.Mkfifo(filepath.Join(dir, fifo), 0o600); err != nil {
			return nil, err
		}
	}
	conn, err := net.Dial("unix", filepath.Join(t.Run, "launcher.sock"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	r := wire.NewReader(conn)
	for _, q := range []wire.Request{request, {Op: wire.OpStart, ID: name}} {
		q.Version = wire.Version
		if err := wire.Write(conn, q); err != nil {
			return nil, err
		}
		response, err := wire.Read[wire.Response](r)
		if err := errors.Join(err, response.Err()); err != nil {
			return nil, fmt.Errorf("asking the launcher to %s %s: %w", q.Op, name, err)
		}
	}
	return nothing, nil
}

// like asks for an instance as the target is, with a cgroup and a network of its own.
func (t Target) like(name string) (wire.Request, error) {
	var create wire.Create
	var oci map[string]any
	record, err := os.ReadFile(filepath.Join(t.dir(), "oci", "launcher.json"))
	config, err2 := os.ReadFile(filepath.Join(t.dir(), "oci", "config.json"))
	if err := errors.Join(err, err2, json.Unmarshal(record, &create), json.Unmarshal(config, &oci)); err != nil {
		return wire.Request{}, fmt.Errorf("reading what %s was started with: %w", t.ID, err)
	}
	linux := oci["linux"].(map[string]any)
	linux["cgroupsPath"] = strings.Replace(linux["cgroupsPath"].(string), t.ID, name, 1)
	for _, ns := range linux["namespaces"].([]any) {
		delete(ns.(map[string]any), "path")
	}
	linux["sysctl"] = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"} // as the host has it in the networks that it makes
	create.Attempt, create.Log.Dir = "by hand", filepath.Join(t.Data, "logs", name)
	if create.OCI, err = json.Marshal(oci); err != nil {
		return wire.Request{}, err
	}
	return wire.Request{Op: wire.OpCreate, ID: name, Create: &create}, nil
}

// StrayCgroup starts a process in namespaces of its own, in a cgroup below the one of the target's host.
func StrayCgroup(t Target, name string) (func(), error) {
	groups, err := t.groups()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("unshare", "--mount", "--pid", "--net", "--fork", "cat")
	undo, err := stay(cmd)
	if err != nil {
		return nil, err
	}
	entered := 0
	for _, g := range groups {
		dir := filepath.Join(filepath.Dir(g), name)
		err = os.Mkdir(dir, 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0)
		}
		if err == nil {
			entered++
		} // a new group of v1's cpuset has no processors, and takes nobody
	}
	if entered == 0 {
		undo()
		return nil, err
	}
	return undo, nil
}

// StrayState has a process and a state as `runc --root` leaves them.
func StrayState(t Target, name string) (func(), error) {
	cmd := exec.Command("cat")
	undo, err := stay(cmd)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "stat"))
	fields := strings.Fields(string(b))
	dir := filepath.Join(t.Run, "state", name)
	if err == nil {
		err = os.Mkdir(dir, 0o711)
	}
	if err == nil {
		state := fmt.Sprintf(`{"id":%q,"init_process_pid":%d,"init_process_start":%s}`, name, cmd.Process.Pid, fields[21])
		err = os.WriteFile(filepath.Join(dir, "state.json"), []byte(state), 0o600)
	}
	if err != nil {
		undo()
		return nil, err
	}
	return undo, nil
}

// StrayDirectory makes a directory as an instance has one.
func StrayDirectory(t Target, name string) (func(), error) {
	dir := filepath.Join(t.Run, "instances", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	return nothing, os.WriteFile(filepath.Join(dir, "spec.json"), []byte("{}"), 0o600)
}

// StrayRoot starts a process whose root is the target's, mounted once more from its file, in a mount namespace of its own.
func StrayRoot(t Target, name string) (func(), error) {
	s, err := t.spec()
	if err != nil {
		return nil, err
	}
	at := filepath.Join(os.TempDir(), name)
	if err := os.Mkdir(at, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount(filepath.Join(t.Data, "roots", s.Root.Hex()+".erofs"), at, "erofs", unix.MS_RDONLY, ""); err != nil {
		return nil, errors.Join(fmt.Errorf("mounting a root once more: %w", err), os.Remove(at))
	}
	cmd := exec.Command(t.Stays[0], t.Stays[1:]...)
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: at, Unshareflags: unix.CLONE_NEWNS}
	undo, err := stay(cmd)
	away := func() {
		unix.Unmount(at, unix.MNT_DETACH)
		os.Remove(at)
	}
	if err != nil {
		away()
		return nil, err
	}
	return func() { undo(); away() }, nil
}
