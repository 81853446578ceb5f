package proxy

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/invarhq/invar/instance"
)

// The logs are JSON lines in Dir/log: access.log has a line for every HTTP request, egress.log one for every request to a forward proxy.
// Each is renamed to .1, that to .2 and so on when it has reached rotateAt; keepLogs old ones stay.
const (
	rotateAt   = 64 << 20
	keepLogs   = 5
	maxPending = 4 << 20 // bytes that wait to be written; about 16,000 lines
	flushEvery = 200 * time.Millisecond
	flushAt    = 64 << 10
)

// accessLog writes both logs.
type accessLog struct {
	requests *journal // nil: off
	egresses *journal
	spare    sync.Pool // of lines
}

func newAccessLog(dir string, requests bool, log *slog.Logger) (*accessLog, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	a := &accessLog{spare: sync.Pool{New: func() any { return new([]byte) }}}
	var err error
	if a.egresses, err = openJournal(filepath.Join(dir, "egress.log"), rotateAt, log); err != nil {
		return nil, err
	}
	if !requests {
		return a, nil
	}
	if a.requests, err = openJournal(filepath.Join(dir, "access.log"), rotateAt, log); err != nil {
		a.egresses.close()
		return nil, err
	}
	return a, nil
}

func (a *accessLog) close() {
	a.egresses.close()
	if a.requests != nil {
		a.requests.close()
	}
}

// request logs an exchange that has ended. Under overload it drops the line, and the log says how many were dropped.
func (a *accessLog) request(x *exchange, r *http.Request) {
	if a.requests == nil {
		return
	}
	line := a.spare.Get().(*[]byte)
	*line = appendRequest((*line)[:0], x, r, time.Now())
	a.requests.add(*line, false)
	a.spare.Put(line)
}

// egressEntry is a request to a forward proxy.
type egressEntry struct {
	start   time.Time
	who     instance.ID
	method  string
	target  string
	verdict string
	status  int
	bytes   int64
}

// egress logs a request to a forward proxy. It waits rather than drop the line.
func (a *accessLog) egress(e *egressEntry) {
	line := a.spare.Get().(*[]byte)
	b := appendTime((*line)[:0], e.start)
	b = appendString(b, "instance", string(e.who))
	b = appendString(b, "method", e.method)
	b = appendString(b, "target", e.target)
	b = appendString(b, "verdict", e.verdict)
	b = appendInt(b, "status", int64(e.status))
	b = appendInt(b, "bytes", e.bytes)
	b = appendMillis(b, time.Since(e.start))
	*line = append(b, "}\n"...)
	a.egresses.add(*line, true)
	a.spare.Put(line)
}

func appendRequest(b []byte, x *exchange, r *http.Request, now time.Time) []byte {
	b = appendTime(b, x.start)
	if x.route != nil {
		b = appendString(b, "env", string(x.route.Env))
		b = appendString(b, "route", string(x.route.Name))
	}
	if x.last != "" {
		b = appendString(b, "instance", string(x.last))
	}
	b = appendString(b, "method", r.Method)
	b = appendString(b, "host", r.Host)
	b = appendString(b, "path", r.URL.Path)
	b = appendInt(b, "status", int64(x.status))
	b = appendInt(b, "bytes", x.bytes)
	b = appendMillis(b, now.Sub(x.start))
	b = appendString(b, "remote", r.RemoteAddr)
	b = appendString(b, "proto", r.Proto)
	if x.attempts.count > 0 {
		b = appendInt(b, "failed_attempts", int64(x.attempts.count))
	}
	return append(b, "}\n"...)
}

func appendTime(b []byte, t time.Time) []byte {
	b = append(b, `{"time":"`...)
	b = t.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	return append(b, '"')
}

func appendMillis(b []byte, d time.Duration) []byte {
	b = append(b, `,"duration_ms":`...)
	return strconv.AppendFloat(b, float64(d.Microseconds())/1000, 'f', 3, 64)
}

func appendInt(b []byte, key string, n int64) []byte {
	b = append(append(append(b, ',', '"'), key...), '"', ':')
	return strconv.AppendInt(b, n, 10)
}

func appendString(b []byte, key, s string) []byte {
	b = append(append(append(b, ',', '"'), key...), '"', ':')
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(s) // a string can always be encoded
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// journal is a rotated file that one goroutine writes, some lines at a time. To add a line wakes nobody up, unless many wait: a switch to
// the writer for each request would cost more than the line.
type journal struct {
	path  string
	limit int64 // bytes at which the file is rotated
	log   *slog.Logger
	full  chan struct{} // enough lines wait
	done  chan struct{}
	stop  chan struct{}

	mu      sync.Mutex
	pending []byte
	dropped int64
	drained *sync.Cond // of mu: pending was taken

	file *os.File // of the goroutine, as all below
	size int64
	buf  []byte
}

func openJournal(path string, limit int64, log *slog.Logger) (*journal, error) {
	j := &journal{path: path, limit: limit, log: log, full: make(chan struct{}, 1), done: make(chan struct{}), stop: make(chan struct{})}
	j.drained = sync.NewCond(&j.mu)
	if err := j.open(); err != nil {
		return nil, err
	}
	go j.write()
	return j, nil
}

// open opens the file to append to: an old process that drains writes to the same one.
func (j *journal) open() error {
	f, err := os.OpenFile(j.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("opening a log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	j.file, j.size = f, info.Size()
	return nil
}

func (j *journal) close() {
	close(j.stop)
	<-j.done
}

func (j *journal) write() {
	defer close(j.done)
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-j.full:
			j.flush()
		case <-tick.C:
			j.flush()
		case <-j.stop:
			j.flush()
			j.file.Close()
			return
		}
	}
}

// add takes a copy of the line. When too much waits to be written, it waits too, or drops the line and counts it.
func (j *journal) add(line []byte, wait bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.pending) >= maxPending {
		if !wait {
			j.dropped++
			return
		}
		j.drained.Wait()
	}
	j.pending = append(j.pending, line...)
	if len(j.pending) >= flushAt {
		select {
		case j.full <- struct{}{}:
		default:
		}
	}
}

// take exchanges what waits for the buffer that was written last.
func (j *journal) take() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.pending, j.buf = j.buf[:0], j.pending
	if j.dropped > 0 {
		j.buf = append(appendInt(appendTime(j.buf, time.Now()), "dropped", j.dropped), "}\n"...)
		j.dropped = 0
	}
	j.drained.Broadcast()
}

func (j *journal) flush() {
	j.take()
	if len(j.buf) == 0 {
		return
	}
	n, err := j.file.Write(j.buf)
	j.size += int64(n)
	if err == nil && j.size >= j.limit {
		err = j.rotate()
	}
	if err != nil {
		j.log.Error("writing a log", "path", j.path, "error", err)
	}
}

func (j *journal) rotate() error {
	for i := keepLogs - 1; i > 0; i-- {
		os.Rename(fmt.Sprintf("%s.%d", j.path, i), fmt.Sprintf("%s.%d", j.path, i+1)) // absent at first
	}
	if err := os.Rename(j.path, j.path+".1"); err != nil {
		return err
	}
	j.file.Close()
	return j.open()
}
