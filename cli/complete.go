package cli

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/spec/parse"
)

// completeWithin is how long completing a word may take: somebody waits with a finger on the tab key.
const completeWithin = time.Second

// complete says what the commands' arguments can be. A server or an app that can't be read offers nothing.
func (a *app) complete(root *cobra.Command) {
	for use, values := range map[string]func(context.Context) []string{
		"plan": a.appEnvironments, "apply": a.appEnvironments,
		"status": a.environments, "history": a.environments, "show": a.environments, "diff": a.environments,
		"rollback": a.environments, "destroy": a.environments, "verify": a.environments, "drift": a.environments, "reproduce": a.environments, "fork": a.environments, "bisect": a.environments, "promote": a.environments, "logs": a.componentsOf, "sbom": a.componentsOf,
	} {
		c, _, err := root.Find([]string{use})
		if err != nil {
			panic("completion of a command that there is not: " + use)
		}
		most := 1
		if use == "diff" || use == "promote" {
			most = 2
		}
		c.ValidArgsFunction = a.words(most, values)
	}
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)))
	must(root.MarkPersistentFlagDirname("dir"))
}

// must is for mistakes of the program text.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// words completes up to most arguments by values; what comes after is a file.
func (a *app) words(most int, values func(context.Context) []string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= most {
			if c.Name() == "apply" && len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault // a saved plan
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(c.Context(), completeWithin)
		defer cancel()
		found := slices.DeleteFunc(values(ctx), func(s string) bool { return !strings.HasPrefix(s, prefix) })
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// appEnvironments are those that the app's directory defines.
func (a *app) appEnvironments(context.Context) []string {
	m, _ := parse.Load(os.DirFS(a.dir))
	var names []string
	for _, e := range m.Environments() {
		names = append(names, string(e))
	}
	return names
}

// environments are those that the server has.
func (a *app) environments(ctx context.Context) []string {
	cl, err := a.client()
	if err != nil {
		return nil
	}
	defer cl.Close()
	list, err := cl.Environments(ctx)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name)
	}
	return names
}

// componentsOf are ENV/COMPONENT for all that the server runs.
func (a *app) componentsOf(ctx context.Context) []string {
	cl, err := a.client()
	if err != nil {
		return nil
	}
	defer cl.Close()
	var names []string
	for _, env := range a.environments(ctx) {
		e, err := cl.Environment(ctx, env)
		if err != nil {
			continue
		}
		for _, c := range e.Components {
			names = append(names, env+"/"+c.Name)
		}
	}
	return names
}
