// Package serve runs a witness: https://c2sp.org/tlog-witness over HTTP, with its memory in a directory.
//
//	witness.key    the secret key; witness.pub the verifier key
//	state.json     the newest checkpoint that was cosigned, log by log
//	evidence/      what did not go with it: a directory for each pair of checkpoints, never removed
//	lock           held while a witness runs
//
// # Guarantees
//
// What is cosigned is in state.json, durably, before the cosignature leaves: whenever the process dies, it remembers at least
// all that anybody got from it. One process has the directory. A directory with a key but no state.json is refused, and so is
// a checkpoint that carries this witness's own cosignature when the memory is older than it.
//
// A whole directory that was set back to an older copy can't be told from that copy until the log shows what was cosigned
// since. The log's side does: it remembers which size each witness cosigned.
package serve

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/invarhq/invar/durable"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger/witness"
)

// Config says who a witness is and what it is for.
type Config struct {
	Dir  string        // made when it is missing or empty
	Name string        // of the key that is made then; "" takes the machine's and a random part
	Logs []witness.Log // that it cosigns; one at least
	Log  *slog.Logger
}

// Witness is one that runs. Its methods may be called by any number of goroutines.
type Witness struct {
	dir    string
	log    *slog.Logger
	logs   map[string]witness.Log // by origin
	key    witness.Key
	now    func() time.Time
	unlock func() error

	persisted func() // called between making durable and answering; for tests

	mu     sync.Mutex // from deciding until what was decided is durable
	memory memory
	seen   map[string]witness.Seen // by origin: memory, parsed
}

// Open opens the directory of a witness, and makes a witness there when it is missing or empty.
func Open(c Config) (_ *Witness, err error) {
	w := &Witness{dir: c.Dir, log: c.Log, logs: make(map[string]witness.Log), now: time.Now}
	if len(c.Logs) == 0 {
		return nil, fault.WithHint(fault.Errorf(fault.Invalid, "a witness for no log"), "give the verifier key of each log with --log")
	}
	for _, l := range c.Logs {
		if _, twice := w.logs[l.Name()]; twice {
			return nil, fault.Errorf(fault.Invalid, "the log %s is given twice", l.Name())
		}
		w.logs[l.Name()] = l
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	if w.unlock, err = durable.Lock(c.Dir); err != nil {
		return nil, fmt.Errorf("opening the witness: %w", err)
	}
	if err := w.open(c); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the witness in %s: %w", c.Dir, err), w.unlock())
	}
	return w, nil
}

func (w *Witness) open(c Config) error {
	raw, err := os.ReadFile(w.path(secretFile))
	if errors.Is(err, fs.ErrNotExist) {
		raw, err = w.begin(c.Name)
	}
	if err != nil {
		return err
	}
	if w.key, err = witness.ParseKey(strings.TrimSpace(string(raw))); err != nil {
		return fault.As(fault.Corrupt, err)
	}
	if w.memory, err = load(w.dir); err != nil {
		return err
	}
	w.seen, err = w.memory.seen(c.Logs)
	return err
}

// begin makes a witness that remembers nothing. The secret key is written last: with it, everything is there.
//
//	crash before it    the next start begins again; nothing was ever signed
func (w *Witness) begin(name string) ([]byte, error) {
	if _, err := os.Stat(w.path(stateFile)); err == nil {
		if m, err := load(w.dir); err != nil || len(m.Logs) > 0 {
			return nil, fault.WithHint(fault.Errorf(fault.Corrupt, "the directory of a witness without %s", secretFile), "restore the key, or make a new witness in an empty directory")
		}
	}
	if name == "" {
		name = newName()
	}
	secret, err := witness.GenerateKey(name)
	if err != nil {
		return nil, err
	}
	key, err := witness.ParseKey(secret)
	if err != nil {
		return nil, err
	}
	if err := (memory{stateFormat, []remembered{}}).store(w.dir); err != nil {
		return nil, err
	}
	if err := durable.Write(w.path(publicFile), []byte(key.Verifier().String()+"\n"), 0o644); err != nil {
		return nil, err
	}
	return []byte(secret), durable.Write(w.path(secretFile), []byte(secret+"\n"), 0o600)
}

// newName names a witness: unique, and recognisable for whoever runs the machine.
func newName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	b := make([]byte, 4)
	rand.Read(b)
	return fmt.Sprintf("%s/witness-%s", host, hex.EncodeToString(b))
}

func (w *Witness) path(name string) string { return filepath.Join(w.dir, name) }

// Verifier is what logs and auditors verify its cosignatures with.
func (w *Witness) Verifier() witness.Verifier { return w.key.Verifier() }

// Close gives the directory back.
func (w *Witness) Close() error { return w.unlock() }

// Serve answers requests until ctx ends.
func (w *Witness) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: w.Handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(w.log.Handler(), slog.LevelWarn),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		return srv.Close()
	}
	return nil
}

