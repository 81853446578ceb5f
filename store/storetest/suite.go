package storetest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/store"
)

// Run runs the behaviour suite. Fresh makes a new, empty ledger and returns how to open it, again and
// again: what one open store wrote, the next one finds.
func Run(t *testing.T, fresh func(t *testing.T) func() (store.Store, error)) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, open func() (store.Store, error))
	}{
		{"ANewStoreIsEmpty", newIsEmpty},
		{"ReadsBackWhatWasAppended", readsBack},
		{"ReopeningFindsAll", reopening},
		{"OnlyTheFirstCommitMayBeEmpty", emptyCommits},
		{"AStaleSizeIsAConflictAndChangesNothing", staleSize},
		{"BeyondTheEndIsNotFound", beyondTheEnd},
		{"OneWriterAtATime", oneWriter},
		{"ReadersSeeWholeCommits", wholeCommits},
		{"ReadsMayBeNestedAndLeftEarly", nestedReads},
		{"KeepsNoSliceOfTheCaller", ownsItsBytes},
		{"ASnapshotIsReplaced", snapshots},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, fresh(t)) })
	}
}

func must(t *testing.T, open func() (store.Store, error)) store.Store {
	t.Helper()
	s, err := open()
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// batch makes a commit of these entries at size. To a store, hashes and checkpoints are bytes like any.
func batch(size int64, entries ...[]byte) store.Batch {
	end := size + int64(len(entries))
	b := store.Batch{Entries: entries, Checkpoint: checkpoint(end)}
	for i := tlog.StoredHashCount(size); i < tlog.StoredHashCount(end); i++ {
		b.Hashes = append(b.Hashes, hash(i))
	}
	return b
}

func checkpoint(size int64) []byte { return fmt.Appendf(nil, "checkpoint %d", size) }

func hash(i int64) tlog.Hash { return tlog.RecordHash(fmt.Append(nil, i)) }

func entry(i int64) []byte { return fmt.Appendf(nil, "entry %d", i) }

// fill appends numbered entries until there are size of them, in commits of step.
func fill(t *testing.T, s store.Store, size, step int64) {
	t.Helper()
	for at := int64(0); at < size; at += step {
		var entries [][]byte
		for i := at; i < min(at+step, size); i++ {
			entries = append(entries, entry(i))
		}
		if err := s.Append(t.Context(), at, batch(at, entries...)); err != nil {
			t.Fatalf("appending %d entries at %d: %v", len(entries), at, err)
		}
	}
}

// expect compares all that a store has with what fill wrote.
func expect(t *testing.T, s store.Store, size, step int64) {
	t.Helper()
	expectHead(t, s, store.Head{Size: size, Checkpoint: checkpoint(size)})
	var want [][]byte
	for i := range size {
		want = append(want, entry(i))
	}
	if diff := cmp.Diff(collect(t, s, 0, size), want); diff != "" {
		t.Errorf("entries (-got +want):\n%s", diff)
	}
	expectHashes(t, s, upTo(tlog.StoredHashCount(size)))
	var heads []store.Head
	for at := step; at < size+step; at += step {
		heads = append(heads, store.Head{Size: min(at, size), Checkpoint: checkpoint(min(at, size))})
	}
	if diff := cmp.Diff(collectHeads(t, s, 0, size), heads); diff != "" {
		t.Errorf("checkpoints (-got +want):\n%s", diff)
	}
}

func expectHead(t *testing.T, s store.Store, want store.Head) {
	t.Helper()
	got, err := s.Load(t.Context())
	if err != nil {
		t.Fatalf("loading: %v", err)
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("head (-got +want):\n%s", diff)
	}
}

func expectHashes(t *testing.T, s store.Store, indexes []int64) {
	t.Helper()
	got, err := s.Hashes(t.Context(), indexes)
	if err != nil {
		t.Fatalf("reading hashes %v: %v", indexes, err)
	}
	var want []tlog.Hash
	for _, i := range indexes {
		want = append(want, hash(i))
	}
	if !slices.Equal(got, want) {
		t.Errorf("hashes %v are not those that were stored", indexes)
	}
}

func upTo(n int64) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = int64(i)
	}
	return out
}

func collect(t *testing.T, s store.Store, from, to int64) [][]byte {
	t.Helper()
	var out [][]byte
	for e, err := range s.Entries(t.Context(), from, to) {
		if err != nil {
			t.Fatalf("reading entries %d to %d: %v", from, to, err)
		}
		out = append(out, append([]byte{}, e...))
	}
	return out
}

