package handler

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/gateway"
)

func (h *Handler) registerServer() {
	register(h, huma.Operation{
		OperationID: "get-server", Method: http.MethodGet, Path: api.PathServer, Tags: []string{tagServer},
		Summary:     "Describe the server",
		Description: "Version, API levels, host features, gateway and ledger; and whom the server takes the caller for.",
	}, func(ctx context.Context, _ *struct{}) (*body[api.Server], error) {
		return answerWith(h.describeServer(ctx), nil)
	})
	register(h, huma.Operation{
		OperationID: "get-health", Method: http.MethodGet, Path: api.PathHealth, Tags: []string{tagServer},
		Summary:     "Tell whether the server works",
		Description: "Needs no token. 503 when the server can't do its work.",
		Security:    []map[string][]string{{}},
	}, h.health)
}

func (h *Handler) describeServer(ctx context.Context) api.Server {
	now := time.Now()
	return api.Server{
		Version:       h.config.Version,
		API:           api.Levels{Min: api.MinLevel, Max: api.Level},
		DataFormat:    h.config.DataFormat,
		StartedAt:     h.config.StartedAt.UTC(),
		UptimeSeconds: int64(now.Sub(h.config.StartedAt).Seconds()),
		Host:          h.config.Machine,
		Gateway:       h.gateway(ctx),
		Ledger:        api.LedgerInfo{Origin: h.config.Verifier.Name(), VKey: h.config.VKey, Size: uint64(h.config.Control.Ledger().Size())},
		Actor:         actorFrom(ctx).String(),
	}
}

// gatewayWait is how long the gateway may take to say how it does.
const gatewayWait = 2 * time.Second

// entrance asks the gateway how it does.
func (h *Handler) entrance(ctx context.Context) (gateway.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, gatewayWait)
	defer cancel()
	return h.config.Gateway(ctx)
}

// gateway tells where traffic enters. A gateway that does not answer is no failure of the question.
func (h *Handler) gateway(ctx context.Context) api.GatewayInfo {
	status, err := h.entrance(ctx)
	if err != nil {
		return api.GatewayInfo{Failures: map[string]string{"gateway": err.Error()}}
	}
	return api.GatewayInfo{
		HTTP: status.HTTP, HTTPS: status.HTTPS, PID: status.PID, Version: status.Version, Serial: status.Serial, Failures: status.Failures,
	}
}

// healthAnswer has the status that the health stands for.
type healthAnswer struct {
	Status int
	Body   api.Health
}

func (h *Handler) health(ctx context.Context, _ *struct{}) (*healthAnswer, error) {
	out := healthAnswer{http.StatusOK, api.Health{Status: "ok", Version: h.config.Version}}
	if err := h.config.Healthy(ctx); err != nil {
		out = healthAnswer{http.StatusServiceUnavailable, api.Health{Status: "unavailable", Version: h.config.Version, Detail: err.Error()}}
	}
	return &out, nil
}
