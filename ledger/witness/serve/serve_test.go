package serve_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/ledger/ledgertest"
	"github.com/invarhq/invar/ledger/witness"
	"github.com/invarhq/invar/ledger/witness/serve"
)

const origin = "invar.example/ledger"

// Environment of a child that is a witness and dies between remembering and answering.
const (
	childDir = "INVAR_TEST_WITNESS_DIR"
	childLog = "INVAR_TEST_WITNESS_LOG"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir, os.Getenv(childLog)); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func child(dir, vkey string) error {
	l, err := witness.ParseLog(vkey)
	if err != nil {
		return err
	}
	w, err := serve.Open(serve.Config{Dir: dir, Name: "witness.example/w", Logs: []witness.Log{l}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	serve.OnPersisted(w, func() {
		self, _ := os.FindProcess(os.Getpid())
		self.Kill()
		select {} // until the signal arrives
	})
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(socket.Addr())
	return http.Serve(socket, w.Handler())
}

// logKey is the key of the logs in these tests, as a witness knows it.
type logKey struct {
	ledgertest.Key
	Log witness.Log
}

func newLogKey(t testing.TB) logKey {
	t.Helper()
	k := ledgertest.NewKey(t, origin)
	l, err := witness.ParseLog(k.VKey)
	if err != nil {
		t.Fatal(err)
	}
	return logKey{k, l}
}

func body(t testing.TB, log *ledger.Log, old int64) []byte {
	t.Helper()
	proof, err := log.ProveConsistency(t.Context(), old, log.Size())
	if err != nil {
		t.Fatal(err)
	}
	return witness.Request{Old: old, Proof: proof, Checkpoint: log.Checkpoint()}.Marshal()
}

func open(t *testing.T, dir string, logs ...witness.Log) (*serve.Witness, error) {
	t.Helper()
	return serve.Open(serve.Config{Dir: dir, Name: "witness.example/w", Logs: logs, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
}

func mustOpen(t *testing.T, dir string, logs ...witness.Log) *serve.Witness {
	t.Helper()
	w, err := open(t, dir, logs...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func post(w *serve.Witness, body []byte) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	w.Handler().ServeHTTP(rec, httptest.NewRequest("POST", "/add-checkpoint", bytes.NewReader(body)))
	return rec
}

func TestWitnessAnswersAsTheProtocolSays(t *testing.T) {
	k := newLogKey(t)
	log, fork := k.NewLog(t, "entry", 3), k.NewLog(t, "other", 3)
	w := mustOpen(t, t.TempDir(), k.Log)
	rec := post(w, body(t, log, 0))
	if rec.Code != 200 {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	if _, err := witness.Answered(log.Checkpoint(), rec.Body.Bytes(), w.Verifier()); err != nil {
		t.Error(err)
	}
	ledgertest.Grow(t, log, "entry", 2)
	rec = post(w, body(t, log, 1))
	if rec.Code != 409 || rec.Body.String() != "3\n" || rec.Header().Get("Content-Type") != "text/x.tlog.size" {
		t.Errorf("stale: %d %q %q", rec.Code, rec.Body, rec.Header().Get("Content-Type"))
	}
	if rec = post(w, body(t, fork, 3)); rec.Code != 409 {
		t.Errorf("a fork: %d %s", rec.Code, rec.Body)
	}
	ledgertest.Grow(t, fork, "other", 2)
	if rec = post(w, body(t, fork, 3)); rec.Code != 422 {
		t.Errorf("another history: %d %s", rec.Code, rec.Body)
	}
	if rec = post(w, body(t, newLogKey(t).NewLog(t, "entry", 5), 3)); rec.Code != 403 {
		t.Errorf("another key: %d %s", rec.Code, rec.Body)
	}
	if rec = post(w, []byte("old 3\n\nelsewhere\n5\nAAAA\n\n— elsewhere AAAA\n")); rec.Code != 404 {
		t.Errorf("another log: %d %s", rec.Code, rec.Body)
	}
	if rec = post(w, []byte("old 03\n\n")); rec.Code != 400 {
		t.Errorf("not a request: %d %s", rec.Code, rec.Body)
	}
	if rec = post(w, make([]byte, 1<<20)); rec.Code != 400 {
		t.Errorf("too large: %d %s", rec.Code, rec.Body)
	}
	if rec = post(w, body(t, log, 3)); rec.Code != 200 {
		t.Errorf("after all that: %d %s", rec.Code, rec.Body)
	}
}

func TestInconsistentCheckpointIsKeptAndRaisesAnAlarm(t *testing.T) {
	k, dir := newLogKey(t), t.TempDir()
	log, fork := k.NewLog(t, "entry", 3), k.NewLog(t, "other", 3)
	w := mustOpen(t, dir, k.Log)
	post(w, body(t, log, 0))
	for range 2 { // the second time is no other alarm
		post(w, body(t, fork, 3))
	}
	status, err := serve.Read(dir)
	if err != nil || len(status.Alarms) != 1 {
		t.Fatalf("%+v, %v", status, err)
	}
	a := status.Alarms[0]
	if a.Doubt != witness.Fork || a.Log != k.VKey || a.Held != string(log.Checkpoint()) || a.Submitted != string(fork.Checkpoint()) {
		t.Errorf("%+v", a)
	}
	for _, file := range []string{"held", "submitted"} { // for public tools, as they are
		signed, err := os.ReadFile(filepath.Join(dir, a.Directory, file))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := note.Open(signed, note.VerifierList(k.Verifier)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	rec := httptest.NewRecorder()
	w.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/alarms", nil))
	var served []serve.Alarm
	if err := json.Unmarshal(rec.Body.Bytes(), &served); err != nil || len(served) != 1 || served[0].Held != a.Held {
		t.Errorf("%s, %v", rec.Body, err)
	}
	if status.Logs[0].Size != 3 || status.Logs[0].Origin != origin {
		t.Errorf("%+v", status.Logs)
	}
}

func TestDirectoryIsOfOneProcess(t *testing.T) {
	k, dir := newLogKey(t), t.TempDir()
	w := mustOpen(t, dir, k.Log)
	if _, err := open(t, dir, k.Log); !errors.Is(err, fault.Conflict) {
		t.Errorf("a second: %v", err)
	}
	if _, err := serve.Read(dir); err != nil {
		t.Errorf("reading beside it: %v", err)
	}
	_ = w
}

func TestWitnessRemembersAfterARestart(t *testing.T) {
	k, dir := newLogKey(t), t.TempDir()
	log := k.NewLog(t, "entry", 3)
	w, err := open(t, dir, k.Log)
	if err != nil {
		t.Fatal(err)
	}
	post(w, body(t, log, 0))
	first := w.Verifier().String()
	w.Close()
	w = mustOpen(t, dir, k.Log)
	if w.Verifier().String() != first {
		t.Error("another key")
	}
	if rec := post(w, body(t, k.NewLog(t, "other", 4), 0)); rec.Code != 409 || rec.Body.String() != "3\n" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func TestWitnessRefusesADirectoryThatForgot(t *testing.T) {
	k := newLogKey(t)
	log := k.NewLog(t, "entry", 3)
	other := newLogKey(t)
	for name, c := range map[string]struct {
		damage func(t *testing.T, dir string)
		logs   []witness.Log
		want   fault.Kind
	}{
		"no memory": {func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "state.json")) }, []witness.Log{k.Log}, fault.Corrupt},
		"no key":    {func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "witness.key")) }, []witness.Log{k.Log}, fault.Corrupt},
		"no key at all": {func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, "witness.key"))
			os.Remove(filepath.Join(dir, "witness.pub"))
		}, []witness.Log{k.Log}, fault.Corrupt},
		"a size edited":       {replace("state.json", `\n3\n`, `\n2\n`), []witness.Log{k.Log}, fault.Corrupt},
		"a field more":        {replace("state.json", `"format"`, `"more": 1, "format"`), []witness.Log{k.Log}, fault.Corrupt},
		"the log's other key": {func(*testing.T, string) {}, []witness.Log{other.Log}, fault.Invalid},
		"a log twice":         {func(*testing.T, string) {}, []witness.Log{k.Log, k.Log}, fault.Invalid},
		"no log":              {func(*testing.T, string) {}, nil, fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w, err := open(t, dir, k.Log)
			if err != nil {
				t.Fatal(err)
			}
			post(w, body(t, log, 0))
			w.Close()
			c.damage(t, dir)
			if _, err := open(t, dir, c.logs...); fault.KindOf(err) != c.want {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

func replace(file, old, with string) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || !strings.Contains(string(b), old) {
			t.Fatalf("%s has no %q: %v\n%s", file, old, err, b)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(strings.Replace(string(b), old, with, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A witness whose directory was restored from a copy finds its own cosignature on what it does not remember.
func TestWitnessSetBackToACopySignsNoMore(t *testing.T) {
	k, dir := newLogKey(t), t.TempDir()
	log := k.NewLog(t, "entry", 3)
	w, err := open(t, dir, k.Log)
	if err != nil {
		t.Fatal(err)
	}
	post(w, body(t, log, 0))
	backup, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	ledgertest.Grow(t, log, "entry", 2)
	line := post(w, body(t, log, 3)).Body.Bytes()
	w.Close()
	if err := os.WriteFile(filepath.Join(dir, "state.json"), backup, 0o600); err != nil {
		t.Fatal(err)
	}
	w = mustOpen(t, dir, k.Log)
	if rec := post(w, append(body(t, log, 3), line...)); rec.Code != 500 {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	if s, err := serve.Read(dir); err != nil || len(s.Alarms) != 1 || s.Alarms[0].Doubt != witness.Lost {
		t.Errorf("%+v, %v", s.Alarms, err)
	}
}

func TestRequestsAtOnceNeverSetTheMemoryBack(t *testing.T) {
	k, dir := newLogKey(t), t.TempDir()
	log := k.NewLog(t, "entry", 1)
	w := mustOpen(t, dir, k.Log)
	post(w, body(t, log, 0))
	var bodies [][]byte
	for range 16 {
		ledgertest.Grow(t, log, "entry", 1)
		bodies = append(bodies, body(t, log, 1))
	}
	var all sync.WaitGroup
	granted := make(chan int, len(bodies))
	for _, b := range bodies {
		all.Go(func() {
			if rec := post(w, b); rec.Code == 200 {
				granted <- 1
			}
		})
	}
	all.Wait()
	if len(granted) != 1 { // all of them were decided on size 1
		t.Errorf("%d were cosigned, want 1", len(granted))
	}
}

// Kill -9 between remembering and answering: what nobody got is remembered, and the next life goes on from there.
func TestWitnessKilledBetweenRememberingAndAnswering(t *testing.T) {
	k, dir := newLogKey(t), t.TempDir()
	log := k.NewLog(t, "entry", 1)
	old := int64(0)
	for life := range 4 {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		c := exec.CommandContext(t.Context(), self)
		c.Env = append(os.Environ(), childDir+"="+dir, childLog+"="+k.VKey)
		c.Stderr = t.Output()
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		var addr string
		if _, err := fmt.Fscanln(out, &addr); err != nil {
			t.Fatal(err)
		}
		resp, err := http.Post("http://"+addr+"/add-checkpoint", "", bytes.NewReader(body(t, log, old)))
		if err == nil {
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			t.Fatalf("life %d answered %s %s", life, resp.Status, b)
		}
		c.Wait()
		s, err := serve.Read(dir)
		if err != nil || len(s.Logs) != 1 || s.Logs[0].Size != log.Size() {
			t.Fatalf("life %d: %+v, %v; want size %d", life, s, err, log.Size())
		}
		old = log.Size()
		ledgertest.Grow(t, log, "entry", 2)
	}
	w := mustOpen(t, dir, k.Log)
	if rec := post(w, body(t, k.NewLog(t, "other", int(log.Size())), old)); rec.Code != 422 {
		t.Errorf("another history after the last life: %d %s", rec.Code, rec.Body)
	}
	if rec := post(w, body(t, log, old)); rec.Code != 200 {
		t.Errorf("the log: %d %s", rec.Code, rec.Body)
	}
}

func FuzzMemory(f *testing.F) {
	f.Add([]byte("{\n  \"format\": 1,\n  \"logs\": []\n}\n"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if again, err := serve.RoundTrip(b); err == nil && !bytes.Equal(again, b) {
			t.Errorf("%q was read as %q", b, again)
		}
	})
}
