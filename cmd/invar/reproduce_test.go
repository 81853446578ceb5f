package main

import (
	"encoding/json"

	"github.com/rogpeppe/go-internal/testscript"
)

// imagedigest IMAGE sets IMAGE to the digest of an image's manifest, as "invar build -o json" in app says.
func cmdImageDigest(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(ts.Exec("invar", "-C", "app", "build", "-o", "json"))
	var baked map[string]struct {
		Manifest string `json:"manifest"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &baked))
	d := baked[args[0]].Manifest
	if d == "" {
		ts.Fatalf("no image %q in %v", args[0], baked)
	}
	ts.Setenv("IMAGE", d)
}
