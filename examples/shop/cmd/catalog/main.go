// Command catalog answers what the shop sells.
package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"
)

type item struct {
	Name  string `json:"name"`
	Cents int    `json:"cents"`
}

var items = []item{{"Tea, 100 g", 450}, {"Kettle", 3900}, {"Cup", 890}}

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /items", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(items)
	})
	s := &http.Server{Addr: ":9000", Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	fmt.Println("listening on", s.Addr)
	fmt.Fprintln(os.Stderr, "catalog:", s.ListenAndServe())
	os.Exit(1)
}
