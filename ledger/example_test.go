package ledger_test

import (
	"context"
	"fmt"
	"log"

	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/store/storetest"
)

// An entry is appended, proved, and the proof is checked as an auditor would, with the verifier key alone.
func Example() {
	ctx := context.Background()
	skey, vkey, err := ledger.GenerateKey("invar.example/ledger")
	if err != nil {
		log.Fatal(err)
	}
	signer, verifier, err := ledger.ParseKey(skey)
	if err != nil {
		log.Fatal(err)
	}
	store, err := storetest.NewDisk().Open() // a server uses package store/sqlite
	if err != nil {
		log.Fatal(err)
	}
	l, err := ledger.Open(ctx, store, ledger.Config{Origin: "invar.example/ledger", Signer: signer, Verifier: verifier})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	first, err := l.Append(ctx, func(next int64) ([][]byte, error) {
		return [][]byte{fmt.Appendf(nil, "decided knowing %d entries", next)}, nil
	})
	if err != nil {
		log.Fatal(err)
	}
	entry, err := l.Entry(ctx, first)
	if err != nil {
		log.Fatal(err)
	}
	proof, err := l.Prove(ctx, first)
	if err != nil {
		log.Fatal(err)
	}
	index, checkpoint, err := ledger.CheckProof(proof, entry, verifier)
	fmt.Printf("%s is entry %d of %d: %v\n", entry, index, checkpoint.Size, err)

	report, err := ledger.Verify(ctx, store, vkey)
	fmt.Println("verified", report.Size, "entries and", report.Checkpoints, "checkpoints:", err)
	// Output:
	// decided knowing 0 entries is entry 0 of 1: <nil>
	// verified 1 entries and 2 checkpoints: <nil>
}
