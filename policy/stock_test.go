package policy_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/policy"
)

// stock builds opa itself, as go.mod has it as a tool, and returns the binary in go's build cache. It never skips: a
// machine that can build invar can build it.
var stock = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "tool", "-n", "opa").Output()
	return strings.TrimSpace(string(out)), err
})

// isolated runs opa with nothing but its two files, and where this user may, without any network.
func isolated(t *testing.T, dir string, command []string) ([]byte, string, error) {
	t.Helper()
	opa, err := stock()
	if err != nil {
		t.Fatalf("building opa: %v", err)
	}
	args := append([]string{opa}, command[1:]...)
	if os.Geteuid() == 0 {
		args = append([]string{"unshare", "--net", "--"}, args...)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stderr = dir, []string{"HOME=" + dir}, &stderr
	out, err := cmd.Output()
	return out, stderr.String(), err
}

// kept writes a decision's bundle and input as an auditor has them.
func kept(t *testing.T, b *policy.Bundle, in policy.Input) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string][]byte{"bundle.tar.gz": b.Archive(), "input.json": encoded(t, in)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestStockOPAIsTheEngine(t *testing.T) {
	out, stderr, err := isolated(t, t.TempDir(), []string{"opa", "version"})
	if err != nil {
		t.Fatal(err, stderr)
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(string(out), "Version: "), "\n")
	if "opa v"+version != policy.Engine {
		t.Errorf("stock opa is %q, decisions say %s", version, policy.Engine)
	}
}

// An auditor with opa, the bundle and the input comes to the same results.
func TestStockOPAComesToTheSameResults(t *testing.T) {
	odd := policy.Files{"main.rego": []byte(`# METADATA
# custom: {controls: [CM-3]}
package odd["hyphen-name"]

import data.lists

deny contains {"msg": msg, "id": "listed", "n": n, "f": 1.5, "chain": count(rego.metadata.chain())} if {
	some n, name in lists.names
	msg := sprintf("%s is <listed> & „quoted\"", [name])
}

violation contains "v" if input.change.author.name == "alice"
warn_time contains input.now if true
warn contains "never" if input.app == "other"
`), "lists/data.json": []byte(`{"names": ["a", "b"], "big": 12345678901234567890}`)}
	bad := sample()
	bad.After.Components[0].Component.User = "0"
	bad.After.Components[1].Replicas = 1
	for _, tc := range []struct {
		name   string
		bundle *policy.Bundle
		input  policy.Input
		counts int
	}{
		{"the starter library allows", bundle(t, libraryFiles(t)), sample(), 0},
		{"the starter library refuses", bundle(t, libraryFiles(t)), bad, 2},
		{"200 components", bundle(t, libraryFiles(t)), sampleOf("prod", 200), 0},
		{"destroying", bundle(t, libraryFiles(t)), inputs()["destroy"], 0},
		{"odd names, controls, text and numbers", bundle(t, odd), sample(), 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := decided(t, tc.bundle, tc.input)
			if len(d.Results) != tc.counts || d.Failure != nil {
				t.Fatalf("got %v, want %d results", lines(d), tc.counts)
			}
			out, stderr, err := isolated(t, kept(t, tc.bundle, tc.input), d.Command("bundle.tar.gz", "input.json"))
			if err != nil {
				t.Fatal(err, stderr)
			}
			canonical, err := digest.Canonical(json.RawMessage(out))
			if err != nil {
				t.Fatalf("%s: %v", out, err)
			}
			if got := digest.Of(canonical); got != d.Output {
				t.Errorf("stock opa's output %s is %s, the decision says %s", canonical, got, d.Output)
			}
			if diff := cmp.Diff(messages(d), said(t, out)); diff != "" {
				t.Errorf("-decision +stock opa:\n%s", diff)
			}
		})
	}
}

// A decision that refuses since a rule ended with an error is one that stock opa ends with an error, too.
func TestStockOPAEndsWithTheSameError(t *testing.T) {
	b := compiled(t, "package p\ndeny contains \"no\" if to_number(input.app) > 1")
	d := decided(t, b, sample())
	out, stderr, err := isolated(t, kept(t, b, sample()), d.Command("bundle.tar.gz", "input.json"))
	if err == nil {
		t.Fatalf("stock opa says %s", out)
	}
	_, message, _ := strings.Cut(d.Failure.Cause, "to_number: ")
	if message == "" || !strings.Contains(string(out)+stderr, message) {
		t.Errorf("stock opa says %s%s, the decision %q", out, stderr, d.Failure.Cause)
	}
}

// messages are a decision's results as the rules said them: rule without id, and message.
func messages(d policy.Decision) map[string][]string {
	out := map[string][]string{}
	for _, r := range d.Results {
		name, _, _ := strings.Cut(r.Rule, "/")
		out[name] = append(out[name], r.Message)
	}
	return out
}

// said reads what the query printed, without knowing how invar does.
func said(t *testing.T, out []byte) map[string][]string {
	t.Helper()
	var all map[string][]any
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	got := map[string][]string{}
	for rule, set := range all {
		for _, one := range set {
			if o, ok := one.(map[string]any); ok {
				one = o["msg"]
			}
			got[rule] = append(got[rule], one.(string))
		}
	}
	return got
}
