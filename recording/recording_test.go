package recording_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/invarhq/invar/recording"
)

type event struct {
	at         float64
	kind, text string
}

// read is a reader of asciicast v2 that has nothing in common with the writer.
func read(t *testing.T, b []byte) (header map[string]int64, events []event) {
	t.Helper()
	for n, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		if n == 0 {
			if err := json.Unmarshal([]byte(line), &header); err != nil {
				t.Fatalf("header %q: %v", line, err)
			}
			continue
		}
		var raw []json.RawMessage
		var e event
		if err := json.Unmarshal([]byte(line), &raw); err != nil || len(raw) != 3 {
			t.Fatalf("line %q: %v", line, err)
		}
		if err := errors.Join(json.Unmarshal(raw[0], &e.at), json.Unmarshal(raw[1], &e.kind), json.Unmarshal(raw[2], &e.text)); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		events = append(events, e)
	}
	return header, events
}

var at = time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)

func TestRecordingIsAsciicast(t *testing.T) {
	var b bytes.Buffer
	r, err := recording.New(&b, 80, 24, at, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	r.Output(at.Add(time.Second), []byte("$ \xc3"))
	r.Output(at.Add(2*time.Second), []byte("\xa9\x1b[0m\xff"))
	r.Input(at.Add(3*time.Second), []byte("ls\r"))
	r.Resize(at.Add(4*time.Second), 132, 50)
	r.Output(at.Add(5*time.Second), []byte("\xe2\x82"))
	if err := r.End(at.Add(6 * time.Second)); err != nil {
		t.Fatal(err)
	}
	header, events := read(t, b.Bytes())
	if header["version"] != 2 || header["width"] != 80 || header["height"] != 24 || header["timestamp"] != at.Unix() {
		t.Errorf("header %v", header)
	}
	want := []event{{1, "o", "$ "}, {2, "o", "é\x1b[0m\ufffd"}, {3, "i", "ls\r"}, {4, "r", "132x50"}, {6, "o", "\ufffd\ufffd"}}
	if len(events) != len(want) {
		t.Fatalf("events %v", events)
	}
	for i := range want {
		if events[i] != want[i] {
			t.Errorf("event %d is %v, want %v", i, events[i], want[i])
		}
	}
}

func TestRecordingIsBounded(t *testing.T) {
	var b bytes.Buffer
	r, err := recording.New(&b, 80, 24, at, 200)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		err = r.Output(at, []byte("some output"))
	}
	if !errors.Is(err, recording.ErrFull) || b.Len() > 200 {
		t.Errorf("%v after %d bytes", err, b.Len())
	}
	read(t, b.Bytes())
}

// However what is shown is cut into pieces, the recording has all of it.
func FuzzRecording(f *testing.F) {
	f.Add([]byte("héllo €\xff\xf0\x9f"), uint8(2))
	f.Fuzz(func(t *testing.T, text []byte, size uint8) {
		var b bytes.Buffer
		r, err := recording.New(&b, 80, 24, at, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		for rest := text; len(rest) > 0; {
			n := min(len(rest), int(size)%7+1)
			r.Output(at, rest[:n])
			rest = rest[n:]
		}
		r.End(at)
		_, events := read(t, b.Bytes())
		var got strings.Builder
		for _, e := range events {
			got.WriteString(e.text)
		}
		if utf8.Valid(text) && got.String() != string(text) {
			t.Fatalf("%q became %q", text, got.String())
		}
	})
}
