package runtimetest_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/runtimetest"
)

func spec(id string) runtime.Spec {
	return runtime.Spec{
		Identity: instance.Identity{ID: instance.ID(id), Env: "test", Component: "web"},
		Root:     digest.Of(nil),
		Args:     []string{"/server"},
	}
}

func only(t *testing.T, f *runtimetest.Fake) instance.Observation {
	t.Helper()
	list, err := f.List(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("List: %v, %v; want one instance", list, err)
	}
	return list[0]
}

func start(t *testing.T, f *runtimetest.Fake, s runtime.Spec) {
	t.Helper()
	if err := f.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := f.Start(t.Context(), s.Identity.ID); err != nil {
		t.Fatal(err)
	}
}

func TestFakeInstanceBehavesAsPlanned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := runtimetest.New(runtimetest.Config{Behave: func(runtime.Spec) runtimetest.Behaviour {
			return runtimetest.Behaviour{Ready: time.Second, FailAfter: time.Minute, ExitAfter: time.Hour, ExitCode: 3}
		}})
		start(t, f, spec("web-a"))
		var got []string
		for range 4 {
			o := only(t, f)
			got = append(got, fmt.Sprintf("%s/%s/%d", o.State, o.Health, o.ExitCode))
			if o.State != instance.Exited {
				<-f.Changed()
			}
		}
		want := []string{"running//0", "running/passing/0", "running/failing/0", "exited//3"}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		if err := f.Start(t.Context(), "web-a"); !errors.Is(err, fault.Conflict) {
			t.Errorf("starting an exited instance: %v, want a conflict", err)
		}
	})
}

func TestFakeKillsWhatOutlivesItsStopTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := runtimetest.New(runtimetest.Config{Behave: func(runtime.Spec) runtimetest.Behaviour {
			return runtimetest.Behaviour{StopTakes: time.Hour}
		}})
		start(t, f, spec("web-a"))
		began := time.Now()
		if err := f.Stop(t.Context(), "web-a"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("stopped after %v, want the default timeout of 10s", took)
		}
		if o := only(t, f); o.ExitCode != 137 {
			t.Errorf("exit code %d, want 137", o.ExitCode)
		}
	})
}

func TestFakeFailsOnRequest(t *testing.T) {
	f := runtimetest.New(runtimetest.Config{})
	f.FailNext(1)
	if err := f.Create(t.Context(), spec("web-a")); !errors.Is(err, fault.Unavailable) || f.Len() != 0 {
		t.Errorf("FailNext: error %v and %d instances, want unavailable and none", err, f.Len())
	}
	f.LoseNext(1)
	if err := f.Create(t.Context(), spec("web-a")); !errors.Is(err, fault.Unavailable) || f.Len() != 1 {
		t.Errorf("LoseNext: error %v and %d instances, want unavailable and one", err, f.Len())
	}
	if err := f.Vanish("web-a"); err != nil || f.Len() != 0 {
		t.Errorf("Vanish: error %v and %d instances, want none", err, f.Len())
	}
	f.SetDown(true)
	if _, err := f.List(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Errorf("List of a host that is down: %v, want unavailable", err)
	}
}

// Errors by chance depend on the seed and on what is asked, not on the order among instances.
func TestFakeErrorsFollowTheSeed(t *testing.T) {
	run := func(seed uint64, reverse bool) string {
		f := runtimetest.New(runtimetest.Config{Seed: seed, ErrorRate: 0.2, LostRate: 0.1})
		failed := make([]byte, 200)
		for i := range failed {
			if reverse {
				i = len(failed) - 1 - i
			}
			failed[i] = '.'
			if f.Create(t.Context(), spec(fmt.Sprintf("web-%d", i))) != nil {
				failed[i] = 'x'
			}
		}
		return string(failed)
	}
	if a, b := run(1, false), run(1, true); a != b {
		t.Errorf("equal seeds differ:\n%s\n%s", a, b)
	}
	if run(1, false) == run(2, false) {
		t.Error("other seeds fail alike")
	}
	if n := strings.Count(run(3, false), "x"); n < 30 || n > 90 {
		t.Errorf("%d of 200 calls failed, want about 60", n)
	}
}

func BenchmarkFakeTenThousand(b *testing.B) {
	for b.Loop() {
		f := runtimetest.New(runtimetest.Config{})
		for i := range 10_000 {
			s := spec(fmt.Sprintf("web-%d", i*7919%10_000))
			if f.Create(b.Context(), s) != nil || f.Start(b.Context(), s.Identity.ID) != nil {
				b.Fatal("create or start failed")
			}
		}
		if list, _ := f.List(b.Context()); len(list) != 10_000 {
			b.Fatal(len(list))
		}
	}
}

func TestFake(t *testing.T) {
	runtimetest.Suite(t, func(t *testing.T) runtimetest.Harness {
		f := runtimetest.New(runtimetest.Config{
			HasRoot: func(d digest.Digest) bool { return d == digest.Of(nil) },
			Behave: func(s runtime.Spec) runtimetest.Behaviour {
				switch runtimetest.Program(s.Args[1]) {
				case runtimetest.ExitThree:
					return runtimetest.Behaviour{ExitAfter: time.Millisecond, ExitCode: 3}
				case runtimetest.NeverReady:
					return runtimetest.Behaviour{Ready: time.Millisecond, NeverReady: true}
				case runtimetest.Stubborn:
					return runtimetest.Behaviour{StopTakes: time.Hour}
				}
				return runtimetest.Behaviour{Ready: time.Millisecond}
			},
		})
		return runtimetest.Harness{
			Host: f,
			Spec: func(id string, p runtimetest.Program) runtime.Spec {
				s := spec(id)
				s.Args = append(s.Args, string(p))
				s.StopTimeout = 20 * time.Millisecond
				return s
			},
			Reopen: func() runtime.Host { return f },
			Args: func(c runtimetest.Command) []string {
				if c == runtimetest.Cat {
					return []string{"cat"}
				}
				return []string{"exit", "5"}
			},
			Kill: func(o instance.Observation) {
				if err := f.Kill(o.Identity.ID); err != nil {
					t.Error(err)
				}
			},
		}
	})
}
