package mirror_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/ledger/ledgertest"
	"github.com/invarhq/invar/ledger/mirror"
	"github.com/invarhq/invar/ledger/tiles"
)

const origin = "invar.example/ledger"

// scene is a log that is served by a function call, and a directory for its copy.
type scene struct {
	t       *testing.T
	key     ledgertest.Key
	log     *ledger.Log
	dir     string
	fetched atomic.Int64
	change  func(path string, data []byte) ([]byte, error) // what a bad log or network makes of an answer
}

func newScene(t *testing.T, size int) *scene {
	t.Helper()
	s := &scene{t: t, dir: t.TempDir()}
	s.key = ledgertest.NewKey(t, origin)
	s.log = s.newLog("entry", size)
	return s
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) newLog(prefix string, size int) *ledger.Log {
	s.t.Helper()
	return s.key.NewLog(s.t, prefix, size)
}

// grow appends entries until there are size.
func (s *scene) grow(log *ledger.Log, prefix string, size int) {
	s.t.Helper()
	ledgertest.Grow(s.t, log, prefix, size-int(log.Size()))
}

func (s *scene) fetch(ctx context.Context, path string) ([]byte, error) {
	s.fetched.Add(1)
	if path == "checkpoint.cosigned" && s.change == nil {
		return nil, fault.Errorf(fault.NotFound, "there is none")
	}
	data, err := s.log.Tile(ctx, path)
	if s.change != nil {
		return s.change(path, data)
	}
	return data, err
}

// turn copies what is new.
func (s *scene) turn() (mirror.Report, error) {
	s.t.Helper()
	m, err := mirror.Open(s.dir, s.key.VKey, s.fetch, slog.New(slog.NewTextHandler(s.t.Output(), nil)))
	s.must(err)
	defer m.Close()
	return m.Turn(s.t.Context())
}

// verify checks the copy as an auditor does.
func (s *scene) verify() (ledger.Report, error) {
	return ledger.Verify(s.t.Context(), tiles.New(os.DirFS(s.dir)), s.key.VKey)
}

func TestCopyFollowsTheLogAndVerifies(t *testing.T) {
	s := newScene(t, 0)
	before := int64(0)
	for _, size := range []int{0, 1, 2, 255, 256, 257, 600, 5000, 5000, 66000} {
		if int64(size) > s.log.Size() {
			s.grow(s.log, "entry", size)
		}
		r, err := s.turn()
		if err != nil || r.Before != before || r.Size != int64(size) {
			t.Fatalf("at %d: %+v, %v", size, r, err)
		}
		report, err := s.verify()
		if err != nil || report.Size != int64(size) {
			t.Fatalf("at %d: %+v, %v", size, report, err)
		}
		before = r.Size
	}
	var parts []string
	s.must(filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if strings.HasSuffix(filepath.Dir(path), ".p") {
			parts = append(parts, path)
		}
		return err
	}))
	if len(parts) != 4 { // the last bundle, and tiles of levels 0, 1 and 2
		t.Errorf("partial tiles of earlier sizes stayed: %q", parts)
	}
}

func TestATurnFetchesOnlyWhatIsNew(t *testing.T) {
	s := newScene(t, 66000)
	_, err := s.turn()
	s.must(err)
	s.fetched.Store(0)
	_, err = s.turn()
	s.must(err)
	if n := s.fetched.Load(); n != 2 { // the checkpoint, and none that is cosigned
		t.Errorf("%d fetched though nothing is new", n)
	}
	s.grow(s.log, "entry", 66001)
	s.fetched.Store(0)
	_, err = s.turn()
	s.must(err)
	if n := s.fetched.Load(); n > 14 {
		t.Errorf("%d fetched for one entry", n)
	}
}

