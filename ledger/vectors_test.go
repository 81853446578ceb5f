package ledger_test

import (
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/store/storetest"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors")

// TestVectors pins, for other implementations, the bytes of a log of five entries, signed with the key of
// the seed 00 01 02 … 1f. They never change.
func TestVectors(t *testing.T) {
	signer, verifier := fixed(t)
	log := openLog(t, mount(t, storetest.NewDisk()), ledger.Config{Origin: origin, Signer: signer, Verifier: verifier})
	if _, err := log.Append(t.Context(), these("alpha", "", "gamma", `{"kind":"delta"}`, "\x00\xff")); err != nil {
		t.Fatal(err)
	}
	vkey, err := ledger.VerifierKey(fixedKey)
	if err != nil {
		t.Fatal(err)
	}
	got := &txtar.Archive{Comment: []byte("A log of five entries. Tiles and bundles are in hexadecimal.\n\n")}
	add := func(name string, data []byte) { got.Files = append(got.Files, txtar.File{Name: name, Data: data}) }
	add("key", []byte(fixedKey+"\n"))
	add("vkey", []byte(vkey+"\n"))
	for path := range ledger.TilePaths(log.Size()) {
		data, err := log.Tile(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if path != "checkpoint" {
			data = append(hex.AppendEncode(nil, data), '\n')
		}
		add(path, data)
	}
	proof, err := log.Prove(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	add("proof of entry 3", proof)

	file := filepath.Join("testdata", "vectors", "five.txtar")
	if *update {
		if err := os.WriteFile(file, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(txtar.Format(got)), string(want)); diff != "" {
		t.Errorf("vectors (-got +want):\n%s", diff)
	}
}
