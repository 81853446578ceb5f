// Command notebook keeps what it is told in a file on its volume, one line each. When it begins, it does to that file what MIGRATE says.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

const notes = "/data/notes"

func main() {
	switch os.Getenv("MIGRATE") {
	case "lose": // a migration that nobody wanted
		write(os.O_TRUNC, "migrated")
	case "break": // one that writes, and then fails for good
		write(os.O_APPEND, "half migrated")
		fmt.Fprintln(os.Stderr, "migration failed")
		os.Exit(7)
	}
	http.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		b, err := os.ReadFile(notes)
		fmt.Fprintf(w, "%s[%s] %v\n", os.Getenv("TITLE"), strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", " "), err)
	})
	http.HandleFunc("POST /{$}", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err == nil {
			write(os.O_APPEND, string(b))
		}
		w.WriteHeader(http.StatusCreated)
	})
	fmt.Fprintln(os.Stderr, http.ListenAndServe(":8080", nil))
	os.Exit(1)
}

// write adds a line to the file.
func write(flag int, line string) {
	f, err := os.OpenFile(notes, os.O_CREATE|os.O_WRONLY|flag, 0o640)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintln(f, line)
	if err := f.Sync(); err != nil {
		panic(err)
	}
}
