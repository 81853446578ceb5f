package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// grow makes a random tree of directories, files with holes, links of both kinds, FIFOs and sockets, with owners, permissions, times and attributes.
func grow(t *rapid.T, dir string) {
	must(t, os.Mkdir(dir, 0o755))
	dirs, files, all := []string{dir}, []string{}, []string{dir}
	for n := range rapid.IntRange(0, 20).Draw(t, "entries") {
		parent := rapid.SampledFrom(dirs).Draw(t, "in")
		path := filepath.Join(parent, fmt.Sprint(rapid.SampledFrom([]string{"a", "b c", "ü\n", "-x", "..y"}).Draw(t, "name"), n))
		switch kind := rapid.SampledFrom([]string{"dir", "file", "sparse", "empty", "link", "hard", "fifo", "socket"}).Draw(t, "kind"); {
		case kind == "dir":
			must(t, os.Mkdir(path, 0o755))
			dirs = append(dirs, path)
		case kind == "link":
			must(t, os.Symlink(rapid.SampledFrom([]string{"/etc/passwd", "../../..", "nowhere", "."}).Draw(t, "target"), path))
			continue
		case kind == "hard" && len(files) > 0:
			must(t, os.Link(rapid.SampledFrom(files).Draw(t, "of"), path))
			continue
		case kind == "fifo":
			must(t, unix.Mkfifo(path, 0o600))
		case kind == "socket":
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			must(t, err)
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: short(t, path)})
			unix.Close(fd)
			if err != nil {
				t.Skip("too long for a socket: ", err)
			}
			continue
		default:
			must(t, os.WriteFile(path, rapid.SliceOfN(rapid.Byte(), 0, 9000).Draw(t, "content"), 0o600))
			if kind == "sparse" {
				must(t, os.Truncate(path, 3<<20))
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				must(t, err)
				_, err = f.WriteAt([]byte("far"), 1<<20)
				must(t, errors.Join(err, f.Close()))
			}
			files = append(files, path)
		}
		all = append(all, path)
	}
	for _, path := range all {
		info, err := os.Lstat(path)
		must(t, err)
		if info.IsDir() || info.Mode().IsRegular() {
			if v := rapid.SampledFrom([]string{"", "x", "a\x00b"}).Draw(t, "attribute"); v != "" {
				must(t, unix.Setxattr(path, "user.test", []byte(v), 0))
			}
		}
		must(t, os.Chown(path, rapid.IntRange(0, 3).Draw(t, "uid"), 1<<30+rapid.IntRange(0, 3).Draw(t, "gid")))
		must(t, unix.Chmod(path, rapid.SampledFrom([]uint32{0o755, 0o600, 0o4711, 0o1777, 0o2750, 0}).Draw(t, "mode")))
	}
	for n := len(all) - 1; n >= 0; n-- {
		at := time.Unix(rapid.Int64Range(0, 2e9).Draw(t, "time"), rapid.Int64Range(0, 999999999).Draw(t, "ns"))
		must(t, os.Chtimes(all[n], at, at))
	}
}

// short is a path to the same place that fits into a socket's address.
func short(t *rapid.T, path string) string {
	d, err := os.Open(filepath.Dir(path))
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), filepath.Base(path))
}

func must(t interface{ Fatal(...any) }, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

func needRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files to others")
	}
}

// TestPropertyCopyIsTheSameTree: also copied live, also over a copy that failed half way; and it takes no more of the disk.
func TestPropertyCopyIsTheSameTree(t *testing.T) {
	needRoot(t)
	base, nth := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		nth++
		from, to := filepath.Join(base, fmt.Sprint(nth, "-from")), filepath.Join(base, fmt.Sprint(nth, "-to"))
		grow(t, from)
		var done, total int64
		content, changed, err := Copy(context.Background(), from, to, Options{Live: rapid.Bool().Draw(t, "live"), Progress: func(d, n int64) { done, total = d, n }})
		must(t, err)
		want, err := Measure(context.Background(), from)
		must(t, err)
		if content != want || changed != 0 {
			t.Fatalf("the copy is %+v, %d changed; want %+v", content, changed, want)
		}
		if done > total {
			t.Fatalf("%d of %d bytes are done", done, total)
		}
		if a, b := stored(t, from), stored(t, to); b > a+64<<10 {
			t.Fatalf("the copy takes %d bytes of the disk, what it was made from %d", b, a)
		}
		must(t, errors.Join(os.RemoveAll(from), os.RemoveAll(to)))
	})
}

