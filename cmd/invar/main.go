// Command invar is the command line, the server and the gateway in one binary.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/invarhq/invar/cli"
)

// version is set by the linker.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, cli.Env{
		Args:    os.Args[1:],
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Getenv:  os.Getenv,
		Version: version,
		Daemons: daemons(),
	})
	stop()
	os.Exit(code)
}
