package local

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
)

// followInterval is how often a followed log is looked at.
const followInterval = 50 * time.Millisecond

func (h *Host) logDir(id instance.ID) string {
	return filepath.Join(h.config.Dir, "logs", string(id))
}

// Logs implements runtime.Host. A line is "TIME STREAM TEXT".
func (h *Host) Logs(ctx context.Context, id instance.ID, w io.Writer, tail int, follow bool) error {
	if id == "" || string(id) != filepath.Base(string(id)) || id[0] == '.' {
		return fault.Errorf(fault.NotFound, "log of instance %q: there is none", id)
	}
	files, err := openLogFiles(h.logDir(id))
	if err != nil {
		return err
	}
	if len(files) == 0 && h.find(id) == nil {
		return fault.Errorf(fault.NotFound, "log of instance %s: there is none", id)
	}
	l := &logReader{w: w, dir: h.logDir(id)}
	defer l.close()
	if err := l.writeTail(files, tail); err != nil || !follow {
		return err
	}
	for {
		gone := h.find(id) == nil
		if err := l.writeNew(); err != nil {
			return err
		}
		if gone {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followInterval):
		}
	}
}

// openLogFiles opens the log's files, oldest first. The newest is opened first: when the log is rotated meanwhile, one file is
// found twice, and none is missed.
func openLogFiles(dir string) ([]*os.File, error) {
	var files []*os.File
	for n := 0; ; n++ {
		name := "current.log"
		if n > 0 {
			name = strconv.Itoa(n) + ".log"
		}
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			if n == 0 {
				continue // rotated just now, or nothing was written
			}
			slices.Reverse(files)
			return files, nil
		}
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		if len(files) > 0 && sameFile(files[len(files)-1], f) {
			f.Close()
			continue
		}
		files = append(files, f)
	}
}

func sameFile(a, b *os.File) bool {
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// logReader writes a log's lines to w, and remembers where it is.
type logReader struct {
	w       io.Writer
	dir     string
	current *os.File // the newest file; nil when there is none yet
	rest    []byte   // of a line that is not written to its end yet
}

func (l *logReader) close() {
	if l.current != nil {
		l.current.Close()
	}
}

// writeTail writes the last tail lines of files (all for tail < 0), and goes on in the last of them.
func (l *logReader) writeTail(files []*os.File, tail int) error {
	var last [][]byte
	for n, f := range files {
		r := bufio.NewReader(f)
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				l.rest = line
				break
			}
			if tail < 0 {
				if err := l.writeLine(line); err != nil {
					return err
				}
				continue
			}
			if last = append(last, line); len(last) > tail {
				last = last[1:]
			}
		}
		if n < len(files)-1 {
			f.Close()
		} else {
			l.current = f
		}
	}
	for _, line := range last {
		if err := l.writeLine(line); err != nil {
			return err
		}
	}
	return nil
}

// writeNew writes what was added since, across rotations.
func (l *logReader) writeNew() error {
	for {
		if l.current != nil {
			if err := l.writeRest(); err != nil {
				return err
			}
		}
		next, err := os.Open(filepath.Join(l.dir, "current.log"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if l.current != nil && sameFile(l.current, next) {
			return next.Close()
		}
		if l.current != nil {
			if err := l.writeRest(); err != nil { // it may have grown before it was put aside
				return errors.Join(err, next.Close())
			}
			l.current.Close()
		}
		l.current = next
	}
}

func (l *logReader) writeRest() error {
	added, err := io.ReadAll(l.current)
	if err != nil {
		return err
	}
	l.rest = append(l.rest, added...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return nil
		}
		if err := l.writeLine(l.rest[:i+1]); err != nil {
			return err
		}
		l.rest = l.rest[i+1:]
	}
}

// writeLine drops the mark of partial lines: see wire.AppendLine.
func (l *logReader) writeLine(line []byte) error {
	parts := bytes.SplitN(line, []byte(" "), 4)
	if len(parts) == 4 {
		line = bytes.Join([][]byte{parts[0], parts[1], parts[3]}, []byte(" "))
	}
	if _, err := l.w.Write(line); err != nil {
		return fmt.Errorf("writing a log: %w", err)
	}
	return nil
}

// pruneLogs deletes the logs of removed instances that are too many or too old; at most once a minute.
func (h *Host) pruneLogs() {
	h.mu.Lock()
	soon := time.Since(h.pruned) < time.Minute
	if !soon {
		h.pruned = time.Now()
	}
	h.mu.Unlock()
	if soon {
		return
	}
	if err := h.deleteLogs(time.Now()); err != nil {
		h.log.Warn("deleting old logs", "error", err)
	}
}

func (h *Host) deleteLogs(now time.Time) error {
	entries, err := os.ReadDir(filepath.Join(h.config.Dir, "logs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	type old struct {
		path string
		at   time.Time
	}
	var logs []old
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && h.find(instance.ID(e.Name())) == nil {
			logs = append(logs, old{h.logDir(instance.ID(e.Name())), info.ModTime()})
		}
	}
	slices.SortFunc(logs, func(a, b old) int { return cmp.Compare(b.at.UnixNano(), a.at.UnixNano()) })
	var errs []error
	for n, l := range logs {
		if n >= h.config.KeepLogs || now.Sub(l.at) > h.config.KeepLogsFor {
			errs = append(errs, os.RemoveAll(l.path))
		}
	}
	return errors.Join(errs...)
}