func stored(t *rapid.T, dir string) int64 {
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	var n int64
	must(t, walk(context.Background(), root, func(e entry) error { n += e.stored(); return nil }, nil))
	return n
}

// TestDigestTellsEveryDifference changes one thing at a time.
func TestDigestTellsEveryDifference(t *testing.T) {
	needRoot(t)
	at := time.Unix(1e9, 5)
	make := func(t *testing.T, change func(dir, file string)) string {
		dir := filepath.Join(t.TempDir(), "tree")
		file := filepath.Join(dir, "file")
		must(t, errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(file, []byte("content"), 0o644), os.Symlink("there", filepath.Join(dir, "link"))))
		must(t, errors.Join(os.Chtimes(file, at, at), unix.Lutimes(filepath.Join(dir, "link"), []unix.Timeval{{Sec: 1e9}, {Sec: 1e9}})))
		change(dir, file)
		must(t, os.Chtimes(dir, at, at))
		c, err := Measure(t.Context(), dir)
		must(t, err)
		return string(c.Digest)
	}
	seen := map[string]string{make(t, func(string, string) {}): "nothing"}
	if got := make(t, func(string, string) {}); seen[got] == "" {
		t.Error("equal trees differ")
	}
	for name, change := range map[string]func(dir, file string){
		"content": func(_, f string) {
			must(t, errors.Join(os.WriteFile(f, []byte("cOntent"), 0o644), os.Chtimes(f, at, at)))
		},
		"mode":   func(_, f string) { must(t, os.Chmod(f, 0o600)) },
		"set-id": func(_, f string) { must(t, unix.Chmod(f, 0o4644)) },
		"owner":  func(_, f string) { must(t, os.Chown(f, 1, 0)) },
		"group":  func(_, f string) { must(t, os.Chown(f, 0, 1)) },
		"time":   func(_, f string) { must(t, os.Chtimes(f, at, at.Add(1))) },
		"attr":   func(_, f string) { must(t, unix.Setxattr(f, "user.a", []byte("1"), 0)) },
		"name":   func(d, f string) { must(t, os.Rename(f, filepath.Join(d, "file2"))) },
		"hard":   func(d, f string) { must(t, os.Link(f, filepath.Join(d, "hard"))) },
		"fifo":   func(d, _ string) { must(t, unix.Mkfifo(filepath.Join(d, "fifo"), 0o644)) },
		"target": func(d, _ string) {
			must(t, errors.Join(os.Remove(filepath.Join(d, "link")), os.Symlink("here", filepath.Join(d, "link"))))
		},
	} {
		d := make(t, change)
		if other, ok := seen[d]; ok {
			t.Errorf("%s is not told from %s", name, other)
		}
		seen[d] = name
	}
}

// TestCopyFollowsNoLink: what is outside of the tree is not copied, wherever links lead.
func TestCopyFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	must(t, errors.Join(os.MkdirAll(filepath.Join(dir, "outside"), 0o755), os.WriteFile(filepath.Join(dir, "outside", "secret"), []byte("secret"), 0o600),
		os.Mkdir(from, 0o755), os.Symlink("../outside", filepath.Join(from, "dir")), os.Symlink("../outside/secret", filepath.Join(from, "file"))))
	c, _, err := Copy(t.Context(), from, to, Options{})
	must(t, err)
	if target, err := os.Readlink(filepath.Join(to, "dir")); err != nil || target != "../outside" || c.Bytes != 0 || c.Files != 2 {
		t.Errorf("the link is %q, %v; the copy has %+v", target, err, c)
	}
}

