package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/image/sbom"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/spec"
)

func (a *app) sbomCommand() *cobra.Command {
	var provenance bool
	c := &cobra.Command{
		Use:   "sbom ENV[@GENERATION]/COMPONENT",
		Short: "Show what is in a component's image, and how it came to be",
		Long: `Sbom shows the bill of materials that the server made of the component's image. It is taken only if the
provenance that names it is signed with the key of the server's ledger. With -o json it is the document itself: CycloneDX, for other tools to read.

With --provenance it shows how the image came to be instead: what the server has checked, and what is the word of
whoever built. With -o json that is the DSSE envelope, for other tools to verify.

Both are attached to the image in the server's registry as OCI referrers.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			found, err := a.attested(c.Context(), args[0])
			if err != nil {
				return err
			}
			if provenance {
				return a.showProvenance(found)
			}
			return a.showSBOM(found)
		},
	}
	c.Flags().BoolVar(&provenance, "provenance", false, "show how the image came to be")
	return c
}

// attested finds what the server has signed about the image of "ENV[@GENERATION]/COMPONENT".
func (a *app) attested(ctx context.Context, arg string) (sbom.Attested, error) {
	where, name, ok := strings.Cut(arg, "/")
	if !ok || name == "" {
		return sbom.Attested{}, fault.WithHint(fault.Errorf(fault.Invalid, "%q names no component", arg), "write ENV/COMPONENT or ENV@GENERATION/COMPONENT")
	}
	ref, err := api.ParseRef(where)
	if err != nil {
		return sbom.Attested{}, err
	}
	cl, err := a.client()
	if err != nil {
		return sbom.Attested{}, err
	}
	server, err := cl.Server(ctx)
	if err != nil {
		return sbom.Attested{}, err
	}
	_, key, err := ledger.PublicKey(server.Ledger.VKey)
	if err != nil {
		return sbom.Attested{}, err
	}
	r, err := cl.Release(ctx, ref)
	if err != nil {
		return sbom.Attested{}, err
	}
	img, err := imageOf(r, name)
	if err != nil {
		return sbom.Attested{}, err
	}
	return sbom.FindIn(ctx, a.registry(cl, spec.AppName(r.App)), img, "", key)
}

// imageOf returns the image of a release's component.
func imageOf(r api.Release, name string) (digest.Digest, error) {
	var names []string
	for _, c := range r.Components {
		if c.Name == name {
			return c.Image, nil
		}
		names = append(names, c.Name)
	}
	return "", fault.WithHint(fault.Errorf(fault.NotFound, "release %s has no component %q", r.Digest.Short(), name), "it has %s", strings.Join(names, ", "))
}

func (a *app) showSBOM(found sbom.Attested) error {
	if a.output == "json" {
		_, err := a.Stdout.Write(found.SBOM)
		return err
	}
	all, err := sbom.Components(found.SBOM)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, c := range all {
		rows = append(rows, []string{c.Type, c.Name, orDash(c.Version), orDash(strings.Join(c.Licenses, ", "))})
	}
	if err := table(a.Stdout, "TYPE NAME VERSION LICENSES", rows); err != nil {
		return err
	}
	for _, m := range found.Summary.NotLookedAt {
		fmt.Fprintf(a.Stderr, "not looked at: %s\n", m)
	}
	return nil
}

func (a *app) showProvenance(found sbom.Attested) error {
	if a.output == "json" {
		_, err := fmt.Fprintf(a.Stdout, "%s\n", found.Envelope)
		return err
	}
	p := found.Provenance
	var rows [][]string
	add := func(what, value string) { rows = append(rows, []string{what, value}) }
	for _, s := range p.Subject {
		add("subject", s.Name+" sha256:"+s.Digest["sha256"])
	}
	add("build type", p.Predicate.BuildDefinition.BuildType)
	add("dependencies", fmt.Sprint(len(p.Predicate.BuildDefinition.ResolvedDependencies)))
	add("sbom", found.SBOMDigest.String())
	if e := p.Predicate.RunDetails.Endorsement; e != nil {
		add("signed by", e.By)
		for _, s := range e.Checked {
			add("checked", s)
		}
		for _, s := range e.Claimed {
			add("claimed", s)
		}
	}
	return table(a.Stdout, "", rows)
}