func collectHeads(t *testing.T, s store.Store, from, to int64) []store.Head {
	t.Helper()
	var out []store.Head
	for h, err := range s.Checkpoints(t.Context(), from, to) {
		if err != nil {
			t.Fatalf("reading checkpoints %d to %d: %v", from, to, err)
		}
		out = append(out, h)
	}
	return out
}

func newIsEmpty(t *testing.T, open func() (store.Store, error)) {
	s := must(t, open)
	expectHead(t, s, store.Head{})
	snapshot, err := s.Snapshot(t.Context())
	if err != nil || snapshot.Size != 0 || snapshot.State != nil {
		t.Errorf("snapshot is %v, %v; want none", snapshot, err)
	}
	if heads := collectHeads(t, s, 0, 10); heads != nil {
		t.Errorf("checkpoints are %v, want none", heads)
	}
	expectHashes(t, s, nil)
}

func readsBack(t *testing.T, open func() (store.Store, error)) {
	s := must(t, open)
	fill(t, s, 100, 7)
	expect(t, s, 100, 7)
	expectHashes(t, s, []int64{0})
	expectHashes(t, s, []int64{196, 3, 3, 150, 151, 10}) // any order, repeated
	expectHashes(t, s, []int64{1, 60, 120, 190})
	if got, want := collect(t, s, 98, 100), [][]byte{entry(98), entry(99)}; !cmp.Equal(got, want) {
		t.Errorf("the last two entries are %q, want %q", got, want)
	}
	if got := collect(t, s, 50, 50); got != nil {
		t.Errorf("entries 50 to 50 are %q, want none", got)
	}
	if got := collectHeads(t, s, 8, 21); len(got) != 2 || got[0].Size != 14 || got[1].Size != 21 {
		t.Errorf("checkpoints of 8 to 21 are %v, want 14 and 21", got)
	}
	sizes := [][]byte{{}, bytes.Repeat([]byte{0}, store.MaxEntryBytes), {0xff, 0x00, '\''}}
	if err := s.Append(t.Context(), 100, batch(100, sizes...)); err != nil {
		t.Fatalf("appending an empty and a large entry: %v", err)
	}
	if diff := cmp.Diff(collect(t, s, 100, 103), sizes); diff != "" {
		t.Errorf("an empty, a large and a binary entry (-got +want):\n%s", diff)
	}
}

