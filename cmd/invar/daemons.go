package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/invarhq/invar/cli"
	"github.com/invarhq/invar/gateway/proxy"
	"github.com/invarhq/invar/server"
)

// daemons are the parts of the program that run for long.
func daemons() cli.Daemons {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	return cli.Daemons{
		Server: func(ctx context.Context, c cli.ServerConfig) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			return server.Run(ctx, server.Config{
				Data: c.Data, Listen: c.Listen, HTTP: c.Gateway, HTTPS: c.HTTPS, Version: version, Log: log,
				ACME:    proxy.ACME{Directory: c.ACME, Email: c.ACMEMail, Roots: c.ACMERoot},
				Command: []string{self, "gateway"},
			})
		},
		Stop: func(ctx context.Context, dir string) error {
			return server.Stop(ctx, dir, slog.New(slog.DiscardHandler))
		},
		Gateway: func(ctx context.Context) error { return server.Gateway(ctx, log) },
		VerifyDir: func(ctx context.Context, dir, vkey string) (cli.VerifyReport, error) {
			r, err := server.VerifyDir(ctx, dir, vkey)
			return cli.VerifyReport{Origin: r.Origin, Size: r.Size, Root: r.Root.String()}, err
		},
	}
}
