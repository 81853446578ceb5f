// Command keeper is given a secret, and tells all about it but its value.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"syscall"
)

const path = "/run/secrets/password"

// facts are what the test asks for.
type facts struct {
	SHA256   string `json:"sha256"`
	Mode     string `json:"mode"`
	UID, GID uint32
	TmpFS    bool   `json:"tmpfs"`
	Write    string `json:"write"` // why it can't be written to
}

func main() {
	value, err := os.ReadFile(path)
	if len(os.Args) > 1 { // a check, which betrays the secret
		fmt.Println(string(value))
		fmt.Fprintln(os.Stderr, string(value))
		os.Exit(1)
	}
	fmt.Println("read a secret:", err)
	if os.Getenv("MODE") == "crash" {
		panic(fmt.Sprint("keeper crashes with a secret of length ", len(value), " in memory"))
	}
	http.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(look()) })
	fmt.Fprintln(os.Stderr, http.ListenAndServe(":8080", nil))
	os.Exit(1)
}

func look() facts {
	value, err := os.ReadFile(path)
	if err != nil {
		return facts{SHA256: err.Error()}
	}
	sum := sha256.Sum256(value)
	f := facts{SHA256: hex.EncodeToString(sum[:])}
	var st syscall.Stat_t
	if syscall.Stat(path, &st) == nil {
		f.Mode, f.UID, f.GID = fmt.Sprintf("%04o", st.Mode&0o7777), st.Uid, st.Gid
	}
	var fs syscall.Statfs_t
	f.TmpFS = syscall.Statfs(path, &fs) == nil && fs.Type == 0x01021994
	if _, err := os.OpenFile(path, os.O_WRONLY, 0); err != nil {
		f.Write = err.Error()
	}
	return f
}
