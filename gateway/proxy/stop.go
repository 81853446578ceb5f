package proxy

import (
	"context"
	"fmt"
	"io"
	"syscall"
)

// StopAll ends every gateway process of the configuration's directory, also those that still drain, and waits until they have ended. No
// Supervisor may be at work.
func StopAll(ctx context.Context, cfg Config) error {
	for _, path := range ownSockets(cfg.controlPath()) {
		client := Dial(path)
		status, err := client.Status(ctx)
		if err != nil {
			continue
		}
		alive, err := client.watch(ctx)
		if err != nil {
			continue
		}
		if err := syscall.Kill(status.PID, syscall.SIGTERM); err != nil {
			alive.Close()
			return fmt.Errorf("ending the gateway (process %d): %w", status.PID, err)
		}
		io.Copy(io.Discard, alive)
		alive.Close()
	}
	return ctx.Err()
}
