package ledger_test

import (
	"context"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/store/storetest"
)

// TestGrowthIsProvable appends commits of random sizes, and checks with x/mod's verifier that every leaf is
// provable at every size, that every size is consistent with every earlier one, and that the roots are those
// of a tree computed by x/mod from the entries alone.
func TestGrowthIsProvable(t *testing.T) {
	k := newKey(t)
	rapid.Check(t, func(rt *rapid.T) {
		disk := storetest.NewDisk()
		s, err := disk.Open()
		if err != nil {
			rt.Fatal(err)
		}
		log, err := ledger.Open(context.Background(), s, k.config())
		if err != nil {
			rt.Fatal(err)
		}
		defer log.Close()
		var tree []tlog.Hash // the stored hashes, by x/mod
		reader := tlog.HashReaderFunc(func(indexes []int64) (out []tlog.Hash, _ error) {
			for _, i := range indexes {
				out = append(out, tree[i])
			}
			return out, nil
		})
		checkpoints := make(map[int64][]byte)
		for _, n := range rapid.SliceOfN(rapid.IntRange(1, 9), 1, 8).Draw(rt, "commits") {
			entries := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 20), n, n).Draw(rt, "entries")
			if _, err := log.Append(context.Background(), func(int64) ([][]byte, error) { return entries, nil }); err != nil {
				rt.Fatal(err)
			}
			for i, e := range entries {
				more, err := tlog.StoredHashes(log.Size()-int64(n-i), e, reader)
				if err != nil {
					rt.Fatal(err)
				}
				tree = append(tree, more...)
			}
			checkpoints[log.Size()] = log.Checkpoint()
		}
		for size, signed := range checkpoints {
			c, err := ledger.ParseCheckpoint(signed, k.verifier)
			if want, _ := tlog.TreeHash(size, reader); err != nil || c.Size != size || c.Root != want {
				rt.Fatalf("checkpoint at %d is %+v, %v; want root %v", size, c, err, want)
			}
		}
		for size := range log.Size() + 1 {
			if err := provable(log, reader, size); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

// provable checks the proofs of every entry, and of every earlier tree, in the tree of this size.
func provable(log *ledger.Log, reader tlog.HashReader, size int64) error {
	ctx := context.Background()
	root, err := tlog.TreeHash(size, reader)
	if err != nil {
		return err
	}
	for i := range size {
		entry, err := log.Entry(ctx, i)
		if err != nil {
			return err
		}
		proof, err := log.ProveInclusion(ctx, i, size)
		if err != nil {
			return err
		}
		if err := tlog.CheckRecord(proof, size, root, i, tlog.RecordHash(entry)); err != nil {
			return fmt.Errorf("entry %d in the tree of %d: %w", i, size, err)
		}
		old, err := tlog.TreeHash(i+1, reader)
		if err != nil {
			return err
		}
		consistency, err := log.ProveConsistency(ctx, i+1, size)
		if err != nil {
			return err
		}
		if err := tlog.CheckTree(consistency, size, root, i+1, old); err != nil {
			return fmt.Errorf("the tree of %d in that of %d: %w", i+1, size, err)
		}
	}
	return nil
}

// TestRestartsChangeNothing closes and opens the ledger at random, with any amount of rechecking.
func TestRestartsChangeNothing(t *testing.T) {
	k := newKey(t)
	rapid.Check(t, func(rt *rapid.T) {
		disk := storetest.NewDisk()
		total := int64(0)
		for range rapid.IntRange(1, 3).Draw(rt, "lives") {
			s, err := disk.Open()
			if err != nil {
				rt.Fatal(err)
			}
			config := k.config()
			config.Recheck = rapid.Int64Range(1, 10000).Draw(rt, "recheck")
			log, err := ledger.Open(context.Background(), s, config)
			if err != nil || log.Size() != total {
				rt.Fatalf("opening at %d: %v", total, err)
			}
			n := rapid.Int64Range(0, 4500).Draw(rt, "entries")
			_, err = log.Append(context.Background(), func(next int64) (out [][]byte, _ error) {
				for i := range n {
					out = append(out, fmt.Append(nil, next+i))
				}
				return out, nil
			})
			if err != nil {
				rt.Fatal(err)
			}
			total += n
			log.Close()
			s.Close()
		}
		s, err := disk.Open()
		if err != nil {
			rt.Fatal(err)
		}
		if report, err := ledger.Verify(context.Background(), s, k.vkey); err != nil || report.Size != total || report.Hashes != tlog.StoredHashCount(total) {
			rt.Fatalf("verified %+v, %v; want %d entries", report, err, total)
		}
	})
}

func TestProofIsCheckedOffline(t *testing.T) {
	k := newKey(t)
	log := openLog(t, mount(t, small(t, k, 21)), k.config())
	for i := range int64(21) {
		entry, err := log.Entry(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		proof, err := log.Prove(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		at, c, err := ledger.CheckProof(proof, entry, k.verifier)
		if at != i || c.Size != 21 || err != nil {
			t.Errorf("proof of entry %d: %d in %d, %v", i, at, c.Size, err)
		}
		if _, _, err := ledger.CheckProof(proof, append(entry, 'x'), k.verifier); err == nil {
			t.Errorf("proof of entry %d proves another entry", i)
		}
		if _, _, err := ledger.CheckProof(proof, entry, newKey(t).verifier); err == nil {
			t.Errorf("proof of entry %d holds for another log", i)
		}
	}
	for _, i := range []int64{-1, 21, 1000} {
		if _, err := log.Prove(t.Context(), i); err == nil {
			t.Errorf("entry %d of 21 was proved", i)
		}
	}
}
