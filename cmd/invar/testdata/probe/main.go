// Command probe is what the scripts deploy: a component that does as MODE says.
package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"time"
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

// shell is what sessions run in an image without one: it repeats what it reads, and ends with status 3 at "leave".
func shell() {
	fmt.Println("hello from", os.Getenv("MODE"))
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "leave" {
			os.Exit(3)
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
