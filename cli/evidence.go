package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/evidence"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

func (a *app) evidenceCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "evidence",
		Short: "Hand over evidence, and check it without a server",
		Long: `Evidence is a part of the ledger in one directory, with all that it takes to check it: an auditor who has the log's
verifier key from elsewhere needs no server, no network, and no trust in who exported it.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.evidenceExportCommand(), a.evidenceVerifyCommand(), a.evidenceSampleCommand())
	return c
}

func (a *app) evidenceExportCommand() *cobra.Command {
	var from, to, env string
	c := &cobra.Command{
		Use:   "export DIR",
		Short: "Write a part of the ledger to a directory, with all that proves it",
		Long: `Export writes DIR, which must not exist: entries, tiles, proofs, what people signed, policies with their inputs, releases, SBOMs,
provenance, recordings, an OSCAL assessment-results file, a report for people, and VERIFY.md with the commands of public
tools that check all of it. It needs the permissions ledger.read and evidence.export. The ledger gets an entry of it, and
signs the manifest.

--from and --to are times (2026-01-31, 2026-01-31T12:00:00Z) or numbers of entries; --to is exclusive, and a day given to
it is the day after the last. Entries of all environments are always there, since the state is their fold; with --env the
report, the population and the bodies are of that environment and the platform alone.`,
		Example: `  invar evidence export q3 --from 2026-07-01 --to 2026-10-01 --env prod`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r := evidence.Request{Env: spec.EnvName(env), Tool: a.Version, Now: time.Now()}
			var err error
			if r.From, err = bound("--from", from); err == nil {
				r.To, err = bound("--to", to)
			}
			if err != nil {
				return err
			}
			return a.exportEvidence(c.Context(), args[0], r)
		},
	}
	c.Flags().StringVar(&from, "from", "", "first `ENTRY` or time; the ledger's begin when it is not given")
	c.Flags().StringVar(&to, "to", "", "`ENTRY` or time after the last; the ledger's end when it is not given")
	c.Flags().StringVar(&env, "env", "", "only of the environment `ENV`")
	return c
}

// bound reads an end of a scope.
func bound(flag, text string) (evidence.Bound, error) {
	if text == "" {
		return evidence.Bound{}, nil
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
		return evidence.Bound{Index: n}, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, text); err == nil {
			return evidence.Bound{Time: t.UTC()}, nil
		}
	}
	return evidence.Bound{}, fault.WithHint(fault.Errorf(fault.Invalid, "%s %q is neither a time nor the number of an entry", flag, text),
		"write 2026-01-31 (UTC), 2026-01-31T12:00:00Z or 1234")
}

// exportEvidence writes a bundle, has the ledger know, and checks what it wrote. What was begun and not finished is removed.
func (a *app) exportEvidence(ctx context.Context, dir string, r evidence.Request) (err error) {
	cl, err := a.client()
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fault.WithHint(fault.As(fault.Invalid, fmt.Errorf("making the directory: %w", err)), "export to a directory that does not exist yet")
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	r.Write = func(path string, content []byte) error { return writeInto(root, path, content) }
	r.Progress = a.telling()
	x, err := a.writeEvidence(ctx, cl, r)
	if err != nil {
		return err
	}
	report, err := evidence.Verify(ctx, root.FS(), evidence.Options{VKey: r.VKey, Tool: a.Version})
	if err != nil {
		return err
	}
	return a.showExported(dir, x, report)
}

// telling returns what tells people of progress: one line that is written over on a terminal, nothing elsewhere.
func (a *app) telling() func(string) {
	return func(string) {}
}

func (a *app) writeEvidence(ctx context.Context, cl *client.Client, r evidence.Request) (evidence.Exported, error) {
	server, err := cl.Server(ctx)
	if err != nil {
		return evidence.Exported{}, err
	}
	w, err := cl.Witnesses(ctx)
	if err != nil {
		return evidence.Exported{}, err
	}
	r.VKey, r.Witnesses = server.Ledger.VKey, w.Policy
	x, err := evidence.Export(ctx, served{cl}, r)
	if err != nil {
		return x, err
	}
	s := x.Manifest.Scope
	receipt, err := cl.RecordExport(ctx, api.ExportRequest{From: s.From, To: s.To, Env: string(s.Env), Size: x.Manifest.Size, Moves: x.Count, Manifest: x.Digest})
	if err != nil {
		return x, err
	}
	return x, r.Write(evidence.FileNote, []byte(receipt.Note))
}

func writeInto(root *os.Root, path string, content []byte) error {
	if err := root.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return root.WriteFile(path, content, 0o644)
}

// served is a server as evidence.Source.
type served struct{ *client.Client }

// Resource implements evidence.Source.
func (s served) Resource(ctx context.Context, path string) ([]byte, error) { return s.Tile(ctx, path) }

// CheckpointAt implements evidence.Source.
func (s served) CheckpointAt(ctx context.Context, size int64) ([]byte, error) {
	c, err := s.Client.CheckpointAt(ctx, size)
	return []byte(c.Note), err
}

// Blob implements evidence.Source.
func (s served) Blob(ctx context.Context, d digest.Digest) ([]byte, error) { return s.Content(ctx, d) }

// Attached implements evidence.Source.
func (s served) Attached(ctx context.Context, manifest digest.Digest) ([]evidence.Attachment, error) {
	all, err := s.Client.Attached(ctx, manifest)
	var out []evidence.Attachment
	for _, one := range all {
		out = append(out, evidence.Attachment{Type: one.Type, Content: one.Content})
	}
	return out, err
}

// showExported tells what was written, and fails when it does not verify.
func (a *app) showExported(dir string, x evidence.Exported, r evidence.Report) error {
	if a.output == "json" {
		if err := a.json(r); err != nil {
			return err
		}
		return untrue(r)
	}
	s := x.Manifest.Scope
	fmt.Fprintf(a.Stdout, "%s: %d files, entries %d to %d, %d heads moved; recorded as entry %d\n", dir, len(x.Manifest.Files)+2, s.From, s.To-1, x.Count, r.Recorded)
	if err := a.showFindings(r); err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "read %s; check it with: invar evidence verify %s --key KEY, or as %s says\n",
		filepath.Join(dir, evidence.FileReport), dir, filepath.Join(dir, evidence.FileGuide))
	return untrue(r)
}

func (a *app) evidenceVerifyCommand() *cobra.Command {
	var key string
	var known []string
	var witnesses witnessFlags
	c := &cobra.Command{
		Use:   "verify DIR",
		Short: "Check evidence, with no server and no network",
		Long: `Verify checks a directory that "invar evidence export" wrote. It hashes every file and entry again, checks the tree, its
