package local_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/runtimetest"
)

func TestHost(t *testing.T) {
	runtimetest.Suite(t, func(t *testing.T) runtimetest.Harness {
		m := newMachine(t)
		return runtimetest.Harness{
			Host: m.host,
			Spec: func(id string, p runtimetest.Program) runtime.Spec {
				s := m.serving(id)
				s.StopTimeout = 500 * time.Millisecond
				switch p {
				case runtimetest.ExitThree:
					s.Args = []string{"/bin/server", "exit", "3"}
				case runtimetest.NeverReady:
					s.Args = []string{"/bin/server", "sleep"}
				case runtimetest.Stubborn:
					s.Args = []string{"/bin/server", "stubborn", "80"}
				}
				return s
			},
			Reopen: func() runtime.Host {
				if err := m.host.Close(); err != nil {
					t.Fatal(err)
				}
				m.open()
				return m.host
			},
			Args: func(c runtimetest.Command) []string {
				if c == runtimetest.Cat {
					return []string{"/bin/server", "cat"}
				}
				return []string{"/bin/server", "exit", "5"}
			},
			Kill: func(o instance.Observation) {
				if err := unix.Kill(o.PID, unix.SIGKILL); err != nil {
					t.Error(err)
				}
			},
		}
	})
}
