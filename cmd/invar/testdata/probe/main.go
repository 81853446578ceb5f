// Command probe is what the scripts deploy: a component that does as MODE says.
package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "shell" {
		shell()
	}
	mode := os.Getenv("MODE")
	fmt.Println("mode", mode)
	switch mode {
	case "exit":
		fmt.Fprintln(os.Stderr, "no database")
		os.Exit(7)
	case "eat":
		eat()
	}
	http.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "mode %s\n", mode) })
	fmt.Fprintln(os.Stderr, http.ListenAndServe(":8080", nil))
	os.Exit(1)
}

// shell is what sessions run in an image without one: it repeats what it reads, tells its terminal, writes without end, or ends with status 3.
func shell() {
	fmt.Println("hello from", os.Getenv("MODE"))
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch lines.Text() {
		case "leave":
			os.Exit(3)
		case "terminal":
			var size struct{ rows, cols, x, y uint16 }
			_, _, err := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
			fmt.Printf("a terminal of %d rows, %d columns (%v), TERM %s\n", size.rows, size.cols, err, os.Getenv("TERM"))
			continue
		case "flood":
			for line := strings.Repeat("x", 1000) + "\n"; ; {
				os.Stdout.WriteString(line)
			}
		}
		fmt.Println("you said", lines.Text())
	}
	os.Exit(0)
}

var eaten [][]byte

// eat takes all memory that it can get.
func eat() {
	for {
		b := make([]byte, 1<<20)
		for i := range b {
			b[i] = 1
		}
		eaten = append(eaten, b)
		time.Sleep(time.Millisecond)
	}
}