// Handler answers POST /add-checkpoint; and GET /alarms and GET /vkey for people.
func (w *Witness) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add-checkpoint", w.addCheckpoint)
	mux.HandleFunc("GET /alarms", w.serveAlarms)
	mux.HandleFunc("GET /vkey", func(rw http.ResponseWriter, _ *http.Request) {
		text(rw)
		_, _ = fmt.Fprintln(rw, w.Verifier()) // the client has gone when this fails
	})
	return mux
}

func text(rw http.ResponseWriter) { rw.Header().Set("Content-Type", "text/plain; charset=utf-8") }

func (w *Witness) addCheckpoint(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, witness.MaxRequestBytes))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	req, err := witness.ParseRequest(body)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	d, line, err := w.add(req)
	switch {
	case err != nil:
		w.log.Error("cosigning failed", "log", req.Origin(), "error", err)
		http.Error(rw, "the witness can't remember anything now", http.StatusServiceUnavailable)
	case d.Verdict == witness.Cosign:
		text(rw)
		_, _ = rw.Write(line) // the client has gone when this fails
	case d.Verdict == witness.Conflict:
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.WriteHeader(http.StatusConflict)
		_, _ = fmt.Fprintf(rw, "%d\n", d.Size)
	default:
		http.Error(rw, d.Err.Error(), int(d.Verdict))
	}
}

// add decides about a request. The cosignature exists only once what it says is remembered.
func (w *Witness) add(req witness.Request) (d witness.Decision, line []byte, err error) {
	l, known := w.logs[req.Origin()]
	if !known {
		return witness.Decision{Verdict: witness.UnknownOrigin, Err: fmt.Errorf("the log %q is not one that this witness is for", req.Origin())}, nil, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	d = witness.Decide(l, w.Verifier(), w.seen[l.Name()], req)
	if d.Evidence != nil {
		w.alarm(l, d)
	}
	if d.Verdict != witness.Cosign {
		return d, nil, nil
	}
	now := w.now()
	if err := w.remember(l, d.Next, now); err != nil {
		return d, nil, err
	}
	if w.persisted != nil {
		w.persisted()
	}
	return d, w.key.Cosign(d.Text, now), nil
}

// remember makes the newest checkpoint of a log durable.
func (w *Witness) remember(l witness.Log, next witness.Seen, now time.Time) error {
	if old, ok := w.seen[l.Name()]; ok && old.Size == next.Size && string(old.Note) == string(next.Note) {
		return nil // cosigned before: only the time is new
	}
	m := w.memory.with(l, next, now)
	if err := m.store(w.dir); err != nil {
		return err
	}
	w.memory, w.seen[l.Name()] = m, next
	return nil
}

// alarm keeps evidence, and says so.
func (w *Witness) alarm(l witness.Log, d witness.Decision) {
	name, fresh, err := keep(w.dir, l, *d.Evidence)
	switch {
	case err != nil:
		w.log.Error("ALARM, and the evidence could not be kept", "log", l.Name(), "doubt", d.Evidence.Doubt, "cause", d.Err, "error", err,
			"held", string(d.Evidence.Held), "submitted", string(d.Evidence.Submitted))
	case fresh:
		w.log.Error("ALARM: an inconsistent checkpoint", "log", l.Name(), "doubt", d.Evidence.Doubt, "cause", d.Err, "evidence", w.path(name))
	default:
		w.log.Warn("an inconsistent checkpoint again", "log", l.Name(), "doubt", d.Evidence.Doubt, "cause", d.Err, "evidence", w.path(name))
	}
}

func (w *Witness) serveAlarms(rw http.ResponseWriter, _ *http.Request) {
	all, err := alarms(w.dir)
	if err != nil {
		w.log.Error("reading the evidence failed", "error", err)
		http.Error(rw, "the evidence can't be read", http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(rw).Encode(all) // the client has gone when this fails
}

// Status is what a witness remembers and what it has seen.
type Status struct {
	VKey   string      `json:"vkey"`
	Logs   []LogStatus `json:"logs"`
	Alarms []Alarm     `json:"alarms"`
}

// LogStatus is the newest that was cosigned of a log.
type LogStatus struct {
	Origin string    `json:"origin"`
	VKey   string    `json:"vkey"`
	Size   int64     `json:"size"`
	Root   string    `json:"root"`
	Time   time.Time `json:"time"`
}

// Read reads the status of the witness in a directory, whether it runs or not.
func Read(dir string) (Status, error) {
	vkey, err := os.ReadFile(filepath.Join(dir, publicFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Status{}, fault.Errorf(fault.NotFound, "%s is not the directory of a witness", dir)
	}
	if err != nil {
		return Status{}, err
	}
	out := Status{VKey: strings.TrimSpace(string(vkey)), Logs: []LogStatus{}}
	m, err := load(dir)
	if err != nil {
		return Status{}, err
	}
	seen, err := m.seen(nil)
	if err != nil {
		return Status{}, err
	}
	for _, r := range m.Logs {
		origin, _, _ := strings.Cut(r.Log, "+")
		s := seen[origin]
		out.Logs = append(out.Logs, LogStatus{origin, r.Log, s.Size, s.Root.String(), time.Unix(r.Time, 0).UTC()})
	}
	out.Alarms, err = alarms(dir)
	return out, err
}
