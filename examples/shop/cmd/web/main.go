// Command web is the shop's page. It reads its configuration once, when it starts: a changed
// configuration is a new instance.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

type config struct {
	Greeting string `json:"greeting"`
	Catalog  string `json:"catalog"`
}

type item struct {
	Name  string `json:"name"`
	Cents int    `json:"cents"`
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<title>{{.Greeting}}</title>
<h1>{{.Greeting}}</h1>
<ul>{{range .Items}}
<li>{{.Name}}: {{printf "%.2f" .Price}}</li>{{end}}
</ul>
<p>Served by {{.Host}}.</p>
`))

func (i item) Price() float64 { return float64(i.Cents) / 100 }

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "web:", err)
		os.Exit(1)
	}
}

func run() error {
	cfg, err := readConfig("/etc/web/config.json")
	if err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(os.Getenv("LOG_LEVEL"))); err != nil {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: level}))

	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		items, err := catalog(r.Context(), cfg.Catalog)
		if err != nil {
			log.Error("asking the catalog", "err", err)
			http.Error(w, "the catalog does not answer", http.StatusBadGateway)
			return
		}
		host, _ := os.Hostname()
		log.Debug("page", "remote", r.RemoteAddr)
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		page.Execute(w, struct {
			config
			Items []item
			Host  string
		}{cfg, items, host})
	})
	return serve(log, &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 5 * time.Second})
}

func readConfig(path string) (config, error) {
	var cfg config
	raw, err := os.ReadFile(path)
	if err != nil {
		return cfg, err
	}
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return cfg, fmt.Errorf("reading %s: %w", path, err)
	}
	return cfg, nil
}

var client = &http.Client{Timeout: 5 * time.Second}

func catalog(ctx context.Context, base string) ([]item, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/items", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	var items []item
	return items, json.NewDecoder(resp.Body).Decode(&items)
}

// serve answers until it is told to stop, then finishes the requests under way.
func serve(log *slog.Logger, s *http.Server) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go func() {
		<-ctx.Done()
		log.Info("stopping")
		grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.Shutdown(grace)
	}()
	log.Info("listening", "addr", s.Addr)
	if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
