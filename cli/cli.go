// Package cli has the commands of invar: arguments in; text or JSON out.
//
// Results go to stdout, progress and diagnostics to stderr. Every command takes the global flags
// -C, --server, -o and --no-color, and ends with one of the exit statuses below.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger/witness"
)

// Exit statuses.
const (
	ExitDone     = 0 // done
	ExitFailed   = 1 // failed or misused
	ExitDiffers  = 2 // differences exist
	ExitReverted = 3 // the rollout failed and was reverted
	ExitDenied   = 4 // refused by policy, permission or freeze
	ExitWaits    = 5 // waits for approval
	ExitUntrue   = 6 // does not verify
)

const exitHelp = `Exit status:
  0  done
  1  failed or misused
  2  differences exist (plan --detailed-exitcode, diff)
  3  the rollout failed and was reverted
  4  refused by policy, permission or freeze
  5  waits for approval
  6  does not verify`

// Env is what a command line is given by the process that it runs in.
type Env struct {
	Args    []string
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Getenv  func(string) string
	Version string
	Daemons Daemons
}

// Daemons are the long-running parts, which the command line starts but does not contain.
type Daemons struct {
	Server  func(ctx context.Context, c ServerConfig) error
	Stop    func(ctx context.Context, dataDir string) error // ends server, gateway, instances and launcher; the data stays
	Gateway func(ctx context.Context) error
	// VerifyDir checks the ledger of a copied data directory, or of a directory of tiles, offline. When the policy asks for
	// cosignatures, they must reach as far as the ledger.
	VerifyDir func(ctx context.Context, dir, vkey string, policy witness.Policy) (VerifyReport, error)
	// Witness runs a witness, and gives started its verifier key.
	Witness func(ctx context.Context, c WitnessConfig, started func(vkey string)) error
	// Mirror copies a ledger, once or again and again, and tells of what it did: the first time, and whenever there is something new.
	Mirror func(ctx context.Context, c MirrorConfig, did func(Mirrored) error) error
	// ReadWitness reads what the witness in a directory remembers.
	ReadWitness func(dir string) (WitnessStatus, error)
}

// ServerConfig is what the flags of "invar server" say.
type ServerConfig struct {
	Data     string // data directory
	Listen   string // address of the API; "" is none
	Names    []string
	Gateway  string // address of the HTTP gateway
	HTTPS    string // address of the HTTPS gateway; "" is none
	ACME     string // directory URL of the certificate authority for routes with tls = "acme"
	ACMEMail string
	ACMERoot string // file of PEM certificates that the ACME server is trusted by; "" is the system's

	InspectEvery time.Duration // how often every instance is compared with its release; 0: never

	SecretsKeyCommand string // prints the key of secrets; "" keeps it in a file

	Witnesses witness.Policy // who watches the ledger from elsewhere, and what makes a quorum of them
}

// exitError ends the program with a status of its own.
type exitError struct {
	code int
	err  error // nil: nothing more to say
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func exit(code int, err error) error { return &exitError{code, err} }

// app is one command line while it runs.
type app struct {
	Env
	dir     string
	server  string
	output  string
	noColor bool

	tokenFile string
	login     cachedLogin
}

// Run runs one command line and returns its exit status.
func Run(ctx context.Context, env Env) int {
	a := &app{Env: env}
	root := a.root()
	root.SetArgs(env.Args)
	err := root.ExecuteContext(ctx)
	return a.report(err)
}

// report prints err for people, with its hint on a line of its own, and returns the status.
func (a *app) report(err error) int {
	if err == nil {
		return ExitDone
	}
	code := ExitFailed
	switch fault.KindOf(err) {
	case fault.Denied:
		code = ExitDenied
	case fault.Corrupt:
		code = ExitUntrue
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		code = e.code
	}
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(a.Stderr, "interrupted")
		return ExitFailed
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintf(a.Stderr, "%s %s\n", a.style().err("error:"), strings.TrimRight(msg, "\n"))
	}
	if hint := fault.Hint(err); hint != "" {
		fmt.Fprintf(a.Stderr, "%s %s\n", a.style().hint("hint:"), hint)
	}
	return code
}

