package handler_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/handler"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/secret"
)

// secrets keeps values in memory.
type secrets struct {
	mu     sync.Mutex
	values map[digest.Digest]string
}

func (s *secrets) Put(r secret.Ref, value []byte) (digest.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := digest.Of(fmt.Appendf(nil, "ciphertext %d", len(s.values)))
	s.values[d] = string(value)
	return d, nil
}

func (s *secrets) Has(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.values[d]
	return ok
}

func TestSecretsAreListedWithoutTheirValues(t *testing.T) {
	w := newWorld(t)
	if list, err := w.local.Secrets(t.Context(), "staging"); err != nil || len(list) != 0 {
		t.Errorf("of an environment that is not there yet: %v, %v; want none", list, err)
	}
	if _, err := w.local.SecretHistory(t.Context(), "staging", "db"); !errors.Is(err, fault.NotFound) || fault.Hint(err) == "" {
		t.Errorf("history of a secret without versions: %v, want not found, with a hint", err)
	}
	var made []api.SecretVersion
	for _, set := range [][2]string{{"db", "one"}, {"api-key", "two"}, {"db", "three"}} {
		v, err := w.local.SetSecret(t.Context(), "staging", set[0], api.SecretRequest{Value: []byte(set[1]), Reason: "of " + set[1]})
		w.must(err)
		if w.secrets.values[v.Version] != set[1] {
			t.Errorf("%s was kept as %q", set[1], w.secrets.values[v.Version])
		}
		made = append(made, v)
	}
	list, err := w.local.Secrets(t.Context(), "staging")
	w.must(err)
	want := []api.Secret{
		{Env: "staging", Name: "api-key", Version: made[1].Version, Versions: 1, By: made[1].By, Reason: "of two", At: made[1].At, UsedBy: []string{}},
		{Env: "staging", Name: "db", Version: made[2].Version, Versions: 2, By: made[2].By, Reason: "of three", At: made[2].At, UsedBy: []string{}},
	}
	if diff := cmp.Diff(want, list); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	history, err := w.local.SecretHistory(t.Context(), "staging", "db")
	w.must(err)
	if diff := cmp.Diff([]api.SecretVersion{made[2], made[0]}, history); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}

// Whatever a client gets wrong: neither the answer nor the log has what it sent.
func TestRefusedSecretsAreNotRepeated(t *testing.T) {
	var log bytes.Buffer
	w := newWorld(t, func(c *handler.Config) {
		c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	const canary = "canary-31415926535"
	encoded := base64.StdEncoding.EncodeToString([]byte(canary))
	for name, body := range map[string]string{
		"no base64":     `{"value":"` + canary + `!"}`,
		"a number":      `{"value":31415926535}`,
		"an object":     `{"value":{"` + canary + `":1}}`,
		"a list":        `["` + canary + `"]`,
		"text":          canary,
		"cut short":     `{"value":"` + encoded,
		"unknown field": `{"value":"` + encoded + `","password":"` + canary + `"}`,
		"wrong field":   `{"secret":"` + canary + `"}`,
		"empty":         `{"value":"","reason":"` + canary + `"}`,
		"too long":      `{"value":"` + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte(canary), 5000)) + `"}`,
		"far too long":  `{"value":"` + strings.Repeat(encoded, 100_000) + `"}`,
	} {
		raw := w.raw(http.MethodPost, api.SecretPath("staging", "db"), body)
		if raw.status < 400 || raw.status >= 500 {
			t.Errorf("%s: status %d, want a refusal", name, raw.status)
		}
		for _, text := range []string{canary, "31415926535", encoded} {
			if strings.Contains(raw.body, text) || strings.Contains(log.String(), text) {
				t.Errorf("%s: the answer or the log repeats it: %s\n%s", name, raw.body, &log)
			}
		}
	}
	if len(w.secrets.values) != 0 {
		t.Errorf("%d are kept all the same", len(w.secrets.values))
	}
}

type answer struct {
	status int
	body   string
}

// raw asks over the unix socket with a body as it is.
func (w *world) raw(method, path, body string) answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.local.Base().String()+path, strings.NewReader(body))
	w.must(err)
	req.Header.Set("Content-Type", api.TypeJSON)
	resp, err := w.local.Transport().RoundTrip(req)
	w.must(err)
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	w.must(err)
	return answer{resp.StatusCode, b.String()}
}
