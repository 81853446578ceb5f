package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"

	"github.com/invarhq/invar/cli"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway/proxy"
	"github.com/invarhq/invar/ledger/mirror"
	"github.com/invarhq/invar/ledger/witness"
	"github.com/invarhq/invar/ledger/witness/serve"
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
				Data: c.Data, Listen: c.Listen, Names: c.Names, HTTP: c.Gateway, HTTPS: c.HTTPS, Version: version, Log: log,
				ACME:    proxy.ACME{Directory: c.ACME, Email: c.ACMEMail, Roots: c.ACMERoot},
				Command: []string{self, "gateway"}, SecretsKeyCommand: c.SecretsKeyCommand, InspectEvery: c.InspectEvery,
				Witnesses: func() witness.Policy { return c.Witnesses },
			})
		},
		Stop: func(ctx context.Context, dir string) error {
			return server.Stop(ctx, dir, slog.New(slog.DiscardHandler))
		},
		Gateway: func(ctx context.Context) error { return server.Gateway(ctx, log) },
		VerifyDir: func(ctx context.Context, dir, vkey string, policy witness.Policy) (cli.VerifyReport, error) {
			r, err := server.VerifyDir(ctx, dir, vkey, policy)
			return cli.VerifyReport{Origin: r.Origin, Size: r.Size, Root: r.Root.String(), Cosigned: cli.CosignedBy(r.Witnessed)}, err
		},
		Witness: func(ctx context.Context, c cli.WitnessConfig, started func(string)) error {
			return runWitness(ctx, c, started, log)
		},
		ReadWitness: readWitness,
		Mirror: func(ctx context.Context, c cli.MirrorConfig, did func(cli.Mirrored) error) error {
			return runMirror(ctx, c, did, log)
		},
	}
}

func runWitness(ctx context.Context, c cli.WitnessConfig, started func(vkey string), log *slog.Logger) error {
	w, err := serve.Open(serve.Config{Dir: c.Data, Name: c.Name, Logs: c.Logs, Log: log})
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return errors.Join(fault.WithHint(fault.As(fault.Unavailable, err), "choose another address with --listen"), w.Close())
	}
	started(w.Verifier().String())
	log.Info("witnessing", "listen", l.Addr(), "data", c.Data, "logs", len(c.Logs))
	return errors.Join(w.Serve(ctx, l), w.Close())
}

func runMirror(ctx context.Context, c cli.MirrorConfig, did func(cli.Mirrored) error, log *slog.Logger) error {
	fetch, err := mirror.HTTP(c.Log, c.Token)
	if err != nil {
		return err
	}
	m, err := mirror.Open(c.Dir, c.Key, fetch, log)
	if err != nil {
		return err
	}
	err = m.Run(ctx, c.Every, func(r mirror.Report) error {
		return did(cli.Mirrored{Origin: r.Origin, Before: r.Before, Size: r.Size, Root: r.Root.String(), Cosigned: r.Cosigned})
	})
	return errors.Join(err, m.Close())
}

func readWitness(dir string) (cli.WitnessStatus, error) {
	s, err := serve.Read(dir)
	out := cli.WitnessStatus{VKey: s.VKey, Logs: []cli.WitnessedLog{}, Alarms: []cli.WitnessAlarm{}}
	for _, l := range s.Logs {
		out.Logs = append(out.Logs, cli.WitnessedLog(l))
	}
	for _, m := range s.Alarms {
		out.Alarms = append(out.Alarms, cli.WitnessAlarm{
			Doubt: string(m.Doubt), Log: m.Log, Time: m.Time, Directory: m.Directory, Held: m.Held, Submitted: m.Submitted,
		})
	}
	return out, err
}
