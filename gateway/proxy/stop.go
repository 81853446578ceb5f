package proxy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// exitPoll is how long one look at a process that is to end takes at most.
const exitPoll = 50 * time.Millisecond

// StopAll ends every gateway process of the configuration's directory, also those that still drain, and waits until they have ended. No
// Supervisor may be at work.
func StopAll(ctx context.Context, cfg Config) error {
	for _, path := range ownSockets(cfg.controlPath()) {
		status, err := Dial(path).Status(ctx)
		if err != nil {
			continue // nobody there
		}
		if err := end(ctx, status.PID); err != nil {
			return fmt.Errorf("ending the gateway (process %d): %w", status.PID, err)
		}
	}
	removeGroups()
	return ctx.Err()
}

// end asks a process to end and waits until it has.
func end(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(exitPoll.Milliseconds()))
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return ctx.Err()
}
