package wire

import (
	"bytes"
	"time"
)

// MaxLine is the longest piece of a line that is logged as one: longer ones are cut into partial lines.
const MaxLine = 16 << 10

// AppendLine appends a line of a log file in the format that Kubernetes' container runtimes write, its newline included:
//
//	2026-11-22T23:10:00.123456789Z stdout F hello
//
// F ends a line; P says that the next line of the same stream goes on with it.
func AppendLine(b []byte, now time.Time, stream string, partial bool, text []byte) []byte {
	b = now.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000000Z")
	b = append(b, ' ')
	b = append(b, stream...)
	if partial {
		b = append(b, " P "...)
	} else {
		b = append(b, " F "...)
	}
	b = append(b, text...)
	return append(b, '\n')
}

// Splitter turns a stream of bytes into lines of a log file.
type Splitter struct {
	stream string
	rest   []byte // of a line that has not ended, less than MaxLine
}

// NewSplitter returns a splitter for a stream, "stdout" or "stderr".
func NewSplitter(stream string) *Splitter { return &Splitter{stream: stream} }

// Append appends to out the lines that chunk completes.
func (s *Splitter) Append(out []byte, now time.Time, chunk []byte) []byte {
	for len(chunk) > 0 {
		i := bytes.IndexByte(chunk, '\n')
		text, ended := chunk, i >= 0
		if ended {
			text = chunk[:i]
		}
		if room := MaxLine - len(s.rest); len(text) > room {
			text, ended = text[:room], false
		}
		chunk = chunk[len(text):]
		s.rest = append(s.rest, text...)
		switch {
		case ended:
			chunk = chunk[1:]
			out = s.flush(out, now, false)
		case len(s.rest) == MaxLine && len(chunk) > 0:
			out = s.flush(out, now, true)
		}
	}
	return out
}

// End appends to out what has no end of line.
func (s *Splitter) End(out []byte, now time.Time) []byte {
	if len(s.rest) == 0 {
		return out
	}
	return s.flush(out, now, false)
}

func (s *Splitter) flush(out []byte, now time.Time, partial bool) []byte {
	out = AppendLine(out, now, s.stream, partial, s.rest)
	s.rest = s.rest[:0]
	return out
}
