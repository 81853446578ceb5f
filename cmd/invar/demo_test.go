package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The demo does what it says, on a machine where another server may run, and leaves nothing behind when it is stopped.
func TestDemo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: instances are namespaces and mounts; CI runs it")
	}
	dir := filepath.Join(t.TempDir(), "demo")
	stop := func() ([]byte, error) {
		return exec.Command(binary, "demo", "--stop", "--demo-dir", dir).CombinedOutput()
	}
	t.Cleanup(func() { stop() })
	for _, run := range []string{"first", "again, on what the first has left"} {
		out, err := exec.CommandContext(t.Context(), binary, "demo", "--demo-dir", dir).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", run, err, out)
		}
		wanted := []string{"<h1>Autumn sale: tea at half price</h1>", "file /etc/hosts differs", "replaced after", "entries verified in", "verifies: log"}
		if run == "first" {
			wanted = append(wanted, "change 1: approved") // prod runs it from then on
		}
		for _, want := range wanted {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: no %q in\n%s", run, want, out)
			}
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, " meanwhile, ") && !strings.HasSuffix(strings.TrimSpace(line), ", 0 failed") {
				t.Errorf("%s: %s", run, line)
			}
		}
	}
	if out, err := stop(); err != nil {
		t.Fatalf("stopping: %v\n%s", err, out)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the demo's directory is still there (%v)", err)
	}
}
