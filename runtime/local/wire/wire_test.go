package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime/local/wire"
)

func TestMessagesComeBack(t *testing.T) {
	request := wire.Request{Version: wire.Version, Op: wire.OpCreate, ID: "web-a", Create: &wire.Create{
		OCI: json.RawMessage(`{"root":{}}`), Log: wire.Log{Dir: "/logs/web-a", MaxBytes: 10, Files: 3},
	}}
	response := wire.Response{Version: wire.Version, Instances: []wire.Status{{ID: "web-a", State: wire.Exited, ExitedAt: time.Unix(1, 5).UTC(), ExitCode: 137, OOM: true}}}
	var b bytes.Buffer
	if err := errors.Join(wire.Write(&b, request), wire.Write(&b, response)); err != nil {
		t.Fatal(err)
	}
	r := wire.NewReader(&b)
	gotRequest, err := wire.Read[wire.Request](r)
	if d := cmp.Diff(request, gotRequest); d != "" || err != nil {
		t.Errorf("request: %v %s", err, d)
	}
	gotResponse, err := wire.Read[wire.Response](r)
	if d := cmp.Diff(response, gotResponse); d != "" || err != nil {
		t.Errorf("response: %v %s", err, d)
	}
	if _, err := wire.Read[wire.Response](r); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v, want EOF", err)
	}
}

func TestDecoderIsStrict(t *testing.T) {
	for name, line := range map[string]string{
		"unknown field":   `{"v":1,"op":"list","more":1}`,
		"another version": `{"v":2,"op":"list"}`,
		"no version":      `{"op":"list"}`,
		"data after it":   `{"v":1,"op":"list"} {}`,
		"wrong type":      `{"v":1,"op":7}`,
		"not an object":   `[]`,
		"nothing":         ``,
	} {
		if _, err := wire.Decode[wire.Request]([]byte(line)); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: error %v, want invalid", name, err)
		}
	}
}

func TestCutMessageIsNotTaken(t *testing.T) {
	if _, err := wire.Read[wire.Request](wire.NewReader(strings.NewReader(`{"v":1,"op":"list"}`))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("without its newline: %v", err)
	}
	long := strings.NewReader(strings.Repeat(" ", wire.MaxMessage+1))
	if _, err := wire.Read[wire.Request](wire.NewReader(long)); !errors.Is(err, fault.Invalid) {
		t.Errorf("too long: %v", err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	err := fmt.Errorf("starting: %w", fault.Errorf(fault.Conflict, "it has exited"))
	got := wire.Response{Error: wire.ErrorOf(err)}.Err()
	if !errors.Is(got, fault.Conflict) || got.Error() != err.Error() {
		t.Errorf("got %v", got)
	}
	if wire.ErrorOf(nil) != nil || (wire.Response{}).Err() != nil {
		t.Error("no error became one")
	}
}

// What the splitter writes is the same however the stream is cut into chunks, and holds every byte.
func TestSplitterKeepsEveryByte(t *testing.T) {
	now := time.Date(2026, 11, 22, 23, 10, 0, 5, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SampledFrom([]string{"a\nb", "no end", "\n\n", strings.Repeat("x", wire.MaxLine) + "\n", strings.Repeat("y", 3*wire.MaxLine+7)})
		stream := strings.Join(rapid.SliceOfN(text, 1, 5).Draw(t, "stream"), "")
		s := wire.NewSplitter("stdout")
		var out []byte
		for rest := stream; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "chunk")
			out = s.Append(out, now, []byte(rest[:n]))
			rest = rest[n:]
		}
		out = s.End(out, now)
		var back strings.Builder
		for line := range strings.Lines(string(out)) {
			parts := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
			if len(parts) != 4 || parts[0] != "2026-11-22T23:10:00.000000005Z" || parts[1] != "stdout" || len(parts[3]) > wire.MaxLine {
				t.Fatalf("line %.80q", line)
			}
			back.WriteString(parts[3])
			if parts[2] == "F" {
				back.WriteByte('\n')
			}
		}
		want := stream
		if !strings.HasSuffix(want, "\n") {
			want += "\n"
		}
		if back.String() != want {
			t.Fatalf("%d bytes came back as %d", len(want), back.Len())
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"v":1,"op":"create","id":"web-a","create":{"oci":{"a":1},"log":{"dir":"/l","max_bytes":1,"files":2}}}`))
	f.Add([]byte(`{"v":1,"op":"exec","id":"web-a","exec":{"args":["x"],"timeout":5}}`))
	f.Add([]byte(`{"v":1,"op":"list"}x`))
	f.Fuzz(func(t *testing.T, line []byte) { fuzz[wire.Request](t, line) })
}

func FuzzResponse(f *testing.F) {
	f.Add([]byte(`{"v":1,"instances":[{"id":"a","state":"exited","exited_at":"2026-11-22T23:10:00Z","exit_code":-1}]}`))
	f.Add([]byte(`{"v":1,"error":{"kind":"conflict","message":"no"}}`))
	f.Fuzz(func(t *testing.T, line []byte) { fuzz[wire.Response](t, line) })
}

// fuzz: what is accepted is written so that it is read back, and written again to the same bytes.
func fuzz[M wire.Request | wire.Response](t *testing.T, line []byte) {
	m, err := wire.Decode[M](line)
	if err != nil {
		return
	}
	var first, second bytes.Buffer
	if err := wire.Write(&first, m); err != nil {
		return // too long, or a time that JSON can't hold
	}
	again, err := wire.Read[M](wire.NewReader(bytes.NewReader(first.Bytes())))
	if err != nil {
		t.Fatalf("%q was accepted, and is not when written back: %v", line, err)
	}
	if err := wire.Write(&second, again); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Fatalf("%q came back as %q, %v", first.Bytes(), second.Bytes(), err)
	}
}
