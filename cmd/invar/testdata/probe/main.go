// Command probe is what the scripts deploy: a component that does as MODE says.
package main

import (
	"bufio"
	"cmp"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
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
	case "busy":
		go busy()
	}
	http.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "mode %s\n", mode) })
	fmt.Fprintln(os.Stderr, http.ListenAndServe(":"+cmp.Or(os.Getenv("PORT"), "8080"), nil))
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

// busy does what programs rightly do: it has children that live long, starts others that end at once, and asks by UDP as resolvers do.
func busy() {
	for range 2 {
		long := exec.Command("/proc/self/exe", "shell")
		if in, err := long.StdinPipe(); err == nil {
			defer in.Close()
			fmt.Println("child:", long.Start())
		}
	}
	asking, err := net.ListenPacket("udp", "127.0.0.1:0") // a client's socket that is not connected
	fmt.Println("asking:", err)
	for ; ; time.Sleep(50 * time.Millisecond) {
		short := exec.Command("/proc/self/exe", "shell") // its input is at its end
		if err := short.Run(); err != nil {
			fmt.Println("child:", err)
		}
		if asking != nil {
			asking.WriteTo([]byte("who?"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 53})
		}
		if c, err := net.Dial("udp", "127.0.0.1:53"); err == nil {
			c.Write([]byte("who?"))
			c.Close()
		}
	}
}