// TestLiveCopyOfWhatComesToRestIsOfOneMoment: what changes during the first passes is copied again.
func TestLiveCopyOfWhatComesToRestIsOfOneMoment(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	must(t, os.Mkdir(from, 0o755))
	for n := range 40 {
		must(t, os.WriteFile(filepath.Join(from, fmt.Sprint(n)), []byte(strings.Repeat("x", 10000)), 0o644))
	}
	wrote := false
	content, changed, err := Copy(t.Context(), from, to, Options{Live: true, Progress: func(done, total int64) {
		if wrote || done < total/2 {
			return
		}
		wrote = true
		must(t, errors.Join(os.WriteFile(filepath.Join(from, "0"), []byte("new"), 0o644), os.Remove(filepath.Join(from, "1")), os.Remove(filepath.Join(from, "39")),
			os.Mkdir(filepath.Join(from, "39"), 0o755), os.Rename(filepath.Join(from, "2"), filepath.Join(from, "39", "in"))))
	}})
	must(t, err)
	want, err := Measure(t.Context(), from)
	must(t, err)
	if content != want || changed != 0 || !wrote {
		t.Errorf("the copy is %+v, %d changed; want %+v", content, changed, want)
	}
}

// TestLiveCopyKeepsTheNamesOfAFileTogether, also of one that is written to after its first name was copied and before its last.
func TestLiveCopyKeepsTheNamesOfAFileTogether(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	must(t, errors.Join(os.Mkdir(from, 0o755), os.WriteFile(filepath.Join(from, "a"), []byte("old"), 0o644), os.Link(filepath.Join(from, "a"), filepath.Join(from, "z"))))
	for n := range 20 {
		must(t, os.WriteFile(filepath.Join(from, fmt.Sprint("m", n)), []byte(strings.Repeat("x", 10000)), 0o644))
	}
	time.Sleep(2 * settles)
	wrote := false
	content, changed, err := Copy(t.Context(), from, to, Options{Live: true, Progress: func(done, total int64) {
		if !wrote && done > total/2 {
			wrote = true
			must(t, os.WriteFile(filepath.Join(from, "z"), []byte("new"), 0o644))
			time.Sleep(2 * settles)
		}
	}})
	must(t, err)
	want, err := Measure(t.Context(), from)
	must(t, err)
	if content != want || changed != 0 || !wrote {
		t.Errorf("the copy is %+v, %d changed; want %+v", content, changed, want)
	}
}

// TestLiveCopySaysWhatNeverComesToRest: somebody writes all the time.
func TestLiveCopySaysWhatNeverComesToRest(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	must(t, errors.Join(os.Mkdir(from, 0o755), os.WriteFile(filepath.Join(from, "still"), []byte("x"), 0o644)))
	var stop atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for n := 0; !stop.Load(); n++ {
			os.WriteFile(filepath.Join(from, "busy"), []byte(fmt.Sprint(n)), 0o644)
			os.Remove(filepath.Join(from, fmt.Sprint("gone-", n-1)))
			os.WriteFile(filepath.Join(from, fmt.Sprint("gone-", n)), nil, 0o644)
		}
	}()
	time.Sleep(10 * time.Millisecond)
	_, changed, err := Copy(t.Context(), from, filepath.Join(dir, "to"), Options{Live: true})
	stop.Store(true)
	<-ended
	if err != nil || changed == 0 {
		t.Errorf("%d changed, %v; want some", changed, err)
	}
}

func TestCopyEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	must(t, errors.Join(os.Mkdir(from, 0o755), os.WriteFile(filepath.Join(from, "file"), make([]byte, 1<<20), 0o644)))
	ctx, cancel := context.WithCancel(t.Context())
	_, _, err := Copy(ctx, from, filepath.Join(dir, "to"), Options{Progress: func(int64, int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
}
