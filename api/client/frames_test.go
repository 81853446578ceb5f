package client

import (
	"bytes"
	"testing"
)

// Whatever a server sends, reading it neither panics nor hangs.
func FuzzFrames(f *testing.F) {
	for _, s := range []string{
		"event: entry\nid: 1\ndata: {\"index\": 1}\n\n",
		"event: instance\ndata: {\"id\":\ndata: \"web-1\"}\n\n: comment\n\nretry: 5\n\n",
		"event: heartbeat\r\ndata: {}\r\n\r\n",
		"data\n\n", "event: entry\ndata: [\n\n", "\x00\n\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for frame, err := range frames(bytes.NewReader(b)) {
			if err != nil {
				return
			}
			if e, err := frame.event(); err == nil && e.Entry == nil && e.Instance == nil && e.Heartbeat == nil &&
				(frame.name == "entry" || frame.name == "instance" || frame.name == "heartbeat") {
				t.Errorf("frame %q became nothing", frame.name)
			}
		}
	})
}
