package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/fault"
)

func (a *app) volumeCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "volume",
		Short: "See what is kept of volumes, and free space",
		Long: `A volume has versions, of which instances get the current one, and snapshots, which were taken before a change. A version that
is not current any more stays as it was left. "invar rollback ENV --with-data" makes a new version from what is kept.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.volumeListCommand(), a.volumeDeleteCommand())
	return c
}

func (a *app) volumeListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list [ENV]",
		Short: "List volumes with their versions and snapshots",
		Long: `List shows every volume with its versions and snapshots: which version instances get, what each was made from, which generation left
it so and when, and how large it was when it was copied.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			list, err := a.volumesOf(c.Context(), cl, args)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(list)
			}
			return a.renderVolumes(list)
		},
	}
}

// volumesOf returns the volumes of an environment, or of all.
func (a *app) volumesOf(ctx context.Context, cl *client.Client, args []string) ([]api.Volumes, error) {
	if len(args) == 0 {
		envs, err := cl.Environments(ctx)
		if err != nil {
			return nil, err
		}
		for _, e := range envs {
			args = append(args, e.Name)
		}
	}
	list := []api.Volumes{}
	for _, env := range args {
		v, err := cl.Volumes(ctx, env)
		if err != nil {
			return nil, err
		}
		if len(v.Volumes) > 0 {
			list = append(list, v)
		}
	}
	return list, nil
}

func (a *app) renderVolumes(list []api.Volumes) error {
	var rows [][]string
	for _, env := range list {
		for _, v := range env.Volumes {
			name := v.Component + "/" + v.Name
			for _, k := range v.Versions {
				rows = append(rows, []string{env.Env, name, fmt.Sprint("version ", k.Number), stateOf(k, k.Number == v.Current), when(k.At), sizeOf(k), orDash(k.From + unsettled(k))})
			}
			for _, k := range v.Snapshots {
				rows = append(rows, []string{env.Env, name, fmt.Sprint("snapshot ", k.Number), stateOf(k, false), when(k.At), sizeOf(k), fmt.Sprint("version ", k.Of)})
			}
		}
	}
	return table(a.Stdout, "ENV VOLUME WHAT STATE SINCE SIZE FROM", rows)
}

// stateOf says what a version or a snapshot is good for.
func stateOf(k api.VolumeKept, current bool) string {
	switch {
	case current:
		return "current"
	case k.Generation > 0:
		return fmt.Sprintf("as generation %d left it", k.Generation)
	}
	return "never used"
}

// unsettled says of a copy of data in use that it is not of one moment.
func unsettled(k api.VolumeKept) string {
	if k.Changed == 0 {
		return ""
	}
	return fmt.Sprintf(" (%s still changed)", plural(k.Changed, "file"))
}

func when(at *time.Time) string {
	if at == nil {
		return "-"
	}
	return at.Local().Format(time.DateTime)
}

func sizeOf(k api.VolumeKept) string {
	if k.Digest == "" {
		return "-"
	}
	return size(k.Bytes)
}

// size writes a number of bytes for people.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, u := float64(n), 0
	for f >= 1024 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	if u == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[u])
}

func (a *app) volumeDeleteCommand() *cobra.Command {
	var version, snapshot int
	var reason string
	var yes bool
	c := &cobra.Command{
		Use:   "delete ENV COMPONENT/NAME",
		Short: "Delete a version or a snapshot of a volume for good",
		Long: `Delete frees the space of a version that is not current any more, or of a snapshot. A rollback with data can't take back what is
deleted. The current version goes with "invar destroy ENV --volumes".`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			component, volume, ok := strings.Cut(args[1], "/")
			if !ok || component == "" || volume == "" || (version > 0) == (snapshot > 0) {
				return fault.WithHint(fault.Errorf(fault.Invalid, "want one volume, and one version or snapshot of it"), "invar volume delete ENV COMPONENT/NAME --version N, or --snapshot N")
			}
			what := fmt.Sprintf("--version %d", version)
			if snapshot > 0 {
				what = fmt.Sprintf("--snapshot %d", snapshot)
			}
			if !yes {
				question := fmt.Sprintf("Delete %s of volume %s of %s for good?", strings.Replace(strings.TrimPrefix(what, "--"), "-", " ", 1), args[1], args[0])
				if err := a.confirm(question, fmt.Sprintf("invar volume delete %s %s %s --yes", args[0], args[1], what)); err != nil {
					return err
				}
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			left, err := cl.DeleteVolume(c.Context(), args[0], api.VolumeDeleteRequest{Component: component, Volume: volume, Version: version, Snapshot: snapshot, Reason: reason})
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(left)
			}
			return nil
		},
	}
	c.Flags().IntVar(&version, "version", 0, "`NUMBER` of the version")
	c.Flags().IntVar(&snapshot, "snapshot", 0, "`NUMBER` of the snapshot")
	c.Flags().StringVar(&reason, "reason", "", "why; recorded in the ledger")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

