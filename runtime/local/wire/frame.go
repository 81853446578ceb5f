package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"

	"github.com/invarhq/invar/fault"
)

// FrameKind is what a frame of a session carries.
type FrameKind byte

// The kinds. After the launcher has answered OpSession without an error, the connection carries frames, until an Exit or its end.
const (
	Stdin    FrameKind = 0 // to the process
	StdinEnd FrameKind = 1 // its input has ended; on a terminal, as typing ^D does
	Resize   FrameKind = 2 // rows and columns, two bytes each, big-endian
	Signal   FrameKind = 3 // one byte: the number
	Stdout   FrameKind = 4 // from the process; on a terminal, all that it writes
	Stderr   FrameKind = 5
	Exit     FrameKind = 6 // the exit code, four bytes, big-endian. The last one
)

// MaxFrame is the longest content of a frame in bytes.
const MaxFrame = 32 << 10

// Frame is a piece of a session: on the wire its kind, the length of its data (four bytes, big-endian), and the data.
type Frame struct {
	Kind FrameKind
	Data []byte
}

// size tells how much data a frame of the kind has, -1 for any.
func (k FrameKind) size() int {
	switch k {
	case StdinEnd:
		return 0
	case Resize, Exit:
		return 4
	case Signal:
		return 1
	}
	return -1
}

// WriteFrame writes one frame with one call of Write.
func WriteFrame(w io.Writer, f Frame) error {
	if len(f.Data) > MaxFrame {
		return fault.Errorf(fault.Invalid, "a frame of %d bytes: at most %d", len(f.Data), MaxFrame)
	}
	b := make([]byte, 0, 5+len(f.Data))
	b = append(b, byte(f.Kind))
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Data)))
	_, err := w.Write(append(b, f.Data...))
	return err
}

// ReadFrame reads one frame. Its errors are io.EOF before the first byte, of kind fault.Invalid, or the reader's.
func ReadFrame(r *bufio.Reader) (Frame, error) {
	kind, err := r.ReadByte()
	if err != nil {
		return Frame{}, err
	}
	var n uint32
	if err := binary.Read(r, binary.BigEndian, &n); err != nil {
		return Frame{}, cut(err)
	}
	f := Frame{Kind: FrameKind(kind)}
	if want := f.Kind.size(); f.Kind > Exit || n > MaxFrame || want >= 0 && int(n) != want {
		return Frame{}, fault.Errorf(fault.Invalid, "a frame of kind %d with %d bytes", kind, n)
	}
	f.Data = make([]byte, n)
	if _, err := io.ReadFull(r, f.Data); err != nil {
		return Frame{}, cut(err)
	}
	return f, nil
}

func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ResizeFrame says how large the terminal is now.
func ResizeFrame(rows, cols uint16) Frame {
	return Frame{Resize, binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, rows), cols)}
}

// Size reads a Resize.
func (f Frame) Size() (rows, cols uint16) {
	return binary.BigEndian.Uint16(f.Data), binary.BigEndian.Uint16(f.Data[2:])
}

// ExitFrame ends a session.
func ExitFrame(code int) Frame {
	return Frame{Exit, binary.BigEndian.AppendUint32(nil, uint32(int32(code)))}
}

// Code reads an Exit: 128+n for one killed by signal n, -1 where it is not known.
func (f Frame) Code() int { return int(int32(binary.BigEndian.Uint32(f.Data))) }
