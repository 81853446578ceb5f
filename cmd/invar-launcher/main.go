// Command invar-launcher is the resident parent of a host's instances.
//
// The server starts it and talks to it as package runtime/local/wire says; both may end and come back, apart or together, while
// instances run on. It is the only importer of libcontainer, and it is kept small, since libcontainer
// executes it again as the first process of each instance.
//
//	invar-launcher -dir RUN -build DIGEST
//
// RUN is a directory in memory, so that a restart of the machine forgets it together with the processes:
//
//	RUN/launcher.lock         held while a launcher lives: there is one
//	RUN/launcher.sock         its socket
//	RUN/instances/ID/         an instance: made by the host, which puts the FIFOs stdout and stderr there
//	RUN/instances/ID/oci/     config.json (OCI bundle), launcher.json (record), exit.json (once it has exited)
//	RUN/state/ID/             libcontainer's state
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	goruntime "runtime"
	"runtime/debug"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters the namespaces before Go starts
	"golang.org/x/sys/unix"
)

// init is where an instance's first process begins: before main, after nsenter.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		debug.SetGCPercent(-1) // it lives for milliseconds; then the component's program takes its place
		libcontainer.Init()
	}
}

func main() {
	dir := flag.String("dir", "", "the host's run `directory`")
	build := flag.String("build", "", "what to answer to hello: the digest of this program")
	flag.Parse()
	if *dir == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: invar-launcher -dir RUN [-build DIGEST]; it is started by invar server")
		os.Exit(2)
	}
	// libcontainer leaves threads in the mount namespaces of instances, to end there. The first thread can't end, so it does nothing else.
	goruntime.LockOSThread()
	done := make(chan error)
	go func() { done <- run(*dir, *build) }()
	if err := <-done; err != nil {
		fmt.Fprintf(os.Stderr, "invar-launcher: %v\n", err)
		os.Exit(1)
	}
}

func run(dir, build string) error {
	// A creation makes megabytes of garbage, while the heap itself is small.
	debug.SetGCPercent(400)
	// Signals of the terminal that the server was started on. Not ignored, since instances and sessions would inherit that: ^C would do nothing.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)
	goruntime.GOMAXPROCS(max(2, goruntime.NumCPU()))
	syscall.Umask(0o022)
	if err := os.Chdir(dir); err != nil { // pins no directory of the server's, and keeps the socket's path short
		return err
	}
	lock, err := lockFile("launcher.lock")
	if err != nil {
		return err
	}
	defer lock.Close()
	leaveServer(dir)
	l := newLauncher(dir, build)
	if err := l.adopt(); err != nil {
		return err
	}
	go l.reapLeftovers(l.quit)
	return l.serve("launcher.sock")
}

// lockFile waits for the lock: a launcher that was told to quit may still answer its last request.
func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", name, err)
		}
	}
}
