package witness_test

import (
	"strings"
	"testing"

	formatswitness "github.com/transparency-dev/formats/witness"

	"github.com/invarhq/invar/ledger/witness"
)

// expand puts verifier keys for $A, $B …
func expand(t testing.TB, text string) string {
	for _, name := range []string{"A", "B", "C", "D"} {
		if strings.Contains(text, "$"+name) {
			text = strings.ReplaceAll(text, "$"+name, newKey(t, "witness.example/"+name).Verifier().String())
		}
	}
	return text
}

func TestPolicyOfGroups(t *testing.T) {
	text := expand(t, `# two organisations
witness a $A https://a.example/w
witness b $B https://b.example/w

	witness c	$C https://c.example/w
witness d $D https://d.example/w
group ours 2 a b
group theirs any c d
group both all ours theirs
quorum both
`)
	p, err := witness.ParsePolicy(text)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(p.Witnesses()); n != 4 || p.Witnesses()[2].URL != "https://c.example/w" {
		t.Errorf("%+v", p.Witnesses())
	}
	again, err := witness.ParsePolicy(p.String())
	if err != nil || again.String() != p.String() {
		t.Errorf("%q, %v; want %q", again, err, p)
	}
	if _, err := formatswitness.ParsePolicy([]byte(p.String())); err != nil { // others read what we write
		t.Error(err)
	}
}

func TestPolicyIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"no quorum":                "witness a $A\n",
		"two quorums":              "witness a $A\nquorum a\nquorum a\n",
		"a quorum of nobody":       "quorum a\n",
		"a quorum before its name": "quorum a\nwitness a $A\n",
		"a name twice":             "witness a $A\nwitness a $B\nquorum a\n",
		"a key twice":              "witness a $A\nwitness b $A\ngroup g 2 a b\nquorum g\n",
		"a member twice":           "witness a $A\ngroup g 2 a a\nquorum g\n",
		"a member of two groups":   "witness a $A\nwitness b $B\ngroup g any a b\ngroup h any a\nquorum g\n",
		"a member that comes late": "group g any a\nwitness a $A\nquorum g\n",
		"too many":                 "witness a $A\ngroup g 2 a\nquorum g\n",
		"none of them":             "witness a $A\ngroup g 0 a\nquorum g\n",
		"a number misspelt":        "witness a $A\ngroup g 01 a\nquorum g\n",
		"a group of nobody":        "group g all\nquorum g\n",
		"none as a name":           "witness none $A\nquorum none\n",
		"none as a member":         "group g any none\nquorum g\n",
		"a carriage return":        "witness a $A\r\nquorum a\n",
		"an unknown line":          "witness a $A\nquorom a\n",
		"the key of a log":         "witness a example.com/log+2fda9e41+AZ5hh5zd3Y4pdZc7cW0ZZPSP7DxEH1lGWZTtIbL+tFGG\nquorum a\n",
		"a URL of no web":          "witness a $A file:///etc\nquorum a\n",
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := witness.ParsePolicy(expand(t, text)); err == nil {
				t.Errorf("accepted as\n%s", p)
			}
		})
	}
}

func TestWitnessCountsOnceUnderTwoNames(t *testing.T) {
	k := newKey(t, "w")
	v := k.Verifier()
	if _, err := witness.NewPolicy(2, witness.Witness{Name: "a", Verifier: v}, witness.Witness{Name: "b", Verifier: v}); err == nil {
		t.Error("one key makes a quorum of two")
	}
}

func TestNewPolicyReadsBack(t *testing.T) {
	p := policyOf(t, 2, newKey(t, "quorum").Verifier().String(), newKey(t, "b").Verifier().String())
	again, err := witness.ParsePolicy(p.String())
	if err != nil || again.String() != p.String() {
		t.Errorf("%v: %s", err, p)
	}
	if _, err := witness.NewPolicy(1); err == nil {
		t.Error("one of none")
	}
}
