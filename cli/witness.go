package cli

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger/witness"
)

// DefaultWitness is a witness's directory unless told otherwise.
const DefaultWitness = "/var/lib/invar-witness"

// WitnessConfig is what the flags of "invar witness" say.
type WitnessConfig struct {
	Data   string
	Listen string
	Name   string // of the key that is made at the first start; "" makes one up
	Logs   []witness.Log
}

// WitnessStatus is what a witness remembers and what it has seen.
type WitnessStatus struct {
	VKey   string         `json:"vkey"`
	Logs   []WitnessedLog `json:"logs"`
	Alarms []WitnessAlarm `json:"alarms"`
}

// WitnessedLog is the newest checkpoint of a log that a witness cosigned.
type WitnessedLog struct {
	Origin string    `json:"origin"`
	VKey   string    `json:"vkey"`
	Size   int64     `json:"size"`
	Root   string    `json:"root"`
	Time   time.Time `json:"time"`
}

// WitnessAlarm is an inconsistency that a witness keeps.
type WitnessAlarm struct {
	Doubt     string    `json:"doubt"`
	Log       string    `json:"log"`
	Time      time.Time `json:"time"`
	Directory string    `json:"directory"`
	Held      string    `json:"held"`
	Submitted string    `json:"submitted"`
}

// witnessFlags say which witnesses there are and what makes a quorum.
type witnessFlags struct {
	witnesses []string
	quorum    int
}

func (w *witnessFlags) add(f *pflag.FlagSet, quorum, usage string) {
	f.StringArrayVar(&w.witnesses, "witness", nil, usage+"; may be given several times")
	f.IntVar(&w.quorum, quorum, -1, "how many of the witnesses are enough, `COUNT`; all, when it is not given")
}

// policy reads the flags. A file of tlog-policy says everything, so it stands alone.
func (w *witnessFlags) policy() (witness.Policy, error) {
	var all []witness.Witness
	for _, arg := range w.witnesses {
		vkey, url := arg, ""
		if at := max(strings.LastIndex(arg, "@http://"), strings.LastIndex(arg, "@https://")); at >= 0 {
			vkey, url = arg[:at], arg[at+1:]
		} else if text, err := os.ReadFile(arg); err == nil {
			if len(w.witnesses) > 1 || w.quorum >= 0 {
				return witness.Policy{}, fault.Errorf(fault.Invalid, "%s is a policy: it names all witnesses and the quorum, so --witness is given once, and no quorum", arg)
			}
			return witness.ParsePolicy(string(text))
		}
		v, err := witness.ParseVerifier(vkey)
		if err != nil {
			return witness.Policy{}, err
		}
		all = append(all, witness.Witness{Verifier: v, URL: url})
	}
	quorum := w.quorum
	if quorum < 0 {
		quorum = len(all)
	}
	return witness.NewPolicy(quorum, all...)
}

func (a *app) witnessCommand() *cobra.Command {
	var cfg WitnessConfig
	var logs []string
	c := &cobra.Command{
		Use:   "witness",
		Short: "Run a witness of somebody's ledger",
		Long: `Witness remembers the newest checkpoint of each --log and cosigns another one only when it is proven to begin
with the tree that is remembered (https://c2sp.org/tlog-witness). A log can't show two histories to those who ask for
the cosignatures of witnesses. It is worth what its independence is worth: run it on a machine, and under an
administration, other than the log's.

The first start makes a key in DIR and prints its verifier key, which the log's server is given:

  invar server --witness VKEY@http://HOST:7380

What it cosigns is durable before it answers. A checkpoint that is signed by the log and does not go with what is
remembered is never cosigned; both are kept under DIR/evidence for good, and "invar witness status" then ends with 6.
Requests need no credentials, and it keeps no secret but its key; give it TLS with a reverse proxy.`,
		Example: `  invar witness --listen 0.0.0.0:7380 --log /media/usb/ledger.pub`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if cfg.Logs, err = parseLogs(logs); err != nil {
				return err
			}
			return a.Daemons.Witness(c.Context(), cfg, func(vkey string) { fmt.Fprintln(a.Stdout, vkey) })
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Data, "data", DefaultWitness, "the witness's `DIR`ectory; made when it is missing or empty")
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:7380", "`ADDR`ess that logs reach it at")
	f.StringVar(&cfg.Name, "name", "", "`NAME` of a new witness, a URL without its scheme; the machine's when it is not given")
	f.StringArrayVar(&logs, "log", nil, "verifier key of a log, or a `FILE` that holds it; may be given several times")
	c.AddCommand(a.witnessStatusCommand())
	return c
}