func reopening(t *testing.T, open func() (store.Store, error)) {
	s := must(t, open)
	fill(t, s, 200, 77)
	if err := s.PutSnapshot(t.Context(), store.Snapshot{Size: 10, State: []byte("state")}); err != nil {
		t.Fatalf("storing a snapshot: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("closing: %v", err)
	}
	s = must(t, open)
	expect(t, s, 200, 77)
	snapshot, err := s.Snapshot(t.Context())
	if err != nil || snapshot.Size != 10 || string(snapshot.State) != "state" {
		t.Errorf("snapshot is %v, %v; want the one at 10", snapshot, err)
	}
}

func emptyCommits(t *testing.T, open func() (store.Store, error)) {
	s := must(t, open)
	if err := s.Append(t.Context(), 0, batch(0)); err != nil {
		t.Fatalf("committing the empty tree: %v", err)
	}
	expectHead(t, s, store.Head{Size: 0, Checkpoint: checkpoint(0)})
	if err := s.Append(t.Context(), 0, batch(0)); fault.KindOf(err) != fault.Invalid {
		t.Errorf("committing the empty tree twice: %v, want invalid", err)
	}
	if err := s.Append(t.Context(), 0, batch(0, entry(0))); err != nil {
		t.Fatalf("appending to the empty tree: %v", err)
	}
	if err := s.Append(t.Context(), 1, batch(1)); fault.KindOf(err) != fault.Invalid {
		t.Errorf("an empty commit at 1: %v, want invalid", err)
	}
	if got := collectHeads(t, s, 0, 1); len(got) != 2 {
		t.Errorf("checkpoints are %v, want those of 0 and 1", got)
	}
}

func staleSize(t *testing.T, open func() (store.Store, error)) {
	s := must(t, open)
	fill(t, s, 4, 2)
	for _, size := range []int64{0, 2, 3, 5, 100} {
		err := s.Append(t.Context(), size, batch(size, []byte("intruder")))
		if fault.KindOf(err) != fault.Conflict {
			t.Errorf("appending at %d to a store of 4: %v, want a conflict", size, err)
		}
	}
	expect(t, s, 4, 2)
}

func beyondTheEnd(t *testing.T, open func() (store.Store, error)) {
	s := must(t, open)
	fill(t, s, 4, 2)
	var got int
	var last error
	for _, err := range s.Entries(t.Context(), 2, 6) {
		if last = err; err == nil {
			got++
		}
	}
	if got != 2 || fault.KindOf(last) != fault.NotFound {
		t.Errorf("entries 2 to 6 of 4: %d entries, then %v; want 2, then not found", got, last)
	}
	for _, indexes := range [][]int64{{7}, {0, 1, 7}, {100000}} {
		if _, err := s.Hashes(t.Context(), indexes); fault.KindOf(err) != fault.NotFound {
			t.Errorf("hashes %v of 7: %v, want not found", indexes, err)
		}
	}
}

func oneWriter(t *testing.T, open func() (store.Store, error)) {
	s := must(t, open)
	if second, err := open(); fault.KindOf(err) != fault.Conflict {
		t.Errorf("opening a second time: %v, %v; want a conflict", second, err)
	}
	fill(t, s, 2, 1)
	if err := s.Close(); err != nil {
		t.Fatalf("closing: %v", err)
	}
	expect(t, must(t, open), 2, 1)
}

// wholeCommits reads while another goroutine appends commits of three entries.
func wholeCommits(t *testing.T, open func() (store.Store, error)) {
	s := must(t, open)
	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				head, err := s.Load(t.Context())
				if err != nil || head.Size%3 != 0 {
					t.Errorf("loading during an append: size %d, %v; want a multiple of 3", head.Size, err)
					return
				}
				if got := len(collect(t, s, 0, head.Size)); int64(got) != head.Size {
					t.Errorf("%d entries, want %d", got, head.Size)
				}
				expectHashes(t, s, upTo(tlog.StoredHashCount(head.Size)))
			}
		})
	}
	fill(t, s, 60, 3)
	stop()
	readers.Wait()
}

func nestedReads(t *testing.T, open func() (store.Store, error)) {
	s := must(t, open)
	fill(t, s, 30, 4)
	for outer, err := range s.Entries(t.Context(), 0, 30) {
		if err != nil {
			t.Fatal(err)
		}
		want := string(outer)
		for inner, err := range s.Entries(t.Context(), 0, 30) {
			if err != nil || string(inner) != string(entry(0)) {
				t.Fatalf("the first entry of a nested read is %q, %v", inner, err)
			}
			break
		}
		for range s.Checkpoints(t.Context(), 0, 30) {
			break
		}
		if string(outer) != want {
			t.Errorf("a nested read changed %q to %q", want, outer)
		}
	}
	next := batch(30, entry(30))
	for range s.Entries(t.Context(), 0, 30) { // an append does not wait for a reader
		if err := s.Append(t.Context(), 30, next); err != nil {
			t.Errorf("appending during a read: %v", err)
		}
		break
	}
	expectHead(t, s, store.Head{Size: 31, Checkpoint: checkpoint(31)})
}

func ownsItsBytes(t *testing.T, open func() (store.Store, error)) {
	s := must(t, open)
	b := batch(0, []byte("entry 0"), []byte("entry 1"))
	if err := s.Append(t.Context(), 0, b); err != nil {
		t.Fatal(err)
	}
	b.Entries[0][0], b.Checkpoint[0], b.Hashes[0][0] = 'X', 'X', ^b.Hashes[0][0]
	expect(t, s, 2, 2)
}

func snapshots(t *testing.T, open func() (store.Store, error)) {
	s := must(t, open)
	fill(t, s, 3, 1)
	for _, want := range []store.Snapshot{{Size: 1, State: []byte("a")}, {Size: 3, State: bytes.Repeat([]byte("b"), 1<<20)}, {Size: 2, State: []byte{}}} {
		if err := s.PutSnapshot(t.Context(), want); err != nil {
			t.Fatalf("storing a snapshot: %v", err)
		}
		got, err := s.Snapshot(t.Context())
		if err != nil || got.Size != want.Size || !bytes.Equal(got.State, want.State) {
			t.Errorf("snapshot is %d, %d bytes, %v; want %d, %d bytes", got.Size, len(got.State), err, want.Size, len(want.State))
		}
	}
	expect(t, s, 3, 1)
}
