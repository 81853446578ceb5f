package wire_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/invarhq/invar/runtime/local/wire"
)

func TestFramesComeBack(t *testing.T) {
	var b bytes.Buffer
	for _, f := range []wire.Frame{{Kind: wire.Stdin, Data: []byte("ls\n")}, {Kind: wire.StdinEnd}, wire.ResizeFrame(24, 80), wire.ExitFrame(-1)} {
		if err := wire.WriteFrame(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	r := wire.NewReader(&b)
	read := func() wire.Frame {
		f, err := wire.ReadFrame(r)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if f := read(); f.Kind != wire.Stdin || string(f.Data) != "ls\n" {
		t.Errorf("got %+v", f)
	}
	if f := read(); f.Kind != wire.StdinEnd {
		t.Errorf("got %+v", f)
	}
	if rows, cols := read().Size(); rows != 24 || cols != 80 {
		t.Errorf("%d rows, %d columns", rows, cols)
	}
	if code := read().Code(); code != -1 {
		t.Errorf("exit code %d", code)
	}
	if _, err := wire.ReadFrame(r); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if err := wire.WriteFrame(io.Discard, wire.Frame{Data: make([]byte, wire.MaxFrame+1)}); err == nil {
		t.Error("a frame that is too long was written")
	}
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 'x'})
	f.Add([]byte{2, 0, 0, 0, 4, 0, 24, 0, 80})
	f.Add([]byte{6, 0, 0, 0, 3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := wire.NewReader(bytes.NewReader(b))
		frame, err := wire.ReadFrame(r)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := wire.WriteFrame(&again, frame); err != nil || !bytes.HasPrefix(b, again.Bytes()) {
			t.Fatalf("%q became %q (%v)", b, again.Bytes(), err)
		}
	})
}
