package proxy

import (
	"errors"
	"net/http"
	"testing"

	"github.com/invarhq/invar/fault"
)

func TestTableOverTheSocketRoutesIntoANamespace(t *testing.T) {
	g := run(t, Config{})
	a := newBox(t, "web-a")
	a.serveName()
	if status, _ := g.get("/"); status != http.StatusNotFound {
		t.Errorf("status without a table is %d, want 404", status)
	}
	g.apply(webTable(a))
	if status, body := g.get("/"); status != http.StatusOK || body != "web-a" {
		t.Errorf("got %d %q, want web-a", status, body)
	}
	bad := webTable(a)
	bad.Services[0].Pools[0].Weight = 99
	if err := g.Apply(t.Context(), bad); !errors.Is(err, fault.Invalid) {
		t.Errorf("a bad table gave %v, want fault.Invalid", err)
	}
	if _, body := g.get("/"); body != "web-a" {
		t.Errorf("after a refused table: %q, want web-a", body)
	}
	g.apply(webTable())
	if status, body := g.get("/"); status != http.StatusServiceUnavailable {
		t.Errorf("without instance: %d %q, want 503", status, body)
	}
}
