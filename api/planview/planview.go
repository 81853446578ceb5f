// Package planview shows a plan as the wire does. Server and client both use it: an approver's client shows the plan that it has
// checked the digest of, and not what a server says that it is.
package planview

import (
	"strings"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/release"
)

// Of returns the plan with that digest as the wire has it.
func Of(p change.Plan, d digest.Digest) api.Plan {
	out := api.Plan{
		Digest: d, Env: string(p.Env), App: string(p.App), Bundle: p.Bundle, Release: p.Release,
		BaseGeneration: p.Base.Generation, BaseRelease: p.Base.Release,
		Changes: Changes(p), Unchanged: p.Unchanged, Steps: p.Steps,
	}
	for _, v := range p.Volumes {
		shown := api.PlanVolume{Component: string(v.Component), Volume: string(v.Volume), Stays: v.Stays, Version: v.Version, Snapshot: v.Snapshot,
			Generation: v.Generation, Bytes: v.Bytes, Keeps: v.Keeps}
		if !v.At.IsZero() {
			shown.At = &v.At
		}
		out.Volumes = append(out.Volumes, shown)
	}
	out.Adds, out.Replaces, out.Removes = p.Count()
	return out
}

// Read returns the plan that canonical JSON holds, named by the digest of these very bytes. Its errors are of kind fault.Invalid.
func Read(raw []byte) (api.Plan, error) {
	p, err := change.Decode(append(append([]byte{}, raw...), '\n'))
	if err != nil {
		return api.Plan{}, err
	}
	return Of(p, digest.Of(raw)), nil
}

// Changes lists what a plan changes: components, then routes, then the way of rolling out; of the platform its blocks.
func Changes(p change.Plan) []api.Change {
	out := []api.Change{}
	for _, i := range p.Items {
		out = append(out, api.Change{
			Action: string(i.Action), Kind: "component", Name: string(i.Component), Before: i.Before, After: i.After,
			Starts: i.Starts, Stops: i.Stops, How: string(i.How), Volume: string(i.Volume), Causes: differences(string(i.Component), i.Causes),
		})
	}
	for _, r := range p.Routes {
		causes := differences("", r.Causes)
		if len(causes) == 0 {
			causes = append(causes, api.Difference{Path: "to", Before: r.Before, After: r.After, Added: r.Before == "", Removed: r.After == ""})
		}
		out = append(out, api.Change{Action: string(r.Action), Kind: "route", Name: string(r.Route), Causes: causes})
	}
	if len(p.Rollout) > 0 {
		out = append(out, api.Change{Action: api.ActionReplace, Kind: "rollout", Name: "settings", Causes: differences("", p.Rollout)})
	}
	for _, i := range p.Platform {
		out = append(out, api.Change{Action: string(i.Action), Kind: i.Kind, Name: i.Name, Causes: differences("", i.Causes)})
	}
	return out
}

func differences(component string, causes []release.Cause) []api.Difference {
	out := make([]api.Difference, 0, len(causes)) // what is empty stays a list on the wire
	for _, c := range causes {
		d := api.Difference{Component: component, Path: c.Field, Added: c.Old == nil && c.New != nil, Removed: c.Old != nil && c.New == nil}
		if c.Old != nil {
			d.Before = *c.Old
		}
		if c.New != nil {
			d.After = *c.New
		}
		if c.Diff != "" {
			d.Lines = hunks(c.Diff)
		}
		out = append(out, d)
	}
	return out
}

// hunks returns the lines of a unified diff, without its headers.
func hunks(diff string) []string {
	_, rest, _ := strings.Cut(diff, "\n@@")
	var lines []string
	for i, line := range strings.Split(strings.TrimSuffix(rest, "\n"), "\n") {
		if i > 0 && !strings.HasPrefix(line, "@@") { // the first is the rest of a hunk's header
			lines = append(lines, line)
		}
	}
	return lines
}
