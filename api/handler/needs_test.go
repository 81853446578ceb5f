package handler

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// Nobody can add an operation that the gate knows nothing of: the program does not start.
func TestOperationWithoutNeedPanics(t *testing.T) {
	h := &Handler{api: humago.New(http.NewServeMux(), describe())}
	defer func() {
		if recover() == nil {
			t.Error("registered")
		}
	}()
	register(h, huma.Operation{OperationID: "steal", Method: http.MethodGet, Path: "/v1/steal"}, func(context.Context, *struct{}) (*struct{}, error) { return nil, nil })
}

// One that is added past register is refused to everybody.
func TestUnknownOperationIsRefused(t *testing.T) {
	mux := http.NewServeMux()
	h := &Handler{api: humago.New(mux, describe())}
	h.api.UseMiddleware(h.gate)
	huma.Register(h.api, huma.Operation{OperationID: "steal", Method: http.MethodGet, Path: "/v1/steal"},
		func(context.Context, *struct{}) (*struct{}, error) { t.Error("it ran"); return nil, nil })
	answer := httptest.NewRecorder()
	mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/v1/steal", nil))
	if answer.Code != http.StatusForbidden {
		t.Errorf("got %d", answer.Code)
	}
}