checkpoints and signatures, folds the whole ledger, and asks of every change whether the rules that were in force then were
kept: permissions, signed approvals by people who may, separation of duties, freezes, policies that come to the same decision
again. So it finds a change that the rules forbade also where a server has signed it.

What is not what it claims to be is a failure: verify names the entry and exits with 6. Gaps (a late review, an exception that
has expired and was still needed) and notices (emergencies, refusals) are reported, and are no reason to fail.

--key is the log's verifier key, which an auditor has from elsewhere; without it the bundle's own is used, which shows damage
but not forgery. --checkpoint is a checkpoint that was got earlier or elsewhere: the ledger must begin with it.`,
		Example: `  invar evidence verify q3 --key ledger.pub`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			policy, err := witnesses.policy()
			if err != nil {
				return err
			}
			o := evidence.Options{Witnesses: policy, Tool: a.Version}
			if key != "" {
				o.VKey = textOr(key)
			}
			for _, file := range known {
				b, err := os.ReadFile(file)
				if err != nil {
					return fault.As(fault.Invalid, fmt.Errorf("reading a checkpoint: %w", err))
				}
				o.Known = append(o.Known, b)
			}
			return a.verifyEvidence(c.Context(), args[0], o)
		},
	}
	c.Flags().StringVar(&key, "key", "", "the log's verifier key, or a `FILE` that holds it")
	c.Flags().StringArrayVar(&known, "checkpoint", nil, "`FILE` of a checkpoint that the ledger must begin with; may be given several times")
	witnesses.add(c.Flags(), "quorum", "verifier key of a `WITNESS`, or a file of C2SP tlog-policy")
	return c
}

func (a *app) verifyEvidence(ctx context.Context, dir string, o evidence.Options) error {
	root, err := openDir(dir)
	if err != nil {
		return err
	}
	r, err := evidence.Verify(ctx, root, o)
	if err != nil {
		return err
	}
	if a.output == "json" {
		if err := a.json(r); err != nil {
			return err
		}
		return untrue(r)
	}
	for _, k := range r.Checks {
		fmt.Fprintf(a.Stdout, "%8d  %s\n", k.Count, k.What)
	}
	if err := a.showFindings(r); err != nil {
		return err
	}
	if !r.TrustedKey {
		fmt.Fprintln(a.Stderr, a.style().hint("hint:"), "the key is the bundle's own: give the one that you have from elsewhere with --key")
	}
	for _, w := range r.Cosigned {
		fmt.Fprintf(a.Stdout, "cosigned by %s at %s, up to entry %d\n", w.Name, w.Time.Format(time.RFC3339), w.Size-1)
	}
	if r.OK() {
		fmt.Fprintf(a.Stdout, "%s: log %s, %s, root %s\n", a.outStyle().good("verifies"), r.Log, entriesWord(r.Size), r.Root)
	}
	return untrue(r)
}

func openDir(dir string) (fs.FS, error) {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a directory", dir)
	}
	if err != nil {
		return nil, fault.As(fault.Invalid, fmt.Errorf("opening the evidence: %w", err))
	}
	return os.DirFS(dir), nil
}

// untrue is the error of a report with failures.
func untrue(r evidence.Report) error {
	if r.OK() {
		return nil
	}
	bad := r.Of(evidence.Failure)
	more := ""
	if len(bad) > 1 {
		more = fmt.Sprintf(" (and %d more)", len(bad)-1)
	}
	return exit(ExitUntrue, fmt.Errorf("the evidence does not verify: %s%s", bad[0], more))
}

// showFindings lists what was found, worst first.
func (a *app) showFindings(r evidence.Report) error {
	var rows [][]string
	for _, f := range r.Findings {
		at := "-"
		if f.Entry >= 0 {
			at = strconv.FormatInt(f.Entry, 10)
		}
		rows = append(rows, []string{string(f.Severity), at, orDash(string(f.Kind)), orDash(string(f.Env)), f.Message})
	}
	if len(rows) == 0 {
		return nil
	}
	return table(a.Stdout, "FINDING ENTRY KIND ENVIRONMENT WHAT", rows)
}

func (a *app) evidenceSampleCommand() *cobra.Command {
	var seed string
	var size int
	c := &cobra.Command{
		Use:   "sample DIR",
		Short: "Draw a sample from the population of evidence",
		Long: `Sample draws changes to look at from population.csv. The seed is the auditor's, and is told only when the population is
