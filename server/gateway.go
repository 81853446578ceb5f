package server

import (
	"context"
	"log/slog"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway/proxy"
)

// Gateway runs the gateway's process, as a server's supervisor starts it.
func Gateway(ctx context.Context, log *slog.Logger) error {
	config, ok, err := proxy.Inherited(log)
	if err != nil {
		return err
	}
	if !ok {
		return fault.WithHint(fault.Errorf(fault.Invalid, "the gateway is started by the server"), "invar server")
	}
	return proxy.Run(ctx, config)
}
