package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/spec"
)

func (a *app) tokenCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "token",
		Short: "Manage the tokens that let programs use the API over TCP",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	revoke := &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke a token",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			return cl.DeleteToken(c.Context(), args[0])
		},
	}
	c.AddCommand(a.tokenCreateCommand(), a.tokenListCommand(), revoke)
	return c
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var req api.TokenRequest
	var expires string
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a token; its secret is shown once",
		Long: `Create makes a token with which a program acts for you, and shows its secret this once: the server keeps only a hash. It
is good for what you may do, and for less when you say so; it ends when you say so, or when it is revoked.`,
		Example: `  invar token create ci --permission plan --permission apply --env staging --expires 90d`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			req.Name = args[0]
			if expires != "" {
				d, err := spec.ParsePeriod(expires)
				if err != nil {
					return err
				}
				req.LifetimeMS = d.Milliseconds()
			}
			return a.createToken(c, req)
		},
	}
	c.Flags().StringSliceVar(&req.Permissions, "permission", nil, "`PERMISSION` that it is good for; may be repeated; all of yours when unset")
	c.Flags().StringSliceVar(&req.Environments, "env", nil, "`PATTERN` of the environments that it is good for; may be repeated; all of yours when unset")
	c.Flags().StringVar(&expires, "expires", "", "`PERIOD` after which it ends, such as 12h or 90d; it does not when unset")
	return c
}

func (a *app) createToken(c *cobra.Command, req api.TokenRequest) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	t, err := cl.CreateToken(c.Context(), req)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.json(t)
	}
	fmt.Fprintf(a.Stderr, "token %s for %s; set it as INVAR_TOKEN, it is not shown again:\n", t.ID, t.Name)
	_, err = fmt.Fprintln(a.Stdout, t.Secret)
	return err
}

func (a *app) tokenListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the tokens that are valid",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			tokens, err := cl.Tokens(c.Context())
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(tokens)
			}
			var rows [][]string
			for _, t := range tokens {
				until := "-"
				if t.ExpiresAt != nil {
					until = t.ExpiresAt.Local().Format(time.DateTime)
				}
				rows = append(rows, []string{t.ID, t.Name, orDash(t.Principal), t.By, age(t.CreatedAt), until})
			}
			return table(a.Stdout, "ID NAME PRINCIPAL BY AGE UNTIL", rows)
		},
	}
}
