package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/runtime/local/wire"
)

// logs carries an instance's output from its two FIFOs to its log files.
//
// The instance holds each FIFO open for reading too, so that writing never fails while no launcher lives; the next
// launcher reads on where this one stopped. Until then, the pipe's buffer (64 KiB) takes what is written.
type logs struct {
	dir   string // with the FIFOs
	fifos []*os.File
	done  sync.WaitGroup

	mu   sync.Mutex
	file rotated
}

func openLogs(dir string, to wire.Log) (*logs, error) {
	g := &logs{dir: dir, file: rotated{Log: to}}
	for _, stream := range []string{"stdout", "stderr"} {
		f, err := os.OpenFile(filepath.Join(dir, stream), os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			g.close()
			return nil, err
		}
		g.fifos = append(g.fifos, f)
		g.done.Go(func() { g.copy(f, wire.NewSplitter(stream)) })
	}
	return g, nil
}

// open opens the FIFOs as the instance's output: blocking, as programs expect.
func (g *logs) open() (stdout, stderr *os.File, err error) {
	if stdout, err = os.OpenFile(filepath.Join(g.dir, "stdout"), os.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return nil, nil, err
	}
	if stderr, err = os.OpenFile(filepath.Join(g.dir, "stderr"), os.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		stdout.Close()
		return nil, nil, err
	}
	return stdout, stderr, nil
}

// close ends the copying, with all that was written before.
func (g *logs) close() {
	for _, f := range g.fifos {
		f.SetReadDeadline(time.Now()) // a FIFO that is open for writing has no end of file
	}
	g.done.Wait()
	for _, f := range g.fifos {
		f.Close()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.file.close()
}

func (g *logs) copy(fifo *os.File, lines *wire.Splitter) {
	buf := make([]byte, 32<<10)
	var out []byte
	for {
		n, err := fifo.Read(buf)
		out = lines.Append(out[:0], time.Now(), buf[:n])
		if err != nil {
			out = g.drain(fifo, lines, buf, out)
			g.write(lines.End(out, time.Now()))
			return
		}
		g.write(out)
	}
}

// drain reads what is left, without waiting.
func (g *logs) drain(fifo *os.File, lines *wire.Splitter, buf, out []byte) []byte {
	raw, err := fifo.SyscallConn()
	if err != nil {
		return out
	}
	raw.Control(func(fd uintptr) {
		for {
			n, err := unix.Read(int(fd), buf)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if n <= 0 {
				return
			}
			out = lines.Append(out, time.Now(), buf[:n])
		}
	})
	return out
}

// write drops what can't be written (a full disk must not stop instances) and says so once on the launcher's own log.
func (g *logs) write(b []byte) {
	if len(b) == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	err := g.file.write(b)
	if err != nil && !g.file.failing {
		fmt.Fprintf(os.Stderr, "invar-launcher: dropping log lines: %v\n", err)
	}
	g.file.failing = err != nil
}

// rotated is a log file that is put aside when it is full.
type rotated struct {
	wire.Log
	f       *os.File // nil until the first write
	size    int64
	failing bool
}

func (r *rotated) path(n int) string {
	if n == 0 {
		return filepath.Join(r.Dir, "current.log")
	}
	return filepath.Join(r.Dir, strconv.Itoa(n)+".log")
}

func (r *rotated) write(b []byte) error {
	if r.f != nil && r.size > 0 && r.size+int64(len(b)) > r.MaxBytes {
		r.close()
		for n := r.Files - 1; n > 0; n-- {
			os.Rename(r.path(n-1), r.path(n)) // absent ones are not an error
		}
	}
	if r.f == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	n, err := r.f.Write(b)
	r.size += int64(n)
	return err
}

func (r *rotated) open() error {
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		return err
	}
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if r.Files <= 1 && r.size > 0 {
		flags |= os.O_TRUNC // nothing is kept aside
	}
	f, err := os.OpenFile(r.path(0), flags, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	r.f, r.size = f, info.Size()
	return nil
}

func (r *rotated) close() {
	if r.f != nil {
		r.f.Close()
		r.f = nil
	}
}
