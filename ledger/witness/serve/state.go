package serve

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/durable"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger/witness"
)

// Files of the directory.
const (
	secretFile   = "witness.key"
	publicFile   = "witness.pub"
	stateFile    = "state.json"
	evidenceDir  = "evidence"
	stateFormat  = 1
	maxEvidence  = 1000 // kept; whoever has the log's key could make any number
	heldFile     = "held"
	submitFile   = "submitted"
	maxStateSize = 64 << 20
)

// memory is what the witness remembers: the content of stateFile.
type memory struct {
	Format int          `json:"format"`
	Logs   []remembered `json:"logs"` // by verifier key
}

// remembered is the newest checkpoint of a log that was cosigned.
type remembered struct {
	Log        string `json:"log"`        // its verifier key
	Checkpoint string `json:"checkpoint"` // as the log signed it
	Time       int64  `json:"time"`       // when it was first cosigned, in seconds
}

func (m memory) encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	return append(b, '\n'), err
}

// decodeMemory accepts what encode returns and nothing else.
func decodeMemory(b []byte) (memory, error) {
	var m memory
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return memory{}, fault.As(fault.Corrupt, err)
	}
	if again, err := m.encode(); err != nil || !bytes.Equal(again, b) {
		return memory{}, fault.Errorf(fault.Corrupt, "not as a witness writes it")
	}
	if m.Format != stateFormat {
		return memory{}, fault.Errorf(fault.Corrupt, "format %d, this program knows %d", m.Format, stateFormat)
	}
	return m, nil
}

// seen returns what is remembered of each log. A log is known by its origin: under another key it is another log of the
// same name, and that is refused.
func (m memory) seen(logs []witness.Log) (map[string]witness.Seen, error) {
	out := make(map[string]witness.Seen)
	for _, r := range m.Logs {
		l, err := witness.ParseLog(r.Log)
		if err != nil {
			return nil, fault.As(fault.Corrupt, err)
		}
		for _, configured := range logs {
			if configured.Name() == l.Name() && configured.VKey != l.VKey {
				return nil, fault.WithHint(fault.Errorf(fault.Invalid, "the log %s is remembered under the key %s, and now given as %s", l.Name(), l.VKey, configured.VKey),
					"a log does not change its key: ask whoever runs it")
			}
		}
		if _, twice := out[l.Name()]; twice {
			return nil, fault.Errorf(fault.Corrupt, "the log %s is remembered twice", l.Name())
		}
		if out[l.Name()], err = witness.Recall(l, []byte(r.Checkpoint)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// with returns the memory with a newer checkpoint of a log.
func (m memory) with(l witness.Log, s witness.Seen, now time.Time) memory {
	r := remembered{l.VKey, string(s.Note), now.Unix()}
	out := memory{stateFormat, slices.Clone(m.Logs)}
	at, found := slices.BinarySearchFunc(out.Logs, l.VKey, func(r remembered, vkey string) int { return strings.Compare(r.Log, vkey) })
	if found {
		out.Logs[at] = r
	} else {
		out.Logs = slices.Insert(out.Logs, at, r)
	}
	return out
}

// load reads the memory. A directory whose key is there has one: without it, the witness would cosign again from nothing.
func load(dir string) (memory, error) {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return memory{}, fault.WithHint(fault.Errorf(fault.Corrupt, "%s has the key of a witness but no %s: its memory is missing", dir, stateFile),
			"a witness that forgot what it cosigned is none: make a new one, with a new key, in an empty directory")
	}
	if err != nil {
		return memory{}, err
	}
	if len(b) > maxStateSize {
		return memory{}, fault.Errorf(fault.Corrupt, "%s has %d bytes", stateFile, len(b))
	}
	m, err := decodeMemory(b)
	if err != nil {
		return memory{}, fmt.Errorf("reading %s: %w", filepath.Join(dir, stateFile), err)
	}
	return m, nil
}

// store makes the memory durable.
func (m memory) store(dir string) error {
	b, err := m.encode()
	if err != nil {
		return err
	}
	return durable.Write(filepath.Join(dir, stateFile), b, 0o600)
}

// Alarm is an inconsistency that the witness has seen and kept.
type Alarm struct {
	Doubt     witness.Doubt `json:"doubt"`
	Time      time.Time     `json:"time"`
	Log       string        `json:"log"`
	Directory string        `json:"directory"` // in the witness's, with both checkpoints: held, submitted
	Held      string        `json:"held"`
	Submitted string        `json:"submitted"`
}

// keep keeps evidence durably, and tells whether it is new.
func keep(dir string, l witness.Log, e witness.Evidence) (name string, fresh bool, err error) {
	id := digest.Of(slices.Concat([]byte(l.VKey), e.Held, e.Submitted))
	name = filepath.Join(evidenceDir, fmt.Sprintf("%s-%s", e.Doubt, id.Hex()[:16]))
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return name, false, nil
	}
	parent := filepath.Join(dir, evidenceDir)
	if all, err := os.ReadDir(parent); err == nil && len(all) >= maxEvidence {
		return name, false, nil
	}
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return name, false, err
	}
	draft, err := os.MkdirTemp(parent, ".new-*")
	if err != nil {
		return name, false, err
	}
	defer os.RemoveAll(draft) // gone already when it was renamed
	for file, content := range map[string][]byte{heldFile: e.Held, submitFile: e.Submitted, "log": []byte(l.VKey + "\n")} {
		if err := durable.Write(filepath.Join(draft, file), content, 0o600); err != nil {
			return name, false, err
		}
	}
	if err := os.Rename(draft, path); err != nil {
		return name, false, err
	}
	return name, true, errors.Join(durable.SyncDir(parent), durable.SyncDir(dir))
}

// alarms reads the evidence that was kept, by name.
func alarms(dir string) ([]Alarm, error) {
	all, err := os.ReadDir(filepath.Join(dir, evidenceDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	out := []Alarm{}
	for _, d := range all {
		doubt, id, ok := strings.Cut(d.Name(), "-")
		if _, err := hex.DecodeString(id); err != nil || !ok || doubt == "" {
			continue
		}
		info, err := d.Info()
		if err != nil {
			return nil, err
		}
		a := Alarm{Doubt: witness.Doubt(doubt), Time: info.ModTime().UTC(), Directory: filepath.Join(evidenceDir, d.Name())}
		for file, to := range map[string]*string{heldFile: &a.Held, submitFile: &a.Submitted, "log": &a.Log} {
			b, err := os.ReadFile(filepath.Join(dir, a.Directory, file))
			if err != nil {
				return nil, err
			}
			*to = strings.TrimSuffix(string(b), "\n")
		}
		a.Held, a.Submitted = terminated(a.Held), terminated(a.Submitted)
		out = append(out, a)
	}
	return out, nil
}

// terminated gives a note its last newline back.
func terminated(s string) string {
	if s == "" {
		return s
	}
	return s + "\n"
}
