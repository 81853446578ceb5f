package cli

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/tools/txtar"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/fault"
)

// demoApp is examples/shop as one txtar archive, since a directory with a go.mod can't be embedded.
//
//go:embed demo.txtar
var demoApp []byte

const (
	demoDir     = "invar-demo"
	demoEnv     = "staging"
	demoRoute   = "shop.localhost"
	demoBefore  = "Welcome to the shop"
	demoAfter   = "Autumn sale: tea at half price"
	demoWaiting = 30 * time.Second
)

func (a *app) demoCommand() *cobra.Command {
	var dir string
	var stop bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Deploy, change, roll back, tamper with and govern a sample app on this machine",
		Long: `Demo starts a server of its own, deploys a sample app, changes its configuration, rolls the change back, tampers with what
runs, takes the app to an environment where changes need a signature, and verifies the ledger. It leaves everything running and says where to look.
It needs root (instances are namespaces and mounts) and Go (the sample is built from source); it needs no
network. --stop ends and removes what it started.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			abs, err := filepath.Abs(dir)
			if err != nil {
				return err
			}
			d := &demo{app: a, dir: abs}
			if os.Geteuid() != 0 {
				return fault.WithHint(fault.Errorf(fault.Invalid, "the demo needs root: instances are namespaces and mounts"), "sudo invar demo")
			}
			if stop {
				return d.stop(c.Context())
			}
			return d.run(c.Context())
		},
	}
	c.Flags().StringVar(&dir, "demo-dir", demoDir, "`DIR`ectory for the sample app and the server's data")
	c.Flags().BoolVar(&stop, "stop", false, "stop the demo and remove its directory")
	return c
}

// demo is one run of the demo.
type demo struct {
	*app
	dir    string
	info   api.Server
	listen string // address of the API over TCP
}

func (d *demo) data() string   { return filepath.Join(d.dir, "data") }
func (d *demo) source() string { return filepath.Join(d.dir, "shop") }

func (d *demo) stop(ctx context.Context) error {
	if _, err := os.Stat(d.data()); errors.Is(err, os.ErrNotExist) {
		return fault.Errorf(fault.NotFound, "no demo in %s", d.dir)
	}
	if err := d.Daemons.Stop(ctx, d.data()); err != nil {
		return err
	}
	if err := os.RemoveAll(d.dir); err != nil {
		return fmt.Errorf("removing the demo: %w", err)
	}
	fmt.Fprintf(d.Stderr, "stopped and removed %s\n", d.dir)
	return nil
}

func (d *demo) run(ctx context.Context) error {
	started := time.Now()
	if err := d.unpack(); err != nil {
		return err
	}
	if err := d.serve(ctx); err != nil {
		return err
	}
	steps := []func(context.Context) error{d.deploy, d.change, d.back, d.tamper, d.rule, d.prove}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.summary(time.Since(started))
	return nil
}

// unpack writes the sample app, as it is at first, over what an earlier run left.
func (d *demo) unpack() error {
	for _, f := range txtar.Parse(demoApp).Files {
		name := filepath.Join(d.source(), filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("writing the sample app: %w", err)
		}
		if err := os.WriteFile(name, f.Data, 0o644); err != nil {
			return fmt.Errorf("writing the sample app: %w", err)
		}
	}
	return nil
}

// serve starts the demo's server, unless it runs.
func (d *demo) serve(ctx context.Context) error {
	d.app.server = "unix://" + filepath.Join(d.data(), "invar.sock")
	address := filepath.Join(d.dir, "api") // where an earlier demo's server has its API over TCP
	if d.hello(ctx) == nil {
		d.say("The demo's server is running already.")
		b, err := os.ReadFile(address)
		d.listen = string(b)
		return err
	}
	d.listen = freeAddr("127.0.0.1:7373")
	listen, gateway, tls := d.listen, freeAddr("127.0.0.1:8080"), freeAddr("127.0.0.1:8443")
	d.say("A server for the demo: control, gateway and launcher are processes of their own.")
	d.command("server", "--data", d.rel(d.data()), "--listen", listen, "--gateway", gateway)
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(address, []byte(listen), 0o644); err != nil {
		return err
	}
	if err := d.spawn("server", "--data", d.data(), "--listen", listen, "--gateway", gateway, "--gateway-tls", tls); err != nil {
		return err
	}
	deadline := time.Now().Add(demoWaiting)
	for {
		err := d.hello(ctx)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			log, _ := os.ReadFile(filepath.Join(d.dir, "server.log"))
			return fmt.Errorf("the server did not start: %w\n%s", err, tailLines(string(log), 10))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (d *demo) hello(ctx context.Context) error {
	cl, err := d.client()
	if err != nil {
		return err
	}
	defer cl.Close()
	d.info, err = cl.Server(ctx)
	return err
}

// spawn starts a daemon that outlives this process.
func (d *demo) spawn(args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.data(), 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(d.dir, "server.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.Command(self, args...)
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	return c.Process.Release()
}

func (d *demo) deploy(ctx context.Context) error {
	d.say("The sample app: a page with a configuration file, and the catalog that it uses. Build it, and deploy it.")
	return d.try(ctx, demoBefore, "apply", demoEnv, "--yes", "--reason", "first release")
}

func (d *demo) change(ctx context.Context) error {
	d.say("Change its configuration. That is a new release, and new instances beside the old ones; under traffic.")
	file := filepath.Join(d.source(), "invar.hcl")
	src, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.Stderr, "$ sed -i 's/%s/%s/' %s\n", demoBefore, demoAfter, d.rel(file))
	if err := os.WriteFile(file, bytes.ReplaceAll(src, []byte(demoBefore), []byte(demoAfter)), 0o644); err != nil {
		return err
	}
	return d.try(ctx, demoAfter, "apply", demoEnv, "--yes", "--reason", "autumn sale")
}

func (d *demo) back(ctx context.Context) error {
	d.say("Go back. The old instances are still warm: only the traffic switches.")
	return d.try(ctx, demoBefore, "rollback", demoEnv, "--yes", "--reason", "the sale is over")
}

// demoLie is the line that tamper adds to a hosts file: the catalog would be a machine of somebody else (an address of RFC 5737).
const demoLie = "203.0.113.66\tcatalog"

// tamper changes what an instance reads, as root on the machine can, and waits until that was found and healed.
func (d *demo) tamper(ctx context.Context) error {
	d.say("Somebody with root edits a file of a running instance, around invar. It is found from outside, recorded, and the instance replaced.")
	cl, err := d.client()
	if err != nil {
		return err
	}
	defer cl.Close()
	id, file, err := d.victim(ctx, cl)
	if err != nil {
		return err
	}
	load := d.load(ctx)
	defer load()
	fmt.Fprintf(d.Stderr, "$ echo '%s' >> %s\n", demoLie, file)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, demoLie)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := d.healed(ctx, cl, id); err != nil {
		return err
	}
	if err := d.invar(ctx, "drift", demoEnv); err != nil {
		return err
	}
	ok, failed := load()
	fmt.Fprintf(d.Stderr, "  %s meanwhile, %d failed\n", plural(int(ok+failed), "request"), failed)
	return nil
}

// victim returns an instance that serves, and its hosts file on this machine.
func (d *demo) victim(ctx context.Context, cl *client.Client) (id, file string, err error) {
	env, err := cl.Environment(ctx, demoEnv)
	if err != nil {
		return "", "", err
	}
	for _, i := range env.Instances {
		files, _ := filepath.Glob(filepath.Join("/run/invar/*/instances", i.ID, "files/0")) // the pattern is well-formed
		if i.Component == "web" && i.Head && i.Health == "passing" && len(files) == 1 {
			return i.ID, files[0], nil
		}
	}
	return "", "", fault.Errorf(fault.NotFound, "no instance of %s/web runs on this machine", demoEnv)
}

// healed waits until the drift of an instance is resolved.
func (d *demo) healed(ctx context.Context, cl *client.Client, id string) error {
	ctx, cancel := context.WithTimeout(ctx, demoWaiting)
	defer cancel()
	for {
		list, err := cl.Drifts(ctx, demoEnv, false, time.Time{})
		if err != nil {
			return fmt.Errorf("waiting until instance %s is replaced: %w", id, err)
		}
		if slices.ContainsFunc(list, func(x api.Drift) bool { return x.Instance == id && x.Resolved != nil }) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (d *demo) prove(ctx context.Context) error {
	d.say("Every step is in the ledger. Check it offline, from the files alone, with nothing but the log's public key.")
	if err := d.invar(ctx, "history", demoEnv); err != nil {
		return err
	}
	if err := d.invar(ctx, "ledger", "verify", d.rel(d.data()), "--key", d.info.Ledger.VKey); err != nil {
		return err
	}
	return d.audit(ctx)
}

// audit hands the ledger to an auditor, who needs neither server nor network.
func (d *demo) audit(ctx context.Context) error {
	d.say("An auditor gets one directory, and checks by himself who approved what runs; gaps are findings, not hidden.")
	dir := filepath.Join(d.dir, "evidence")
	if err := os.RemoveAll(dir); err != nil { // of an earlier demo
		return fmt.Errorf("removing the evidence of an earlier demo: %w", err)
	}
	if err := d.invar(ctx, "evidence", "export", d.rel(dir)); err != nil {
		return err
	}
	return d.invar(ctx, "evidence", "verify", d.rel(dir), "--key", d.info.Ledger.VKey)
}

// try runs a command under traffic, then shows the page, which must have the headline.
func (d *demo) try(ctx context.Context, headline string, args ...string) error {
	load := d.load(ctx)
	err := d.invar(ctx, args...)
	ok, failed := load()
	if err != nil {
		return err
	}
	if ok+failed > 0 {
		fmt.Fprintf(d.Stderr, "  %s meanwhile, %d failed\n", plural(int(ok+failed), "request"), failed)
	}
	body, err := d.get(ctx)
	if err != nil {
		return err
	}
	found := headlineOf.FindStringSubmatch(body)
	if found == nil || found[1] != headline {
		return fmt.Errorf("the page does not say %q:\n%s", headline, body)
	}
	fmt.Fprintf(d.Stderr, "$ curl -s http://%s:%s/ | grep h1\n%s\n", demoRoute, port(d.info.Gateway.HTTP), found[0])
	return nil
}

var headlineOf = regexp.MustCompile(`<h1>(.*)</h1>`)

// load sends requests, once the page is there, until the returned func is called; it tells how many were answered and failed.
func (d *demo) load(ctx context.Context) (stop func() (ok, failed int64)) {
	ctx, cancel := context.WithCancel(ctx)
	if _, err := d.get(ctx); err != nil {
		cancel()
		return func() (int64, int64) { return 0, 0 }
	}
	var ok, failed atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			switch _, err := d.get(ctx); {
			case err == nil:
				ok.Add(1)
			case ctx.Err() == nil:
				failed.Add(1)
			}
		}
	}()
	return func() (int64, int64) {
		cancel()
		<-done
		return ok.Load(), failed.Load()
	}
}

// get reads the page through the gateway.
func (d *demo) get(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.info.Gateway.HTTP+"/", nil)
	if err != nil {
		return "", err
	}
	req.Host = demoRoute
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET http://%s/: %s: %s", demoRoute, resp.Status, strings.TrimSpace(string(body)))
	}
	return string(body), err
}

func (d *demo) say(text string) { fmt.Fprintf(d.Stderr, "\n%s\n", d.style().bold("▸ "+text)) }

func (d *demo) command(args ...string) {
	fmt.Fprintf(d.Stderr, "$ invar %s\n", quoteAll(args))
}

// invar shows and runs a command line, as a user would.
func (d *demo) invar(ctx context.Context, args ...string) error {
	d.command(args...)
	return d.runs(ctx, d.Env, []int{ExitDone}, append([]string{"-C", d.source(), "--server", d.app.server}, args...))
}

// invarIn is invar in another directory than the sample app's.
func (d *demo) invarIn(ctx context.Context, dir string, args ...string) error {
	d.command(append([]string{"-C", d.rel(dir)}, args...)...)
	return d.runs(ctx, d.Env, []int{ExitDone}, append([]string{"-C", dir, "--server", d.app.server}, args...))
}

// runs runs a command line, which must end with one of the statuses.
func (d *demo) runs(ctx context.Context, env Env, want []int, args []string) error {
	env.Args = args
	if d.noColor {
		env.Args = append(env.Args, "--no-color")
	}
	if code := Run(ctx, env); !slices.Contains(want, code) {
		return exit(code, fmt.Errorf("invar %s ended with exit status %d", strings.Join(args, " "), code))
	}
	return nil
}

func (d *demo) summary(took time.Duration) {
	web := fmt.Sprintf("http://%s:%s/", demoRoute, port(d.info.Gateway.HTTP))
	fmt.Fprintf(d.Stderr, "\n%s in %s. It goes on running:\n\n", d.style().good("Deployed, changed, rolled back, healed, approved and verified"), took.Round(100*time.Millisecond))
	rows := [][]string{
		{"  the app", web},
		{"  the app's source", d.rel(d.source())},
		{"  the auditor's report", d.rel(filepath.Join(d.dir, "evidence", "report.html"))},
		{"  the server's log", d.rel(filepath.Join(d.dir, "server.log"))},
	}
	table(d.Stderr, "", rows)
	elsewhere := ""
	if dir := d.rel(d.dir); dir != demoDir {
		elsewhere = " --demo-dir " + dir
	}
	fmt.Fprintf(d.Stderr, `
Try it yourself:

%s  export INVAR_SERVER=%s
  invar status %s
  invar logs %s/web
  $EDITOR %s && invar -C %s apply %s
  invar demo --stop%s
`, pathHint(), d.app.server, demoEnv, demoEnv, d.rel(filepath.Join(d.source(), "invar.hcl")), d.rel(d.source()), demoEnv, elsewhere)
}

// pathHint makes "invar" this program, where the shell would not find it.
func pathHint() string {
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	if found, err := exec.LookPath("invar"); err == nil && found == self {
		return ""
	}
	return fmt.Sprintf("  export PATH=%s:$PATH\n", filepath.Dir(self))
}

// rel is a path as a user would type it here.
func (d *demo) rel(path string) string {
	if wd, err := os.Getwd(); err == nil {
		if r, err := filepath.Rel(wd, path); err == nil && !strings.HasPrefix(r, "..") {
			return r
		}
	}
	return path
}

func quoteAll(args []string) string {
	out := make([]string, len(args))
	for i, s := range args {
		if strings.ContainsAny(s, " $'\"") {
			s = "'" + s + "'"
		}
		out[i] = s
	}
	return strings.Join(out, " ")
}

// freeAddr returns addr when it is free, else a free port of the same address.
func freeAddr(addr string) string {
	for _, try := range []string{addr, "127.0.0.1:0"} {
		if l, err := net.Listen("tcp", try); err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	return addr
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

func tailLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
