package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/fault"
)

func (a *app) execCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "exec ENV/COMPONENT[/INSTANCE] [-- COMMAND...]",
		Short: "Open a recorded shell in an instance, which is replaced afterwards",
		Long: `Exec runs a command, sh unless another is given, in an instance: as its user, in its namespaces and limits.
It needs the permission exec and a reason. What is typed and shown is recorded, encrypted to the
platform's auditors if there are any. The instance is tainted from then on: it is replaced when the
session ends, at the latest at the session's deadline.

On a terminal, the command gets one as well. Else input and output are pipes. The exit status is the
command's, 128 and the signal's number when a signal ended it, and 1 when the session ended otherwise.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			q, err := execQuery(args)
			if err != nil {
				return err
			}
			if q.Reason = reason; strings.TrimSpace(reason) == "" {
				return fault.WithHint(fault.Errorf(fault.Invalid, "a session needs a reason"), "say why with --reason: the ledger keeps it")
			}
			return a.exec(c.Context(), q)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why; recorded in the ledger")
	return c
}

// execQuery reads where to run what.
func execQuery(args []string) (client.ExecQuery, error) {
	parts := strings.Split(args[0], "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return client.ExecQuery{}, fault.WithHint(fault.Errorf(fault.Invalid, "%q names no component", args[0]), "invar exec ENV/COMPONENT --reason TEXT")
	}
	q := client.ExecQuery{Env: parts[0], Component: parts[1], Command: args[1:]}
	if len(parts) == 3 {
		q.Instance = parts[2]
	}
	if len(q.Command) == 0 {
		q.Command = []string{"sh"}
	}
	return q, nil
}

func (a *app) exec(ctx context.Context, q client.ExecQuery) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	q.Stdin, q.Stdout, q.Stderr = a.Stdin, a.Stdout, a.Stderr
	leave := func() {}
	q.Opened = func(s api.ExecSession) {
		fmt.Fprintln(a.Stderr, sessionWarning(s, time.Now()))
		if q.TTY {
			leave = rawMode(a.Stdin.(*os.File))
		}
	}
	if in, ok := a.Stdin.(*os.File); ok && term.IsTerminal(int(in.Fd())) && isTerminal(a.Stdout) {
		q.TTY, q.Term = true, a.Getenv("TERM")
		sizes := make(chan os.Signal, 1)
		signal.Notify(sizes, unix.SIGWINCH)
		defer signal.Stop(sizes)
		q.Size = terminalSize(in)
		q.Resize = resizes(ctx, in, sizes)
	}
	end, err := cl.Exec(ctx, q)
	leave()
	switch {
	case err != nil:
		return err
	case end.How != "exited":
		return fault.Errorf(fault.Unavailable, "the session was ended: %s", endWord(end.How))
	case end.ExitCode != 0:
		return exit(end.ExitCode&0xff, nil)
	}
	return nil
}

// sessionWarning is what whoever opens a session is told before it begins.
func sessionWarning(s api.ExecSession, now time.Time) string {
	kept := "recorded"
	if s.Encrypted {
		kept = "recorded for the auditors"
	}
	return fmt.Sprintf("This session is %s, input included, and taints %s: it is replaced when you leave, at the latest after %s.",
		kept, s.Instance, seconds(s.Deadline.Sub(now).Round(time.Second)))
}

func endWord(how string) string {
	switch how {
	case "deadline":
		return "its time was over"
	case "full":
		return "its recording is full"
	case "stopped":
		return "the server stopped"
	}
	return how
}

// rawMode has the terminal pass on every key, and returns what undoes that.
func rawMode(f *os.File) func() {
	before, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return func() {}
	}
	return func() { term.Restore(int(f.Fd()), before) }
}

func terminalSize(f *os.File) client.TerminalSize {
	w, h, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return client.TerminalSize{Rows: 24, Cols: 80}
	}
	return client.TerminalSize{Rows: uint16(h), Cols: uint16(w)}
}

// resizes tells the terminal's size whenever it changes.
func resizes(ctx context.Context, f *os.File, changed <-chan os.Signal) <-chan client.TerminalSize {
	sizes := make(chan client.TerminalSize, 1)
	go func() {
		for {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			select {
			case sizes <- terminalSize(f):
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}

func (a *app) recordingCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "recording DIGEST",
		Short: "Write a session's recording to the standard output",
		Long: `Recording fetches what was typed and shown in a session, by the digest that its entry session.end has as
body: asciicast v2, which asciinema plays; encrypted by age if the platform has auditors
(age -d -i KEY). It needs the permission evidence.export.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			return cl.Recording(c.Context(), args[0], a.Stdout)
		},
	}
}
