package bake_test

import (
	"net/http/httptest"
	"testing"

	"github.com/invarhq/invar/image/registry"
)

func newServer(t *testing.T, s *registry.Store) string {
	t.Helper()
	srv := httptest.NewServer(s.Handler(t.Context()))
	t.Cleanup(srv.Close)
	return srv.URL
}
