package cli

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write generated files again")

// upToDate compares a generated file with what it should be, or writes it.
func upToDate(t *testing.T, file string, want []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), string(want)); diff != "" {
		t.Errorf("%s is stale; run: make generate\n%s", file, diff)
	}
}

// The demo deploys what a reader finds in examples/shop.
func TestDemoAppUpToDate(t *testing.T) {
	shop := os.DirFS("../examples/shop")
	a := &txtar.Archive{Comment: []byte("The demo's app: examples/shop. Written by make generate.\n")}
	err := fs.WalkDir(shop, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(shop, path)
		a.Files = append(a.Files, txtar.File{Name: path, Data: data})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	upToDate(t, "demo.txtar", txtar.Format(a))
}

// The reference is the help text, command by command.
func TestReferenceUpToDate(t *testing.T) {
	a := &app{Env: Env{Getenv: func(string) string { return "" }, Stdout: new(bytes.Buffer), Stderr: new(bytes.Buffer)}}
	var b strings.Builder
	b.WriteString("# Command line\n\nWritten from the help texts by `make generate`.\n\n")
	reference(&b, a.root())
	upToDate(t, "../docs/cli.md", []byte(b.String()))
}

func reference(b *strings.Builder, c *cobra.Command) {
	c.InitDefaultHelpFlag()
	c.InitDefaultVersionFlag()
	fmt.Fprintf(b, "## %s\n\n%s\n\n", c.CommandPath(), strings.TrimSpace(firstOf(c.Long, c.Short)))
	if c.Runnable() {
		fmt.Fprintf(b, "```\n%s\n```\n\n", c.UseLine())
	}
	if flags := c.NonInheritedFlags().FlagUsages(); flags != "" {
		fmt.Fprintf(b, "```\n%s```\n\n", flags)
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" && sub.Name() != "completion" {
			reference(b, sub)
		}
	}
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
