package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// fsckOfTessera is a public checker of tiled logs that is not ours.
const fsckOfTessera = "github.com/transparency-dev/tessera/cmd/fsck@v1.0.4"

// TestPublicCheckerAgreesWithoutNetwork has Tessera's fsck read a served log, in a network of its own that has a loopback and nothing else:
// checking a ledger needs no service of anybody.
func TestPublicCheckerAgreesWithoutNetwork(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: the server and a network without a way out; CI runs it")
	}
	dir := t.TempDir()
	fsck := filepath.Join(dir, "fsck")
	install := exec.CommandContext(t.Context(), "go", "install", fsckOfTessera)
	install.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=-mod=mod", "GOWORK=off")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", fsckOfTessera, err, out) // never skipped
	}
	cutOff(t)

	data := filepath.Join(dir, "d")
	s, err := startServer(data, os.Environ(), "--listen", "127.0.0.1:7373")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		s.cmd.Process.Signal(syscall.SIGTERM)
		exec.Command(binary, "server", "stop", "--data", data).Run()
	}()
	var token struct {
		Secret string `json:"secret"`
	}
	for i := range 300 { // more than a tile
		if err := s.api("POST", "/v1/tokens", map[string]string{"name": fmt.Sprintf("t-%d", i)}, &token); err != nil {
			t.Fatal(err)
		}
	}
	key := filepath.Join(data, "keys", "ledger.vkey") // fsck takes no line end
	vkey, err := os.ReadFile(filepath.Join(data, "keys", "ledger.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, []byte(strings.TrimSpace(string(vkey))), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(url string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		out := new(output)
		c := exec.CommandContext(ctx, fsck, "--storage_url="+url, "--bearer_token="+token.Secret, "--public_key="+key, "--ui=false", "-v=1", "--logtostderr")
		c.Stdout, c.Stderr = out, out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { c.Wait(); close(ended) }()
		for {
			select {
			case <-ended: // with status 0, whatever it found
				return out.String()
			case <-time.After(50 * time.Millisecond):
				if strings.Contains(out.String(), "Invalid") { // then it may never end
					cancel()
					<-ended
					return out.String()
				}
			}
		}
	}
	agrees := func(out string) bool {
		return strings.Contains(out, "Completed ranges") && !strings.Contains(out, "Invalid") && !strings.Contains(out, "failed")
	}
	if out := check("http://127.0.0.1:7373/ledger/"); !agrees(out) {
		t.Errorf("the served log:\n%s", out)
	}

	// A mirror is a log as well. One byte of it that is changed is found, so the silence above means something.
	mirror := filepath.Join(dir, "mirror")
	if out, err := exec.CommandContext(t.Context(), binary, "ledger", "mirror", "unix://"+filepath.Join(data, "invar.sock"), mirror, "--key", key).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out := check("file://" + mirror + "/"); !agrees(out) {
		t.Errorf("the mirror:\n%s", out)
	}
	bundle := filepath.Join(mirror, "tile", "entries", "000")
	content, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 1
	if err := os.WriteFile(bundle, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if out := check("file://" + mirror + "/"); agrees(out) || !strings.Contains(out, "Invalid") && !strings.Contains(out, "failed") {
		t.Errorf("a damaged mirror:\n%s", out)
	}
}

// cutOff gives this test's goroutine, and what it starts, a network of its own: a loopback and no way out.
func cutOff(t *testing.T) {
	t.Helper()
	goruntime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	links, err := netlink.LinkList()
	if err != nil || len(links) != 1 {
		t.Fatalf("%d network interfaces, %v; want the loopback alone", len(links), err)
	}
}
