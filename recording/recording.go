// Package recording writes what is typed and shown in a session, as asciicast v2 (https://docs.asciinema.org/manual/asciicast/v2/):
// a header and then one event a line, which `asciinema play` shows.
//
//	{"version":2,"width":80,"height":24,"timestamp":1764064800}
//	[0.25,"o","$ "]
//	[1.5,"i","ls\r"]
//	[2.0,"r","132x50"]
//
// What is no UTF-8 becomes U+FFFD; a character that is cut between two writes is kept whole.
package recording

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// Type is the media type of a recording.
const Type = "application/x-asciicast"

// ErrFull says that the recording has reached its size. Nothing more is to happen in the session.
var ErrFull = errors.New("the recording is full")

// Recorder writes a recording. Its methods may be called concurrently.
type Recorder struct {
	began time.Time

	mu      sync.Mutex
	w       io.Writer
	left    int64
	pending map[string][]byte // by kind of event: the beginning of a character
	err     error             // the first: nothing is written after it
}

type header struct {
	Version   int   `json:"version"`
	Width     int   `json:"width"`
	Height    int   `json:"height"`
	Timestamp int64 `json:"timestamp"`
}

// New begins a recording of at most limit bytes.
func New(w io.Writer, width, height int, now time.Time, limit int64) (*Recorder, error) {
	r := &Recorder{began: now, w: w, left: limit, pending: map[string][]byte{}}
	b, err := json.Marshal(header{2, width, height, now.Unix()})
	if err != nil {
		return nil, err
	}
	return r, r.line(b)
}

// Output records what is shown.
func (r *Recorder) Output(now time.Time, b []byte) error { return r.event(now, "o", b) }

// Input records what is typed.
func (r *Recorder) Input(now time.Time, b []byte) error { return r.event(now, "i", b) }

// Resize records that the terminal has another size.
func (r *Recorder) Resize(now time.Time, width, height int) error {
	return r.event(now, "r", fmt.Appendf(nil, "%dx%d", width, height))
}

// End writes what is left of characters that were cut.
func (r *Recorder) End(now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, kind := range []string{"o", "i"} {
		if rest := r.pending[kind]; len(rest) > 0 {
			r.pending[kind] = nil
			r.write(now, kind, rest)
		}
	}
	return r.err
}

func (r *Recorder) event(now time.Time, kind string, b []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rest := r.pending[kind]; len(rest) > 0 {
		b = append(rest, b...)
	}
	whole := complete(b)
	r.pending[kind] = append([]byte(nil), b[whole:]...)
	if whole > 0 {
		r.write(now, kind, b[:whole])
	}
	return r.err
}

// complete returns how much of b is not the beginning of a character that goes on.
func complete(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if at := len(b) - n; utf8.RuneStart(b[at]) {
			if b[at] >= utf8.RuneSelf && !utf8.FullRune(b[at:]) {
				return at
			}
			break
		}
	}
	return len(b)
}

func (r *Recorder) write(now time.Time, kind string, b []byte) {
	text, err := json.Marshal(string(b))
	if err != nil {
		r.err = errors.Join(r.err, err)
		return
	}
	line := strconv.AppendFloat([]byte("["), max(0, now.Sub(r.began).Seconds()), 'f', 6, 64)
	line = append(line, `,"`+kind+`",`...)
	r.line(append(append(line, text...), ']'))
}

func (r *Recorder) line(b []byte) error {
	if r.err != nil {
		return r.err
	}
	if int64(len(b))+1 > r.left {
		r.err = ErrFull
		return r.err
	}
	n, err := r.w.Write(append(b, '\n'))
	r.left -= int64(n)
	r.err = err
	return err
}
