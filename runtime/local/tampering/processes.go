package tampering

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Inject starts the target's command that stays by nsenter, with the options that say which namespaces it enters. Where the instance's
// mounts are not among them, cat does the same.
func Inject(options ...string) Act {
	return func(t Target) (func(), error) {
		command := []string{"cat"}
		for _, o := range options {
			if o == "--all" || o == "--mount" {
				command = t.Stays
			}
		}
		args := append([]string{"--target", strconv.Itoa(t.PID)}, options...)
		return stay(exec.Command("nsenter", append(args, command...)...))
	}
}

// stay starts a command that ends with its input.
func stay(cmd *exec.Cmd) (func(), error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", cmd.Path, errors.Join(err, in.Close()))
	}
	return func() {
		in.Close()
		cmd.Process.Kill() // where it does not read
		cmd.Wait()
	}, nil
}

// JoinCgroup starts a process and moves it into the instance's cgroups.
func JoinCgroup(t Target) (func(), error) {
	dirs, err := t.groups()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("cat")
	undo, err := stay(cmd)
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			undo()
			return nil, err
		}
	}
	return undo, nil
}

// JoinNetwork has one thread of this process enter the instance's network, and stay there.
func JoinNetwork(t Target) (func(), error) {
	ns, err := unix.Open(t.proc("ns/net"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return hold(func() (func(), error) {
		defer unix.Close(ns)
		return nothing, os.NewSyscallError("setns", unix.Setns(ns, unix.CLONE_NEWNET))
	})
}

// Trace attaches to the first process as a debugger does, without stopping it.
func Trace(t Target) (func(), error) {
	return hold(func() (func(), error) {
		return nothing, os.NewSyscallError("ptrace", unix.PtraceSeize(t.PID)) // the kernel detaches when the thread ends
	})
}

// hold begins something on a thread of its own, which lives until it is undone.
func hold(begin func() (end func(), err error)) (undo func(), err error) {
	begun, release, gone := make(chan error, 1), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		onThread(func() error {
			end, err := begin()
			begun <- err
			if err != nil {
				return err
			}
			<-release
			end()
			return nil
		})
	}()
	if err := <-begun; err != nil {
		<-gone
		return nil, err
	}
	return func() { close(release); <-gone }, nil
}

// onThread runs act on a thread that ends afterwards, whatever act changed about it. The process's first thread can't end: when act would run
// there, that thread is held until another one has run it.
func onThread(act func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(act)
			runtime.UnlockOSThread()
			return
		}
		done <- act() // without unlocking: the thread ends
	}()
	return <-done
}
