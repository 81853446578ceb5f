package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway/proxy"
	"github.com/invarhq/invar/runtime/local"
)

// stopServerWithin bounds how long Stop waits for a server that it has told to end.
const stopServerWithin = 30 * time.Second

// Stop ends all that servers of this data directory left running on this machine: the server, the gateway, every instance
// and the launcher; and it unmounts what they mounted. The data stays.
func Stop(ctx context.Context, dir string, log *slog.Logger) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if !exists(filepath.Join(dir, ledgerFile)) {
		return fault.Errorf(fault.NotFound, "%s is not a data directory", dir)
	}
	if err := endServer(ctx, filepath.Join(dir, "lock")); err != nil {
		return err
	}
	if err := proxy.StopAll(ctx, proxy.Config{Dir: filepath.Join(dir, gatewayDir), Log: log}); err != nil {
		return err
	}
	host, err := local.Open(ctx, local.Config{Dir: dir, Log: log})
	if err != nil {
		return err
	}
	return host.Shutdown(ctx)
}

// endServer tells the process that holds the lock to end, and waits until it has.
func endServer(ctx context.Context, lock string) error {
	f, err := os.Open(lock)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	deadline := time.Now().Add(stopServerWithin)
	told := false
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("locking %s: %w", lock, err)
		}
		if !told {
			if err := terminate(lock); err != nil {
				return err
			}
			told = true
		}
		if time.Now().After(deadline) {
			return fault.Errorf(fault.Unavailable, "the server did not end within %s", stopServerWithin)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// terminate sends SIGTERM to the process that wrote its number into the lock file.
func terminate(lock string) error {
	b, err := os.ReadFile(lock)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return fault.Errorf(fault.Corrupt, "%s does not name the process that holds it", lock)
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending the server (process %d): %w", pid, err)
	}
	return nil
}
