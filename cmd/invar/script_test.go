package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/api"
)

// What the scripts of bad input need beside the commands of main_test.go.
var badInput = map[string]command{
	"layout":    cmdLayout,
	"corrupt":   cmdCorrupt,
	"closed":    cmdClosed,
	"taken":     cmdTaken,
	"smalldisk": cmdSmallDisk,
	"fill":      cmdFill,
	"between":   cmdBetween,
	"race":      cmdRace,
	"until":     cmdUntil,
}

// layout DIR [ARCH] writes an OCI layout with an image of three layers of random files.
func cmdLayout(ts *testscript.TestScript, neg bool, args []string) {
	img, err := random.Image(1<<20, 3)
	ts.Check(err)
	config, err := img.ConfigFile()
	ts.Check(err)
	config.OS, config.Architecture = "linux", goruntime.GOARCH
	if len(args) > 1 {
		config.Architecture = args[1]
	}
	img, err = mutate.ConfigFile(img, config)
	ts.Check(err)
	dir, err := layout.Write(ts.MkAbs(args[0]), empty.Index)
	ts.Check(err)
	ts.Check(dir.AppendImage(img))
}

// corrupt DIR changes a byte in the largest blob of an OCI layout, and sets LAYER to its digest.
func cmdCorrupt(ts *testscript.TestScript, neg bool, args []string) {
	blobs, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "blobs", "sha256", "*"))
	ts.Check(err)
	var file string
	var size int64
	for _, b := range blobs {
		info, err := os.Stat(b)
		ts.Check(err)
		if info.Size() > size {
			file, size = b, info.Size()
		}
	}
	content, err := os.ReadFile(file)
	ts.Check(err)
	content[len(content)/2] ^= 1
	ts.Check(os.WriteFile(file, content, 0o644))
	ts.Setenv("LAYER", filepath.Base(file))
}

// closed NAME sets a variable to an address of the loopback where nobody listens.
func cmdClosed(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], l.Addr().String())
	ts.Check(l.Close())
}

// taken NAME sets a variable to an address that somebody else listens on until the script ends.
func cmdTaken(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], l.Addr().String())
	ts.Defer(func() { l.Close() })
}

// smalldisk DIR SIZE mounts a disk of that size.
func cmdSmallDisk(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+args[1]))
	ts.Defer(func() {
		exec.Command(binary, "server", "stop", "--data", ts.Getenv("DATA")).Run() // it may live there
		ts.Check(unix.Unmount(dir, unix.MNT_DETACH))
	})
}

// fill FILE makes a file that takes all the space that its disk has left.
func cmdFill(ts *testscript.TestScript, neg bool, args []string) {
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else {
			ts.Check(err)
		}
	}
}

// between CHANGE puts a proxy between client and server. "newer-client" makes requests those of the next API level; "newer-server" refuses
// them as a server would that has given up this one.
func cmdBetween(ts *testscript.TestScript, neg bool, args []string) {
	socket := filepath.Join(ts.Getenv("DATA"), "invar.sock")
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "localhost"})
			r.Out.Header.Set(api.HeaderLevel, fmt.Sprint(api.Level+1))
			r.Out.Header.Set(api.HeaderVersion, "99.0.0")
		},
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}},
	}
	handlers := map[string]http.Handler{"newer-client": proxy, "newer-server": http.HandlerFunc(newerServer)}
	l, err := net.Listen("unix", ts.MkAbs(args[0]+".sock"))
	ts.Check(err)
	s := &http.Server{Handler: handlers[args[0]]}
	go s.Serve(l)
	ts.Defer(func() { s.Close() })
	ts.Setenv("BETWEEN", "unix://"+ts.MkAbs(args[0]+".sock"))
}

func newerServer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(api.HeaderLevel, fmt.Sprint(api.Level+2))
	w.Header().Set(api.HeaderVersion, "99.0.0")
	level, err := api.ParseLevel(r.Header.Get(api.HeaderLevel))
	if err == nil {
		err = api.Levels{Min: api.Level + 1, Max: api.Level + 2}.Check(level, r.Header.Get(api.HeaderVersion), "99.0.0")
	}
	p := api.ProblemOf(err)
	w.Header().Set("Content-Type", api.TypeProblem)
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p)
}

// race N ARG… runs invar N times at once, "{}" in its arguments being 1 to N, and writes race.N: exit status and output.
func cmdRace(ts *testscript.TestScript, neg bool, args []string) {
	var count int
	if _, err := fmt.Sscan(args[0], &count); err != nil {
		ts.Fatalf("%v", err)
	}
	var all sync.WaitGroup
	written := make([]error, count)
	for n := range count {
		var words []string
		for _, a := range args[1:] {
			words = append(words, strings.ReplaceAll(a, "{}", fmt.Sprint(n+1)))
		}
		c := exec.Command(binary, words...)
		c.Dir = ts.MkAbs(".")
		c.Env = append(os.Environ(), "INVAR_SERVER="+ts.Getenv("INVAR_SERVER"))
		all.Go(func() {
			time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
			out, _ := c.CombinedOutput() // its exit status goes into the file
			said := fmt.Appendf(nil, "exit status %d\n%s", c.ProcessState.ExitCode(), out)
			written[n] = os.WriteFile(filepath.Join(c.Dir, fmt.Sprintf("race.%d", n+1)), said, 0o644)
		})
	}
	all.Wait()
	ts.Check(errors.Join(written...))
}

// until TEXT ARG… runs invar again until its output has the text.
func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c := exec.Command(binary, args[1:]...)
		c.Env = append(os.Environ(), "INVAR_SERVER="+ts.Getenv("INVAR_SERVER"))
		out, err := c.Output()
		if err == nil && strings.Contains(string(out), args[0]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no %q within 20 s: %v\n%s", args[0], err, out)
		}
	}
}
