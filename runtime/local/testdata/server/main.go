// Command server is what the tests run in instances: a small static program that does what its arguments say.
//
//	server serve PORT       answers HTTP on PORT; /write?path= tries to write a file; /healthz; /exit?code=; /read?path=; /dial?to=
//	server exit CODE        prints a line and exits
//	server stubborn PORT    the same, and ignores SIGTERM
//	server sleep            does nothing
//	server hog MIB          takes memory
//	server say N TEXT       prints TEXT N times, then sleeps
//	server plant PATH       makes a file that can be executed
//	server memory           runs itself again, out of memory
//	server busy             does what programs do: see busy.go
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "server: what to do?")
		os.Exit(2)
	}
	arg := func(n int) string {
		if len(os.Args) > n {
			return os.Args[n]
		}
		return ""
	}
	number := func(n int) int { v, _ := strconv.Atoi(arg(n)); return v }
	switch arg(1) {
	case "serve":
		serve(arg(2))
	case "stubborn":
		serve(arg(2))
	case "exit":
		fmt.Println("about to exit")
		os.Exit(number(2))
	case "sleep":
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "hog":
		hog(number(2))
	case "say":
		for n := range number(2) {
			fmt.Println(n, arg(3))
		}
		time.Sleep(time.Hour)
	case "memory":
		memory()
	case "plant":
		plant(arg(2))
	case "busy":
		busy()
	case "orphan":
		orphan()
	case "cat":
		io.Copy(os.Stdout, os.Stdin)
	case "stall": // reads nothing, and says so
		fmt.Println("stalling")
		time.Sleep(time.Hour)
	case "join": // on the host: one thread joins a network namespace
		join(arg(2))
	case "terminal":
		terminal()
	case "status": // what the kernel says of this process
		for _, file := range arg2(os.Args) {
			b, err := os.ReadFile("/proc/self/" + file)
			fmt.Println(string(b), err)
		}
	case "check": // for exec health checks: does the file exist?
		if _, err := os.Stat(arg(2)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

func join(path string) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // not the first thread, which /proc/PID/ns shows
			go func() { runtime.LockOSThread(); done <- enter(path); select {} }()
			select {}
		}
		done <- enter(path)
		select {}
	}()
	fmt.Println("joined", <-done)
	time.Sleep(time.Hour)
}

func enter(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

func arg2(args []string) []string { return args[min(2, len(args)):] }

// terminal tells the size of its terminal, now and whenever it changes, and repeats what is typed; "exit" ends it.
func terminal() {
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	size := func() {
		w, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			fmt.Println("no terminal:", err)
			os.Exit(1)
		}
		fmt.Printf("size %d %d %s\n", w.Row, w.Col, os.Getenv("TERM"))
	}
	size()
	go func() {
		for range resized {
			size()
		}
	}()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "exit" {
			os.Exit(4)
		}
		fmt.Println("read", lines.Text())
	}
}

func hog(mib int) {
	var all [][]byte
	for range mib {
		b := make([]byte, 1<<20)
		for i := range b {
			b[i] = 1
		}
		all = append(all, b)
	}
	fmt.Println(len(all))
	time.Sleep(time.Hour)
}

func serve(port string) {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	if os.Args[1] == "stubborn" {
		signal.Ignore(syscall.SIGTERM)
	}
	go func() {
		<-term
		fmt.Println("terminated")
		os.Exit(0)
	}()
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat("/scratch/sick"); err == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	http.HandleFunc("/write", func(w http.ResponseWriter, r *http.Request) {
		err := os.WriteFile(r.FormValue("path"), []byte(r.FormValue("text")), 0o644)
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			fmt.Fprint(w, errno.Error())
		} else if err != nil {
			fmt.Fprint(w, err)
		} else {
			fmt.Fprint(w, "written")
		}
	})
	http.HandleFunc("/read", func(w http.ResponseWriter, r *http.Request) {
		b, err := os.ReadFile(r.FormValue("path"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		w.Write(b)
	})
	http.HandleFunc("/stat", func(w http.ResponseWriter, r *http.Request) {
		info, err := os.Stat(r.FormValue("path"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		s := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(w, "%s %d:%d", info.Mode(), s.Uid, s.Gid)
	})
	http.HandleFunc("/whoami", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%d:%d", os.Getuid(), os.Getgid())
	})
	http.HandleFunc("/dial", func(w http.ResponseWriter, r *http.Request) {
		conn, err := net.DialTimeout("tcp4", r.FormValue("to"), time.Second)
		if err != nil {
			fmt.Fprint(w, err)
			return
		}
		conn.Close()
		fmt.Fprint(w, "connected")
	})
	http.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("code"))
		os.Exit(code)
	})
	fmt.Println("serving on", port)
	if err := http.ListenAndServe("127.0.0.1:"+port, nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
