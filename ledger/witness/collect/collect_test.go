package collect_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/ledger/ledgertest"
	"github.com/invarhq/invar/ledger/witness"
	"github.com/invarhq/invar/ledger/witness/collect"
	"github.com/invarhq/invar/ledger/witness/serve"
)

const origin = "invar.example/ledger"

// scene is a log, its witnesses, and a network between them that is a function call.
type scene struct {
	t     *testing.T
	dir   string
	key   ledgertest.Key
	log   *ledger.Log
	hosts map[string]http.Handler
	all   []witness.Witness
	asked map[string]*atomic.Int64
	least int
}

func newScene(t *testing.T, witnesses ...string) *scene {
	s := &scene{t: t, dir: t.TempDir(), hosts: make(map[string]http.Handler), asked: make(map[string]*atomic.Int64), least: len(witnesses)}
	s.key = ledgertest.NewKey(t, origin)
	known, err := witness.ParseLog(s.key.VKey)
	s.must(err)
	s.log = s.newLog("entry", 3)
	for _, name := range witnesses {
		w, err := serve.Open(serve.Config{Dir: t.TempDir(), Name: name, Logs: []witness.Log{known}, Log: slog.New(slog.DiscardHandler)})
		s.must(err)
		t.Cleanup(func() { w.Close() })
		s.hosts[name], s.asked[name] = w.Handler(), new(atomic.Int64)
		s.all = append(s.all, witness.Witness{Name: name, Verifier: w.Verifier(), URL: "http://" + name})
	}
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

func (s *scene) grow(log *ledger.Log, prefix string, by int) {
	s.t.Helper()
	ledgertest.Grow(s.t, log, prefix, by)
}

func (s *scene) RoundTrip(r *http.Request) (*http.Response, error) {
	h := s.hosts[r.URL.Host]
	if h == nil {
		return nil, fmt.Errorf("%s is down", r.URL.Host)
	}
	s.asked[r.URL.Host].Add(1)
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return rec.Result(), nil
}

func (s *scene) policy() witness.Policy {
	p, err := witness.NewPolicy(s.least, s.all...)
	s.must(err)
	return p
}

func (s *scene) file() string { return filepath.Join(s.dir, "cosigned") }

// open opens a collector of the scene's log.
func (s *scene) open() *collect.Collector {
	s.t.Helper()
	c, err := collect.Open(s.t.Context(), collect.Config{
		Log: s.log, Verifier: s.key.Verifier, Policy: s.policy, File: s.file(), Client: &http.Client{Transport: s},
		Logger: slog.New(slog.NewTextHandler(s.t.Output(), nil)),
	})
	s.must(err)
	return c
}

// runs runs a collector for some time.
func runs(t *testing.T, c *collect.Collector, lasts time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	c.Run(ctx)
}

func kinds(alarms []collect.Alarm) string {
	var out []string
	for _, a := range alarms {
		out = append(out, string(a.Kind))
	}
	return strings.Join(out, " ")
}

func TestQuorumFollowsTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, "a", "b")
		c := s.open()
		runs(t, c, 500*time.Millisecond)
		for range 5 {
			signed, size := c.Quorum()
			if size != s.log.Size() {
				t.Fatalf("a quorum up to %d of %d", size, s.log.Size())
			}
			r, err := witness.Check(signed, s.key.Verifier, s.policy())
			if err != nil || !r.Quorum || len(r.By) != 2 {
				t.Errorf("%+v, %v", r, err)
			}
			if !bytes.Equal(c.Cosigned(s.log.Checkpoint()), signed) {
				t.Error("the newest checkpoint goes without its cosignatures")
			}
			s.grow(s.log, "entry", 3)
			if !bytes.Equal(c.Cosigned(s.log.Checkpoint()), s.log.Checkpoint()) {
				t.Error("a checkpoint with the cosignatures of another")
			}
			runs(t, c, 2*time.Second)
		}
		if st := c.Status(); st.Raised != 0 || st.Witnesses[0].Err != nil {
			t.Errorf("%+v", st)
		}
	})
}

func TestAWitnessIsAskedOnceASecondAndNotForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, "a")
		c := s.open()
		done := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { c.Run(ctx); close(done) }()
		for range 100 { // ten appends a second, for ten seconds
			s.grow(s.log, "entry", 1)
			time.Sleep(100 * time.Millisecond)
		}
		if n := s.asked["a"].Load(); n > 12 {
			t.Errorf("asked %d times in 10 s", n)
		}
		time.Sleep(2 * time.Second)
		busy := s.asked["a"].Load()
		time.Sleep(50 * time.Minute)
		if n := s.asked["a"].Load() - busy; n != 0 {
			t.Errorf("asked %d times though nothing had changed", n)
		}
		time.Sleep(20 * time.Minute)
		if n := s.asked["a"].Load() - busy; n != 1 {
			t.Errorf("asked %d times for a younger time, want 1", n)
		}
		cancel()
		<-done
	})
}

func TestAWitnessThatIsDownIsAskedLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, "a", "b")
		s.least = 1
		s.hosts["b"] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusServiceUnavailable) })
		c := s.open()
		runs(t, c, 10*time.Minute)
		if n := s.asked["b"].Load(); n < 5 || n > 12 {
			t.Errorf("asked %d times in 10 min", n)
		}
		st := c.Status()
		if st.UpTo != s.log.Size() || st.Witnesses[1].Err == nil || st.Raised != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestAWitnessThatHangsDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, "a", "b")
		s.least = 1
		s.hosts["b"] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		c := s.open()
		done := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { c.Run(ctx); close(done) }()
		for range 5 {
			s.grow(s.log, "entry", 1)
			time.Sleep(2 * time.Second)
			if _, size := c.Quorum(); size != s.log.Size() {
				t.Errorf("a quorum up to %d of %d", size, s.log.Size())
			}
		}
		cancel()
		<-done
	})
}

func TestQuorumIsThereAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, "a", "b")
		c := s.open()
		runs(t, c, time.Second)
		s.hosts["a"] = nil
		signed, size := s.open().Quorum()
		if want, _ := c.Quorum(); size != 3 || !bytes.Equal(signed, want) {
			t.Errorf("up to %d: %q", size, signed)
		}
	})
}

func TestAlarmWhenTheLogIsNotWhatWasCosigned(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *scene)
		want   string // of the witness
		own    string // of the log itself, when it knows what was cosigned
	}{
		"cut back":         {func(s *scene) { s.log = s.newLog("entry", 2) }, "ahead", "cut-back"},
		"rewritten":        {func(s *scene) { s.log = s.newLog("other", 3) }, "forked", "replaced"},
		"rewritten, grown": {func(s *scene) { s.log = s.newLog("other", 5) }, "refused", "replaced"},
		"the same":         {func(s *scene) {}, "", ""},
	} {
		for _, knows := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, knowing %v", name, knows), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newScene(t, "a")
					runs(t, s.open(), time.Second)
					c.change(s)
					if !knows {
						s.must(os.Remove(s.file()))
						c.own = ""
					}
					col := s.open()
					runs(t, col, 10*time.Second)
					st := col.Status()
					if got := kinds(st.Witnesses[0].Alarms); got != c.want {
						t.Errorf("alarms of the witness %q, want %q", got, c.want)
					}
					if got := kinds(st.Alarms); got != c.own {
						t.Errorf("own alarms %q, want %q", got, c.own)
					}
					if want := len(strings.Fields(c.want + " " + c.own)); st.Raised != want {
						t.Errorf("%d alarms, want %d: one for each kind", st.Raised, want)
					}
					if c.want != "" && st.UpTo != 0 {
						t.Errorf("a quorum up to %d", st.UpTo)
					}
				})
			})
		}
	}
}

func TestAlarmWhenAWitnessForgot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, "a")
		c := s.open()
		runs(t, c, time.Second)
		honest := s.hosts["a"]
		s.hosts["a"] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			s.must(err)
			if strings.HasPrefix(string(b), "old 3\n") {
				w.WriteHeader(409)
				io.WriteString(w, "1\n")
				return
			}
			honest.ServeHTTP(w, r)
		})
		s.grow(s.log, "entry", 1)
		runs(t, c, 2*time.Second)
		if got := kinds(c.Status().Witnesses[0].Alarms); got != "set-back" {
			t.Errorf("alarms %q", got)
		}
	})
}

func TestAnswersThatProveNothingAreNoCosignatures(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"nothing":        func(w http.ResponseWriter, _ *http.Request) {},
		"no signature":   func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") },
		"junk":           func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "— a AAAAAAAAAAAA\n") },
		"too much":       func(w http.ResponseWriter, _ *http.Request) { w.Write(bytes.Repeat([]byte("— a AAAA\n"), 1<<16)) },
		"a bad conflict": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(409); io.WriteString(w, "many\n") },
		"always another": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(409); io.WriteString(w, "1\n") },
		"elsewhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://b/", http.StatusTemporaryRedirect)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, "a")
				s.hosts["a"] = answer
				c := s.open()
				runs(t, c, 5*time.Second)
				st := c.Status()
				if st.UpTo != 0 || st.Witnesses[0].Cosigned != 0 || st.Witnesses[0].Err == nil {
					t.Errorf("%+v", st)
				}
				if !bytes.Equal(c.Cosigned(s.log.Checkpoint()), s.log.Checkpoint()) {
					t.Error("a cosignature was taken")
				}
			})
		})
	}
}

func TestFinishAsksForWhatTheLogGotLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, "a")
		c := s.open()
		runs(t, c, 5*time.Second)
		s.grow(s.log, "entry", 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c.Finish(ctx)
		if _, size := c.Quorum(); size != 4 {
			t.Errorf("a quorum up to %d of 4", size)
		}
	})
}

func TestDamagedFileRaisesAnAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, "a")
		s.must(os.WriteFile(s.file(), []byte("not a checkpoint\n"), 0o600))
		if got := kinds(s.open().Status().Alarms); got != "damaged" {
			t.Errorf("alarms %q", got)
		}
	})
}