handed over, so that neither side can choose: the draw follows from seed and population alone, and anybody can do it
again. How is printed with it.`,
		Example: `  invar evidence sample q3 --seed "dice: 4 1 6 6 2 3" --size 25`,
		Args:    cobra.ExactArgs(1),
		RunE:    func(c *cobra.Command, args []string) error { return a.sampleEvidence(args[0], seed, size) },
	}
	c.Flags().StringVar(&seed, "seed", "", "the auditor's `TEXT`")
	c.Flags().IntVar(&size, "size", 25, "how many `CHANGES`")
	must(c.MarkFlagRequired("seed"))
	return c
}

// Sampled is a sample, with what it was drawn from.
type Sampled struct {
	Population evidence.Population `json:"population"`
	Seed       string              `json:"seed"`
	Numbers    []int               `json:"numbers"` // lines of population.csv, as its first column has them
	Rows       [][]string          `json:"rows"`
	Algorithm  string              `json:"algorithm"`
}

func (a *app) sampleEvidence(dir, seed string, size int) error {
	root, err := openDir(dir)
	if err != nil {
		return err
	}
	p, header, rows, err := evidence.ReadPopulation(root)
	if err != nil {
		return err
	}
	if size < 1 {
		return fault.Errorf(fault.Invalid, "--size %d: want at least 1", size)
	}
	out := Sampled{Population: p, Seed: seed, Numbers: evidence.Sample(seed, p.Digest, p.Count, size), Algorithm: evidence.Algorithm}
	for _, n := range out.Numbers {
		out.Rows = append(out.Rows, rows[n-1])
	}
	if a.output == "json" {
		return a.json(out)
	}
	fmt.Fprintf(a.Stdout, "population: %d heads moved in %s, entries %d to %d: %s\ndigest %s\nseed %q\n%s\n\n", p.Count, p.Log, p.From.Size, p.To.Size-1, p.Filter, p.Digest, seed, out.Algorithm)
	return evidence.WriteRows(a.Stdout, header, out.Rows)
}