// rollbackWithData shows what going back with data would lose, has it confirmed by the environment's name, and does it.
func (a *app) rollbackWithData(ctx context.Context, cl *client.Client, env string, to int, yes, detach bool, req api.RollbackRequest) error {
	p, err := cl.PlanRollback(ctx, env, api.RollbackPlanRequest{To: to, WithData: true})
	if err != nil {
		return err
	}
	if a.output != "json" {
		a.renderPlan(a.Stderr, a.style(), p)
	}
	if !yes {
		unattended := "invar rollback " + env
		if to != 0 {
			unattended += fmt.Sprint(" --to ", to)
		}
		if err := a.confirmName(env, unattended+" --with-data --yes"); err != nil {
			return err
		}
	}
	req.WithData, req.PlanDigest = true, p.Digest
	acc, err := cl.Rollback(ctx, env, req)
	if err != nil {
		return err
	}
	return a.accepted(ctx, cl, acc, detach)
}

// renderPlanVolumes says of each volume what its data become, and what is not seen any more.
func renderPlanVolumes(w io.Writer, st style, list []api.PlanVolume, now time.Time) {
	for _, v := range list {
		name := st.bold(v.Component + "/" + v.Volume)
		if v.Stays {
			fmt.Fprintf(w, "    volume %s  its data stay: no other version of %s has had them since\n", name, v.Component)
			continue
		}
		from := fmt.Sprint("version ", v.Version)
		if v.Snapshot > 0 {
			from = fmt.Sprintf("snapshot %d (%s)", v.Snapshot, size(v.Bytes))
		}
		fmt.Fprintf(w, "%s volume %s  gets %s, as generation %d left it\n", action(st, api.ActionReplace), name, from, v.Generation)
		if v.At == nil {
			continue
		}
		fmt.Fprintf(w, "      %s\n", st.bad(fmt.Sprintf("what was written since %s (%s) is not seen any more", v.At.Local().Format(time.DateTime), seconds(now.Sub(*v.At)))))
		if v.Keeps > 0 {
			fmt.Fprintf(w, "      it is kept as version %d\n", v.Keeps)
		}
	}
}

// confirmName asks for the name of what is about to lose something.
func (a *app) confirmName(name, unattended string) error {
	if !isTerminal(a.Stderr) || a.output == "json" {
		return fault.WithHint(fault.Errorf(fault.Invalid, "there is no terminal to ask on"), "%s", unattended)
	}
	fmt.Fprintf(a.Stderr, "%s ", a.style().bold("Type the environment's name to go on:"))
	line, err := bufio.NewReader(a.Stdin).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	if strings.TrimSpace(line) != name {
		return fault.Errorf(fault.Invalid, "not confirmed: nothing was changed")
	}
	return nil
}

// warnOfUnsettled says which volumes were copied while they changed all the time.
func (a *app) warnOfUnsettled(ctx context.Context, cl *client.Client, env string) error {
	list, err := cl.Volumes(ctx, env)
	if err != nil {
		return err
	}
	for _, v := range list.Volumes {
		for _, k := range v.Versions {
			if k.Changed > 0 {
				fmt.Fprintf(a.Stderr, "%s volume %s/%s was written to while it was copied: %s still changed, so the copy is of no one moment. --volumes snapshot takes one that is.\n",
					a.style().warn("warning:"), v.Component, v.Name, plural(k.Changed, "file"))
			}
		}
	}
	return nil
}
