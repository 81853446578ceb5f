package parse_test

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec/parse"
)

var update = flag.Bool("update", false, "rewrite goldens")

var marker = regexp.MustCompile(`[#{]# ?(ERROR|WARNING): ([^}]*)|# (ERROR|WARNING): (.*)`)

// TestDiagnosticsStandOnTheirLines reads what is expected from the lines of the input: "# ERROR: Summary". It also
// compares how all of it is rendered with a golden, FILE.want.
func TestDiagnosticsStandOnTheirLines(t *testing.T) {
	files, err := filepath.Glob("testdata/errors/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no inputs", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			m, _ := parse.Load(archiveFS(t, a))
			diags := m.Validate()
			var got []string
			for _, d := range diags {
				got = append(got, fmt.Sprintf("%s:%d: %s: %s", d.Range.File, d.Range.Line, strings.ToUpper(string(d.Severity)), d.Summary))
			}
			want := expected(a)
			slices.Sort(got)
			slices.Sort(want)
			got = slices.Compact(got) // a validation fails once an environment
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("diagnostics (-want +got):\n%s\n%s", diff, diags)
			}
			golden(t, strings.TrimSuffix(file, ".txtar")+".want", diags.String())
			for _, d := range diags {
				if d.Detail == "" || (d.Range.Line > 0 && d.Excerpt == "") {
					t.Errorf("%s: without a cause or an excerpt", d)
				}
			}
			if err := diags.Err(); diags.HasErrors() != errors.Is(err, fault.Invalid) {
				t.Errorf("Err is %v", err)
			}
		})
	}
}

func expected(a *txtar.Archive) []string {
	var out []string
	for _, f := range a.Files {
		for i, line := range strings.Split(string(f.Data), "\n") {
			if m := marker.FindStringSubmatch(line); m != nil {
				out = append(out, fmt.Sprintf("%s:%d: %s: %s", f.Name, i+1, m[1]+m[3], m[2]+m[4]))
			}
		}
	}
	return out
}

func archiveFS(t testing.TB, a *txtar.Archive) fs.FS {
	t.Helper()
	fsys, err := txtar.FS(a)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}
