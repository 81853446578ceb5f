// Command notes keeps notes in PostgreSQL.
//
//	GET  /       the title and all notes
//	POST /notes  adds the request's body as a note
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "notes:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	db, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer db.Close()
	start, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := migrate(start, db); err != nil {
		return fmt.Errorf("making the table: %w", err)
	}
	s := &http.Server{Addr: ":8080", Handler: handler(db, os.Getenv("TITLE")), ReadHeaderTimeout: 5 * time.Second}
	fmt.Println("listening on", s.Addr)
	return s.ListenAndServe()
}

// migrate makes the table. Several instances may start at once: the lock makes them take turns.
func migrate(ctx context.Context, db *pgxpool.Pool) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(1)`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `CREATE TABLE IF NOT EXISTS notes (id serial PRIMARY KEY, text text NOT NULL)`)
		return err
	})
}

func handler(db *pgxpool.Pool, title string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := db.Ping(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /notes", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4096))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if _, err := db.Exec(r.Context(), `INSERT INTO notes (text) VALUES ($1)`, string(text)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		rows, err := db.Query(r.Context(), `SELECT text FROM notes ORDER BY id`)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		notes, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, title)
		for _, n := range notes {
			fmt.Fprintln(w, "-", n)
		}
	})
	return mux
}
