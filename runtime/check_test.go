package runtime_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
)

func good() runtime.Spec {
	return runtime.Spec{
		Identity:  instance.Identity{ID: "web-abcdefghij"},
		Root:      digest.Of(nil),
		Args:      []string{"/server"},
		Env:       []string{"A=b", "EMPTY="},
		Files:     []runtime.File{{Path: "/etc/web.yaml"}},
		Scratches: []runtime.Scratch{{Path: "/tmp"}, {Path: "/dev/shm"}},
		Volumes:   []runtime.Volume{{Env: "prod", Component: "web", Name: "data", Path: "/data"}},
		Hosts:     []runtime.HostEntry{{Address: "127.77.0.2", Names: []string{"db"}}},
		Ports:     []int{80},
		Health:    &runtime.Health{Port: 80, HTTPPath: "/healthz"},
	}
}

func TestCheckNamesTheField(t *testing.T) {
	if err := good().Check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*runtime.Spec){
		"identity.id":      func(s *runtime.Spec) { s.Identity.ID = "a/b" },
		"root":             func(s *runtime.Spec) { s.Root = "sha256:x" },
		"args: no command": func(s *runtime.Spec) { s.Args = []string{""} },
		"NUL":              func(s *runtime.Spec) { s.Args = []string{"a\x00b"} },
		"env":              func(s *runtime.Spec) { s.Env = []string{"=x"} },
		"workdir":          func(s *runtime.Spec) { s.WorkDir = "srv" },
		"stop_signal":      func(s *runtime.Spec) { s.StopSignal = "TERM" },
		"isolation":        func(s *runtime.Spec) { s.Isolation = "vm" },
		"files":            func(s *runtime.Spec) { s.Files[0].Path = "/etc//x" },
		"already":          func(s *runtime.Spec) { s.Scratches[0].Path = "/data" },
		"made by the host": func(s *runtime.Spec) { s.Volumes[0].Path = "/proc/x" },
		"volumes":          func(s *runtime.Spec) { s.Volumes[0].Name = ".." },
		"hosts":            func(s *runtime.Spec) { s.Hosts[0].Address = "10.0.0.1" },
		"not a name":       func(s *runtime.Spec) { s.Hosts[0].Names = []string{"a b"} },
		"ports":            func(s *runtime.Spec) { s.Ports = []int{70000} },
		"health.port":      func(s *runtime.Spec) { s.Health.Port = 0 },
		"health.http_path": func(s *runtime.Spec) { s.Health.HTTPPath = "healthz" },
		"negative":         func(s *runtime.Spec) { s.MemoryBytes = -1 },
		"size_bytes":       func(s *runtime.Spec) { s.Scratches[0].SizeBytes = -1 },
	} {
		s := good()
		change(&s)
		if err := s.Check(); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want an invalid one with %q", err, want)
		}
	}
}

func TestSignalHasADefault(t *testing.T) {
	if got := (runtime.Spec{}).Signal(); got != 15 {
		t.Errorf("signal %d, want SIGTERM", got)
	}
	if got := (runtime.Spec{StopSignal: "SIGQUIT"}).Signal(); got != 3 {
		t.Errorf("signal %d, want SIGQUIT", got)
	}
}
