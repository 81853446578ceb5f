package cli

import (
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/invarhq/invar/fault"
)

func (a *app) serverCommand() *cobra.Command {
	var cfg ServerConfig
	var witnesses witnessFlags
	c := &cobra.Command{
		Use:   "server",
		Short: "Run the server",
		Long: `Server runs the daemon on this machine. Local commands reach it through the socket DATA/invar.sock, others
over --listen with a token ("invar token create NAME"). Traffic enters at --gateway.

Instances and the gateway run on while the server is stopped, killed or upgraded; it finds them again when it
starts. "invar server stop" retires them as well.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if cfg.Witnesses, err = witnesses.policy(); err != nil {
				return err
			}
			if cfg.InspectEvery < 0 {
				return fault.WithHint(fault.Errorf(fault.Invalid, "--inspect %v: a time can't be negative", cfg.InspectEvery), "use 0 to compare only when asked to, by \"invar verify\"")
			}
			return a.Daemons.Server(c.Context(), cfg)
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Data, "data", DefaultData, "data `DIR`ectory; made when it is missing or empty")
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:7373", "`ADDR`ess of the API; \"\" for none")
	f.StringSliceVar(&cfg.Names, "name", nil, "DNS `NAME` by which clients reach the API over TCP, beside its address and localhost; may be repeated")
	f.StringVar(&cfg.Gateway, "gateway", "127.0.0.1:8080", "`ADDR`ess of the HTTP gateway")
	f.StringVar(&cfg.HTTPS, "gateway-tls", "127.0.0.1:8443", "`ADDR`ess of the HTTPS gateway, for routes with tls; \"\" for none")
	f.StringVar(&cfg.ACME, "acme", "", "directory `URL` of the ACME authority for routes with tls = \"acme\"")
	f.StringVar(&cfg.ACMEMail, "acme-email", "", "`ADDRESS` that the ACME authority may write to")
	f.StringVar(&cfg.ACMERoot, "acme-root", "", "`FILE` of PEM certificates that the ACME server is trusted by")
	witnesses.add(f, "witness-quorum", "ask this `WITNESS` to cosign the ledger's checkpoints: VKEY@URL, or a file of C2SP tlog-policy")
	f.StringVar(&cfg.SecretsKeyCommand, "secrets-key-command", "", "shell `COMMAND` that prints the age identity that secrets are encrypted with; \"\" keeps one in the data directory")
	// What was done to an instance is found after this long and the pause before a second look: well within five seconds.
	f.DurationVar(&cfg.InspectEvery, "inspect", 3*time.Second, "compare every instance with its release every `DUR`ation; 0: only when \"invar verify\" asks")
	c.AddCommand(a.serverStopCommand())
	return c
}

func (a *app) serverStopCommand() *cobra.Command {
	var data string
	c := &cobra.Command{
		Use:   "stop",
		Short: "Stop the server, the gateway and every instance of this machine",
		Long: `Stop ends all that "invar server" started on this machine: instances, gateway, launcher, mounts. The data
directory stays, and the next "invar server" starts what the ledger says should run.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.Daemons.Stop(c.Context(), data) },
	}
	c.Flags().StringVar(&data, "data", DefaultData, "data `DIR`ectory")
	return c
}

// gatewayCommand is what the server starts; people have no use for it.
func (a *app) gatewayCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "gateway",
		Short:  "Run the gateway (the server starts it)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(c *cobra.Command, _ []string) error { return a.Daemons.Gateway(c.Context()) },
	}
}

func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the man pages into a directory",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			header := &doc.GenManHeader{Title: "INVAR", Section: "1", Source: "invar " + a.Version}
			return doc.GenManTree(c.Root(), header, args[0])
		},
	}
}