// root is the tree of commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "invar",
		Short:         "Immutable infrastructure that can prove what runs",
		Long:          longRoot,
		Version:       a.Version,
		SilenceErrors: true,
		SilenceUsage:  true,

		SuggestionsMinimumDistance: 2,
		Args:                       cobra.NoArgs,
		RunE:                       func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	f := root.PersistentFlags()
	f.StringVarP(&a.dir, "dir", "C", ".", "the app's directory")
	f.StringVar(&a.server, "server", a.defaultServer(), "the server: unix://PATH or http(s)://HOST:PORT (INVAR_SERVER)")
	f.StringVar(&a.tokenFile, "token-file", a.Getenv("INVAR_TOKEN_FILE"), "`FILE` of a token for the server, read again for each request (INVAR_TOKEN_FILE)")
	f.StringVarP(&a.output, "output", "o", "text", "text or json")
	f.BoolVar(&a.noColor, "no-color", a.Getenv("NO_COLOR") != "", "no colours (NO_COLOR)")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if a.output != "text" && a.output != "json" {
			return fault.Errorf(fault.Invalid, "output %q: want text or json", a.output)
		}
		return nil
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fault.WithHint(fault.As(fault.Invalid, err), "%s --help", c.CommandPath())
	})
	root.AddGroup(
		&cobra.Group{ID: "start", Title: "Start here:"},
		&cobra.Group{ID: "app", Title: "An app's directory:"},
		&cobra.Group{ID: "env", Title: "Environments:"},
		&cobra.Group{ID: "govern", Title: "Who may change what:"},
		&cobra.Group{ID: "proof", Title: "Proof:"},
	)
	group(root, "start", a.demoCommand(), a.initCommand(), a.serverCommand())
	group(root, "app", a.fmtCommand(), a.validateCommand(), a.lockCommand(), a.buildCommand(), a.policyCommand())
	group(root, "env", a.planCommand(), a.applyCommand(), a.promoteCommand(), a.forkCommand(), a.bisectCommand(), a.statusCommand(), a.historyCommand(), a.showCommand(),
		a.diffCommand(), a.rollbackCommand(), a.volumeCommand(), a.confirmCommand(), a.logsCommand(), a.execCommand(), a.secretCommand(), a.destroyCommand())
	group(root, "govern", a.loginCommand(), a.logoutCommand(), a.whoamiCommand(), a.tokenCommand(), a.changeCommand(), a.releaseCommand(), a.eraseCommand())
	group(root, "proof", a.verifyCommand(), a.driftCommand(), a.reproduceCommand(), a.sbomCommand(), a.ledgerCommand(), a.recordingCommand(), a.witnessCommand(), a.evidenceCommand())
	root.AddCommand(a.gatewayCommand(), a.manCommand())
	root.CompletionOptions.HiddenDefaultCmd = false
	a.complete(root)
	explainArgs(root)
	return root
}

// explainArgs has every command say how it is used when its arguments are wrong.
func explainArgs(c *cobra.Command) {
	for _, sub := range c.Commands() {
		explainArgs(sub)
	}
	check := c.Args
	if check == nil {
		return
	}
	c.Args = func(c *cobra.Command, args []string) error {
		err := check(c, args)
		if err == nil {
			return nil
		}
		hint := c.UseLine()
		if c.HasSubCommands() {
			hint = c.CommandPath() + " --help"
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				hint = c.CommandPath() + " " + strings.Join(near, ", or ")
			}
		}
		return fault.WithHint(fault.As(fault.Invalid, err), "%s", hint)
	}
}

func group(root *cobra.Command, id string, commands ...*cobra.Command) {
	for _, c := range commands {
		c.GroupID = id
		root.AddCommand(c)
	}
}

const longRoot = `invar runs apps as immutable instances and can prove what runs.

Nothing is changed in place. Every change makes a new content-addressed release and new
instances beside the old; the traffic switches when they are healthy; going back takes a
second; every step is an entry in a tamper-evident ledger.

` + exitHelp

// defaultServer is where commands look for the server when nothing else is said.
func (a *app) defaultServer() string {
	if s := a.Getenv("INVAR_SERVER"); s != "" {
		return s
	}
	return "unix://" + DefaultData + "/invar.sock"
}

// DefaultData is the server's data directory unless told otherwise.
const DefaultData = "/var/lib/invar"
