package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// command prepares a command that dies with this process.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// output runs a command and returns what it wrote to stdout. Its error has what it wrote to stderr.
func output(ctx context.Context, name string, args ...string) (string, error) {
	return outputOf(command(ctx, name, args...))
}

func outputOf(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s", filepath.Base(cmd.Path), strings.Join(cmd.Args[1:], " "), err, tail(stderr.String()+stdout.String(), 20))
	}
	return stdout.String(), nil
}

// quiet runs a command to a file instead of a pipe: what it leaves running may keep the file open.
func quiet(ctx context.Context, log *os.File, name string, args ...string) error {
	cmd := command(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, tail(read(log.Name()), 10))
	}
	return nil
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// debian makes sure that a program is there, by its Debian package. A daemon that the package brings is not started.
func (b *bench) debian(ctx context.Context, program, pkg string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	b.note("installing the Debian package %s", pkg)
	install := func() error {
		cmd := command(ctx, "apt-get", "install", "-y", "-q", "--no-install-recommends", pkg)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
		_, err := outputOf(cmd)
		return err
	}
	if install() != nil {
		if _, err := output(ctx, "apt-get", "update", "-q"); err != nil {
			return "", skip{fmt.Sprintf("the package lists can't be read: %v", err)}
		}
		if err := install(); err != nil {
			return "", skip{fmt.Sprintf("%s can't be installed: %v", pkg, err)}
		}
	}
	return exec.LookPath(program)
}

// goTool builds a program of a Go module into the cache, once.
func (b *bench) goTool(ctx context.Context, module, version, cgo, tags string) (string, error) {
	name := filepath.Base(module)
	dir := filepath.Join(b.cache, name+"@"+version)
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	b.note("building %s@%s", module, version)
	cmd := command(ctx, "go", "install", "-trimpath", "-tags", tags, module+"@"+version)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED="+cgo, "GOFLAGS=")
	cmd.Dir = os.TempDir() // outside of any module
	if _, err := outputOf(cmd); err != nil {
		return "", skip{fmt.Sprintf("%s@%s can't be built: %v", module, version, err)}
	}
	return path, nil
}

// own builds one of the bench's own small programs, static.
func (b *bench) own(ctx context.Context, name string) (string, error) {
	path := filepath.Join(b.dir, name)
	cmd := command(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	_, err := outputOf(cmd)
	return path, err
}

// background starts a program that runs until the section ends, and returns its log.
func (b *bench) background(ctx context.Context, name string, args ...string) (*exec.Cmd, string, error) {
	log, err := os.CreateTemp(b.dir, filepath.Base(name)+"-*.log")
	if err != nil {
		return nil, "", err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	b.defers(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-ended
		}
	})
	return cmd, log.Name(), nil
}

// firstLine is for versions.
func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
