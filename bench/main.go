// Command bench measures invar against what people use today, and against its own targets.
//
//	make bench                               everything; installs the peers
//	make bench BENCHFLAGS='-run start -n 50' some sections, more rounds
//	make bench BENCHFLAGS=-quick             few rounds and small inputs: is everything still there?
//
// It needs root. What is compared runs in turn (A B A B …) in one process, so that the noise of the machine hits both; a
// figure is the median and the 95th percentile, a ratio the median of the rounds' own. A target that is missed is shown as NOT met, and a section that can't run
// says why; the exit status is 1 only when a section broke. docs/benchmarks.md has the method and a full run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// section is one of the comparisons.
type section struct {
	name, title string
	run         func(context.Context, *bench) error
}

var sections = []section{
	{"start", "Instance start: from asked until its TCP port accepts, image local", benchStart},
	{"root", "OCI image of 150 MB to a mounted root", benchRoot},
	{"apply", "Configuration-only apply, and rollback onto warm instances, under load", benchApply},
	{"gateway", "Gateway: HTTP requests to one backend, 64 connections", benchGateway},
	{"ledger", "Ledger: durable, signed appends, and verification", benchLedger},
	{"plan", "Plan of 1,000 components", benchPlan},
	{"scale", "10,000 simulated instances in 500 environments", benchScale},
	{"server", "Server: start and memory", benchServer},
	{"drift", "Drift: what measuring costs", benchDrift},
	{"detect", "Tampering: from the act of root on the machine to the durable entry that tells it", benchDetect},
	{"fork", "Fork of an environment of 5 components, and bisection of its history", benchFork},
	{"govern", "Governance: authorised requests at the gate, and a policy decision", benchGovern},
}

// bench is one run of a section.
type bench struct {
	repo  string // the root of invar's repository
	cache string // peers and caches
	dir   string // of this section, deleted when it ends
	n     int    // rounds of a comparison
	quick bool
	out   io.Writer
	undo  []func() // run in reverse when the section ends
	rows  []row
}

// skip is the error of a section that can't run here.
type skip struct{ why string }

func (s skip) Error() string { return s.why }

// init keeps the main goroutine on the process's first thread, so that no other goroutine ever enters a namespace with it.
func init() { runtime.LockOSThread() }

func main() {
	var flags struct {
		run, profile string
		n            int
		quick        bool
	}
	flag.StringVar(&flags.run, "run", "", "only the sections whose name matches `REGEXP`")
	flag.IntVar(&flags.n, "n", 20, "rounds of each comparison")
	flag.BoolVar(&flags.quick, "quick", false, "few rounds, small inputs")
	flag.StringVar(&flags.profile, "profile", "", "write a CPU profile of this process to `FILE`")
	flag.Parse()
	klog.LogToStderr(false) // Tessera's
	klog.SetOutput(io.Discard)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	err := profiled(flags.profile, func() error { return runAll(ctx, flags.run, flags.n, flags.quick) })
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func profiled(file string, act func() error) error {
	if file == "" {
		return act()
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return act()
}

func runAll(ctx context.Context, pattern string, n int, quick bool) error {
	chosen, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return errors.New("needs root: instances are namespaces and mounts")
	}
	repo, err := filepath.Abs("..")
	if err != nil {
		return err
	}
	b := bench{repo: repo, cache: filepath.Join(repo, ".cache", "bench"), n: n, quick: quick, out: os.Stdout}
	if quick {
		b.n = min(n, 4)
	}
	if err := os.MkdirAll(b.cache, 0o755); err != nil {
		return err
	}
	fmt.Fprintln(b.out, machine())
	var broken []string
	for _, s := range sections {
		if ctx.Err() == nil && chosen.MatchString(s.name) {
			if err := b.section(ctx, s); err != nil {
				fmt.Fprintf(b.out, "this section broke: %v\n", err)
				broken = append(broken, s.name)
			}
		}
	}
	if len(broken) > 0 {
		return fmt.Errorf("sections broke: %s", strings.Join(broken, ", "))
	}
	return ctx.Err()
}

// section runs one section in a directory of its own, prints its rows, and undoes what it did.
func (b bench) section(ctx context.Context, s section) (err error) {
	fmt.Fprintf(b.out, "\n== %s: %s\n", s.name, s.title)
	if b.dir, err = os.MkdirTemp("", "invar-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	defer unmountBelow(b.dir)
	defer removeCgroups(filepath.Base(b.dir))
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	defer func() {
		for _, undo := range slices.Backward(b.undo) {
			undo()
		}
	}()
	began := time.Now()
	err = s.run(ctx, &b)
	b.print()
	if why, ok := errors.AsType[skip](err); ok {
		fmt.Fprintf(b.out, "not run: %s\n", why.why)
		err = nil
	}
	fmt.Fprintf(b.out, "(%s)\n", time.Since(began).Round(time.Second))
	return err
}

// unmountBelow unmounts what a peer that was interrupted left in a directory of ours.
func unmountBelow(dir string) {
	lines := strings.Split(read("/proc/self/mountinfo"), "\n")
	for _, line := range slices.Backward(lines) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
}

func (b *bench) defers(undo func()) { b.undo = append(b.undo, undo) }

// note prints a line before the table of the section.
func (b *bench) note(format string, args ...any) { fmt.Fprintf(b.out, format+"\n", args...) }

// pick returns the full value, or the quick one.
func (b *bench) pick(full, quick int) int {
	if b.quick {
		return quick
	}
	return full
}

// machine tells on what this runs.
func machine() string {
	var u unix.Utsname
	kernel := "?"
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	var memory, load string
	for line := range strings.Lines(read("/proc/meminfo")) {
		if kib, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			var n int
			fmt.Sscan(kib, &n)
			memory = fmt.Sprintf("%d GiB", (n+1<<19)>>20)
		}
	}
	if f := strings.Fields(read("/proc/loadavg")); len(f) > 0 {
		load = f[0]
	}
	return fmt.Sprintf("%s: Linux %s, %d cores, %s, %s; load %s before the run", time.Now().UTC().Format("2006-01-02 15:04"),
		kernel, runtime.NumCPU(), memory, runtime.Version(), load)
}

func read(path string) string {
	raw, _ := os.ReadFile(path)
	return string(raw)
}

// removeCgroups removes what peers left of the cgroups of that name, in every hierarchy. Directories there can only be
// removed one by one, the innermost first, and only when nothing runs in them.
func removeCgroups(name string) {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
	for _, root := range append(roots, filepath.Join("/sys/fs/cgroup", name)) {
		var dirs []string
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			os.Remove(d)
		}
	}
}