func TestALogThatWasChangedIsNotCopied(t *testing.T) {
	for name, c := range map[string]struct {
		log  func(s *scene) *ledger.Log
		kind string
	}{
		"another of the same size": {func(s *scene) *ledger.Log { return s.newLog("other", 600) }, "fork"},
		"another that grew":        {func(s *scene) *ledger.Log { return s.newLog("other", 5000) }, "fork"},
		"another that is smaller":  {func(s *scene) *ledger.Log { return s.newLog("other", 300) }, "fork"},
		"the same, cut back":       {func(s *scene) *ledger.Log { return s.newLog("entry", 300) }, "cut-back"},
		"begun anew":               {func(s *scene) *ledger.Log { return s.newLog("entry", 0) }, "cut-back"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, 600)
			_, err := s.turn()
			s.must(err)
			held := s.log.Checkpoint()
			s.log = c.log(s)
			_, err = s.turn()
			bad, ok := errors.AsType[*mirror.Inconsistency](err)
			if !ok || !errors.Is(err, fault.Corrupt) || !strings.Contains(bad.Kept, "/evidence/"+c.kind+"-") {
				t.Fatalf("%v", err)
			}
			for file, want := range map[string][]byte{"held": held, "received": s.log.Checkpoint()} {
				if got, err := os.ReadFile(filepath.Join(bad.Kept, file)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s is %q, %v; want %q", file, got, err, want)
				}
			}
			if r, err := s.verify(); err != nil || r.Size != 600 { // the copy is as it was
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

func TestNothingIsTakenThatWasNotSigned(t *testing.T) {
	flip := func(which string) func(string, []byte) ([]byte, error) {
		return func(path string, data []byte) ([]byte, error) {
			if path == "checkpoint.cosigned" {
				return nil, fault.Errorf(fault.NotFound, "there is none")
			}
			if strings.HasPrefix(path, which) && len(data) > 0 {
				data = bytes.Clone(data)
				data[len(data)/2] ^= 1
			}
			return data, nil
		}
	}
	for name, change := range map[string]func(string, []byte) ([]byte, error){
		"an entry":                 flip("tile/entries/001"),
		"a tile":                   flip("tile/0/001"),
		"a tile above":             flip("tile/1/"),
		"the checkpoint":           flip("checkpoint"),
		"a tile that is too short": func(path string, data []byte) ([]byte, error) { return data[:len(data)/2], nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, 600)
			s.change = change
			if _, err := s.turn(); !errors.Is(err, fault.Corrupt) {
				t.Fatalf("%v", err)
			}
			if _, err := os.Stat(filepath.Join(s.dir, "checkpoint")); err == nil {
				t.Error("a checkpoint was written")
			}
			s.change = nil
			if _, err := s.turn(); err != nil { // what was left is no hindrance
				t.Fatal(err)
			}
			if r, err := s.verify(); err != nil || r.Size != 600 {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// A turn that ends anywhere leaves the old copy; the next one goes on with what was written.
func TestATurnThatIsCutOffIsTakenUpAgain(t *testing.T) {
	s := newScene(t, 300)
	_, err := s.turn()
	s.must(err)
	s.grow(s.log, "entry", 5000)
	cut := errors.New("killed")
	for after := int64(1); ; after++ {
		s.fetched.Store(0)
		s.change = func(path string, data []byte) ([]byte, error) {
			if s.fetched.Load() > after {
				return nil, cut
			}
			if path == "checkpoint.cosigned" {
				return nil, fault.Errorf(fault.NotFound, "there is none")
			}
			return data, nil
		}
		_, err := s.turn()
		r, verr := s.verify()
		if verr != nil {
			t.Fatalf("cut off after %d: %v", after, verr)
		}
		if err == nil {
			if r.Size != 5000 {
				t.Errorf("size %d", r.Size)
			}
			return
		}
		if r.Size != 300 {
			t.Fatalf("cut off after %d: the copy has %d entries", after, r.Size)
		}
	}
}

// What a power failure left in a file is found, and fetched again.
func TestGarbageInTheCopyIsFetchedAgain(t *testing.T) {
	s := newScene(t, 600)
	for _, path := range []string{"tile/0/000", "tile/0/001", "tile/entries/000", "tile/1/000.p/2"} {
		s.must(os.MkdirAll(filepath.Dir(filepath.Join(s.dir, path)), 0o755))
		s.must(os.WriteFile(filepath.Join(s.dir, path), make([]byte, 256*32), 0o644))
	}
	_, err := s.turn()
	s.must(err)
	if r, err := s.verify(); err != nil || r.Size != 600 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestCosignedCheckpointMustFit(t *testing.T) {
	s := newScene(t, 600)
	cosigned := s.newLog("entry", 500).Checkpoint()
	s.change = func(path string, data []byte) ([]byte, error) {
		if path == "checkpoint.cosigned" {
			return cosigned, nil
		}
		return data, nil
	}
	r, err := s.turn()
	if err != nil || r.Cosigned != 500 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, bad := range [][]byte{s.newLog("other", 500).Checkpoint(), s.newLog("entry", 601).Checkpoint()} {
		cosigned = bad
		if _, err := s.turn(); !errors.Is(err, fault.Corrupt) {
			t.Errorf("%v", err)
		}
	}
}

func TestCopyHasOneLogAndOneProcess(t *testing.T) {
	s := newScene(t, 3)
	discard := slog.New(slog.DiscardHandler)
	if _, err := mirror.Open(s.dir, "", s.fetch, discard); fault.KindOf(err) != fault.Invalid {
		t.Errorf("without a key: %v", err)
	}
	m, err := mirror.Open(s.dir, s.key.VKey, s.fetch, discard)
	s.must(err)
	if _, err := mirror.Open(s.dir, s.key.VKey, s.fetch, discard); !errors.Is(err, fault.Conflict) {
		t.Errorf("a second: %v", err)
	}
	s.must(m.Close())
	if _, err := mirror.Open(s.dir, newScene(t, 0).key.VKey, s.fetch, discard); fault.KindOf(err) != fault.Invalid {
		t.Errorf("another key: %v", err)
	}
	m, err = mirror.Open(s.dir, "", s.fetch, discard) // the key that it has
	s.must(err)
	s.must(m.Close())
}

func TestTokenGoesToTheLogAlone(t *testing.T) {
	var seen atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen.Add(1) }))
	defer other.Close()
	log := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer secret":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/ledger/away":
			http.Redirect(w, r, other.URL, http.StatusFound)
		case r.URL.Path == "/ledger/none":
			http.NotFound(w, r)
		default:
			fmt.Fprint(w, r.URL.Path)
		}
	}))
	defer log.Close()
	fetch, err := mirror.HTTP(log.URL, "secret")
	if err != nil {
		t.Fatal(err)
	}
	if data, err := fetch(t.Context(), "checkpoint"); err != nil || string(data) != "/ledger/checkpoint" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := fetch(t.Context(), "away"); fault.KindOf(err) != fault.Unavailable || seen.Load() != 0 {
		t.Errorf("%v, and %d requests elsewhere", err, seen.Load())
	}
	if _, err := fetch(t.Context(), "none"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	without, err := mirror.HTTP(log.URL+"/prefix/", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := without(t.Context(), "checkpoint"); fault.KindOf(err) != fault.Denied || fault.Hint(err) == "" {
		t.Errorf("%v", err)
	}
	for _, where := range []string{"", "unix://", "localhost:1", "ftp://h", "http://u:p@h", "http://h?q"} {
		if _, err := mirror.HTTP(where, ""); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: %v", where, err)
		}
	}
}
