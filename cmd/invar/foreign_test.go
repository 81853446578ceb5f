package main

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// foreign is a public web app that knows nothing of invar.
const foreign = "github.com/mccutchen/go-httpbin/v2@v2.18.3"

// TestAppOfOthersRunsAfterInitAndApply deploys somebody else's app with no edit at all.
func TestAppOfOthersRunsAfterInitAndApply(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: instances are namespaces and mounts; CI runs it")
	}
	dir := t.TempDir()
	app := filepath.Join(dir, "httpbin")
	for _, c := range [][]string{{"cp", "-r", moduleSource(t), app}, {"chmod", "-R", "u+w", app}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c, err, out)
		}
	}
	m := &machine{t: t, dir: dir, app: app, gateway: freeAddress(t), pids: map[string]int{}, host: newHostOf(filepath.Join(dir, "data"))}
	t.Cleanup(func() { exec.Command(binary, "server", "stop", "--data", m.host.data).Run() })
	t.Cleanup(m.explain)
	m.serve()
	for _, args := range [][]string{{"init"}, {"apply", "staging", "--yes"}} {
		out, err := m.invar(t.Context(), append([]string{"-C", app}, args...)...)
		if err != nil {
			t.Fatalf("invar %s: %v\n%s", args[0], err, out)
		}
		t.Logf("invar %s:\n%s", args[0], out)
	}
	route := m.environment().Routes[0]
	client := &http.Client{Timeout: 10 * time.Second}
	if f, ok := fetch(client, m.gateway, page{route.Host, "/get?who=invar", `"who"`}); !ok {
		t.Errorf("%s: %v", route.URL, f)
	}
	m.stop()
}

// moduleSource returns where the Go command keeps the app's source.
func moduleSource(t *testing.T) string {
	c := exec.Command("go", "mod", "download", "-json", foreign)
	c.Dir = t.TempDir() // of no module
	out, err := c.Output()
	var module struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &module); err != nil || jsonErr != nil {
		t.Skipf("%s can't be downloaded here: %v %s", foreign, err, strings.TrimSpace(module.Error))
	}
	return module.Dir
}