func parseLogs(args []string) ([]witness.Log, error) {
	var out []witness.Log
	for _, arg := range args {
		l, err := witness.ParseLog(textOr(arg))
		if err != nil {
			return nil, fault.WithHint(err, "give the log's verifier key, or a file that holds it")
		}
		out = append(out, l)
	}
	return out, nil
}

// textOr returns the content of a file of this name, without space around it, or arg itself.
func textOr(arg string) string {
	if b, err := os.ReadFile(arg); err == nil {
		return strings.TrimSpace(string(b))
	}
	return arg
}

func (a *app) witnessStatusCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what a witness remembers, and its alarms",
		Long: `Status reads the directory of a witness, whether it runs or not. It ends with 6 when inconsistent checkpoints are kept there:

  fork      the log signed two trees of one size; the two files prove it to anybody
  unproven  the proof that came with a checkpoint does not hold: the log has to show one that does
  lost      the witness cosigned what it does not remember: it was set back, or its key is used elsewhere`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.Daemons.ReadWitness(dir)
			if err != nil {
				return err
			}
			if err := a.showWitness(s); err != nil || len(s.Alarms) == 0 {
				return err
			}
			return exit(ExitUntrue, fmt.Errorf("%s of inconsistent checkpoints, in %s", alarmsWord(len(s.Alarms)), dir))
		},
	}
	c.Flags().StringVar(&dir, "data", DefaultWitness, "the witness's `DIR`ectory")
	return c
}

func (a *app) showWitness(s WitnessStatus) error {
	if a.output == "json" {
		return a.json(s)
	}
	fmt.Fprintf(a.Stdout, "witness %s\n", s.VKey)
	var rows [][]string
	for _, l := range s.Logs {
		rows = append(rows, []string{l.Origin, strconv.FormatInt(l.Size, 10), l.Time.Format(time.RFC3339), l.Root})
	}
	if err := table(a.Stdout, "LOG SIZE TIME ROOT", rows); err != nil {
		return err
	}
	for _, m := range s.Alarms {
		fmt.Fprintf(a.Stdout, "%s %s %s: %s\n", a.outStyle().err("ALARM"), m.Time.Format(time.RFC3339), m.Doubt, m.Directory)
	}
	return nil
}

func alarmsWord(n int) string {
	if n == 1 {
		return "1 alarm"
	}
	return fmt.Sprintf("%d alarms", n)
}

func (a *app) ledgerWitnessesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "witnesses",
		Short: "Show who cosigned the ledger, up to where, and alarms",
		Long: `Witnesses shows what each witness of the ledger ("invar server --witness") cosigned last, and up to which entry a quorum
holds. It ends with 6 when a witness knows the ledger otherwise than the server does.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			w, err := cl.Witnesses(c.Context())
			if err != nil {
				return err
			}
			if err := a.showWitnesses(w); err != nil || w.Raised == 0 {
				return err
			}
			return exit(ExitUntrue, fmt.Errorf("the ledger and its witnesses do not agree: %s", alarmsWord(w.Raised)))
		},
	}
}

func (a *app) showWitnesses(w api.Witnesses) error {
	if a.output == "json" {
		return a.json(w)
	}
	alarms := w.Alarms
	var rows [][]string
	for _, p := range w.Witnesses {
		size, at := "-", "-"
		if p.Time != nil {
			size, at = strconv.FormatUint(p.Size, 10), p.Time.Format(time.RFC3339)
		}
		rows = append(rows, []string{p.Name, size, at, orDash(p.Error)})
		alarms = append(alarms, p.Alarms...)
	}
	if err := table(a.Stdout, "WITNESS SIZE TIME ERROR", rows); err != nil {
		return err
	}
	switch {
	case w.Cosigned == "":
		fmt.Fprintf(a.Stdout, "quorum: none, of %s\n", entriesWord(int64(w.Size)))
	default:
		fmt.Fprintf(a.Stdout, "quorum: up to %d, of %s\n", w.QuorumSize, entriesWord(int64(w.Size)))
	}
	for _, m := range alarms {
		fmt.Fprintf(a.Stdout, "%s %s %s: %s\n", a.outStyle().err("ALARM"), m.Since.Format(time.RFC3339), m.Kind, m.Cause)
	}
	return nil
}
