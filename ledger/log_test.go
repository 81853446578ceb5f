package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/store"
	"github.com/invarhq/invar/store/storetest"
)

// fold is what a user of a log does: it keeps a committed state, and a pending one with what decide
// functions have returned since.
type fold struct {
	committed, pending []string
	t                  *testing.T
}

func (f *fold) config(k key) ledger.Config {
	c := k.config()
	c.Committed = func(first int64, entries [][]byte) {
		if first != int64(len(f.committed)) {
			f.t.Errorf("committed from %d, want %d", first, len(f.committed))
		}
		for _, e := range entries {
			f.committed = append(f.committed, string(e))
		}
	}
	c.Abandoned = func() { f.pending = append([]string(nil), f.committed...) }
	return c
}

// decide appends one entry that says what it was decided on.
func (f *fold) decide(what string) func(int64) ([][]byte, error) {
	return func(next int64) ([][]byte, error) {
		if next != int64(len(f.pending)) {
			f.t.Errorf("%s is decided at %d, want %d", what, next, len(f.pending))
		}
		e := fmt.Sprintf("%s after %d", what, len(f.pending))
		f.pending = append(f.pending, e)
		return [][]byte{[]byte(e)}, nil
	}
}

func TestDecisionsSeeAllBeforeThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fold{t: t}
		disk := storetest.NewDisk()
		log := openLog(t, mount(t, disk), f.config(newKey(t)))
		hold := make(chan struct{})
		var all sync.WaitGroup
		all.Go(func() {
			log.Append(t.Context(), func(int64) ([][]byte, error) { <-hold; return nil, nil })
		})
		got := make([]int64, 1000)
		for i := range got {
			all.Go(func() {
				first, err := log.Append(t.Context(), f.decide(fmt.Sprint(i)))
				if err != nil {
					t.Error(err)
				}
				got[i] = first
			})
		}
		synctest.Wait() // all are queued, or wait to be
		close(hold)
		all.Wait()
		log.Close()
		if diff := cmp.Diff(f.committed, f.pending); diff != "" || len(f.committed) != 1000 {
			t.Errorf("%d entries were committed; committed and pending differ:\n%s", len(f.committed), diff)
		}
		for i, first := range got {
			if want := fmt.Sprintf("%d after %d", i, first); f.committed[first] != want {
				t.Errorf("entry %d is %q, want %q", first, f.committed[first], want)
			}
		}
		largest, last := int64(0), int64(0)
		disk.Edit(func(_ *[][]byte, _ *[]tlog.Hash, checkpoints *[]store.Head) {
			for _, c := range *checkpoints {
				largest, last = max(largest, c.Size-last), c.Size
			}
		})
		if largest != 512 {
			t.Errorf("with 1000 calls waiting, the largest commit has %d entries, want 512", largest)
		}
	})
}

// TestEveryStepOfACommitMayBreak breaks each operation of the store in each way, while several calls append,
// then starts again on what is on the disk, and asks Verify.
func TestEveryStepOfACommitMayBreak(t *testing.T) {
	k := newKey(t)
	faults := map[storetest.Fault]string{
		storetest.Fail: "fails", storetest.FailAfter: "fails when done", storetest.Crash: "crashes", storetest.CrashAfter: "crashes when done",
	}
	for _, op := range []storetest.Op{storetest.OpAppend, storetest.OpLoad, storetest.OpEntries, storetest.OpHashes, storetest.OpCheckpoints, storetest.OpSnapshot} {
		for n := 1; n <= 4; n++ {
			for f, name := range faults {
				t.Run(fmt.Sprintf("%s %d %s", op, n, name), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { breakOnce(t, k, storetest.Nth(op, n, f)) })
				})
			}
		}
	}
	for _, f := range []storetest.Fault{storetest.Fail, storetest.FailAfter} {
		t.Run("append "+faults[f]+", then load fails, twice", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { breakOnce(t, k, inDoubt(f, 2)) })
		})
	}
}

// inDoubt breaks the third append, and the loads that would tell what became of it.
func inDoubt(f storetest.Fault, loads int) func(storetest.Op) storetest.Fault {
	appends := 0
	return func(op storetest.Op) storetest.Fault {
		switch {
		case op == storetest.OpAppend:
			if appends++; appends == 3 {
				return f
			}
		case op == storetest.OpLoad && appends == 3 && loads > 0:
			loads--
			return storetest.Fail
		}
		return storetest.None
	}
}

func breakOnce(t *testing.T, k key, faults func(storetest.Op) storetest.Fault) {
	disk := storetest.NewDisk()
	disk.SetFaults(faults)
	acknowledged := make(map[string]int64)
	for life := range 3 {
		s := mount(t, disk)
		f := &fold{t: t}
		if log, err := ledger.Open(t.Context(), s, f.config(k)); err == nil {
			for e, err := range log.Entries(t.Context(), 0, log.Size()) {
				if err != nil {
					t.Logf("replaying: %v", err)
					break
				}
				f.committed = append(f.committed, string(e))
			}
			if int64(len(f.committed)) == log.Size() {
				f.pending = append([]string(nil), f.committed...)
				appendSome(t, log, f, life, acknowledged)
			}
			log.Close()
		} else if fault.KindOf(err) != fault.Unavailable {
			t.Errorf("opening in life %d: %v, want unavailable", life, err)
		}
		s.Close()
	}
	disk.SetFaults(nil)
	report, err := verify(t, disk, k.vkey)
	if err != nil {
		t.Fatalf("the ledger does not verify: %v", err)
	}
	log := openLog(t, mount(t, disk), k.config())
	defer log.Close()
	for what, i := range acknowledged {
		if e, err := log.Entry(t.Context(), i); err != nil || !strings.HasPrefix(string(e), what+" after ") {
			t.Errorf("entry %d is %q, %v; it was acknowledged as %q", i, e, err, what)
		}
	}
	if len(acknowledged) < 12 || report.Size < int64(len(acknowledged)) {
		t.Errorf("%d entries, %d acknowledged; want at least those of two lives", report.Size, len(acknowledged))
	}
}

// appendSome appends three rounds of three concurrent calls, and compares the fold with the log.
func appendSome(t *testing.T, log *ledger.Log, f *fold, life int, acknowledged map[string]int64) {
	var mu sync.Mutex
	for round := range 3 {
		var all sync.WaitGroup
		for i := range 3 {
			all.Go(func() {
				what := fmt.Sprintf("%d/%d/%d", life, round, i)
				first, err := log.Append(t.Context(), f.decide(what))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					acknowledged[what] = first
				} else if fault.KindOf(err) != fault.Unavailable {
					t.Errorf("appending %s: %v, want unavailable", what, err)
				}
			})
		}
		all.Wait()
	}
	if int64(len(f.committed)) != log.Size() {
		t.Errorf("%d entries were reported committed, the log has %d", len(f.committed), log.Size())
	}
}

func TestFailedCommitFailsItsGroupAndNoOther(t *testing.T) {
	disk := storetest.NewDisk()
	f := &fold{t: t}
	log := openLog(t, mount(t, disk), f.config(newKey(t)))
	appendOne := func() error {
		_, err := log.Append(t.Context(), f.decide("x"))
		return err
	}
	if err := appendOne(); err != nil {
		t.Fatal(err)
	}
	before := log.Checkpoint()
	disk.SetFaults(storetest.Nth(storetest.OpAppend, 1, storetest.Fail))
	if err := appendOne(); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("append on a failing disk: %v, want unavailable", err)
	}
	if log.Size() != 1 || string(log.Checkpoint()) != string(before) {
		t.Errorf("after a failed commit the log has %d entries and\n%s", log.Size(), log.Checkpoint())
	}
	if err := appendOne(); err != nil || log.Size() != 2 {
		t.Errorf("the next append: %v, size %d; want 2", err, log.Size())
	}
}

func TestCommitThatFailsWhenDoneCounts(t *testing.T) {
	disk := storetest.NewDisk()
	f := &fold{t: t}
	log := openLog(t, mount(t, disk), f.config(newKey(t)))
	disk.SetFaults(storetest.Nth(storetest.OpAppend, 1, storetest.FailAfter))
	if first, err := log.Append(t.Context(), f.decide("x")); first != 0 || err != nil || len(f.committed) != 1 {
		t.Errorf("append is %d, %v with %d committed; want it to have worked", first, err, len(f.committed))
	}
}

func TestSecondWriterIsNoticed(t *testing.T) {
	disk, k := storetest.NewDisk(), newKey(t)
	log := openLog(t, mount(t, disk), k.config())
	grow(t, log, 3)
	foreign := small(t, k, 4)
	disk.Edit(func(e *[][]byte, h *[]tlog.Hash, c *[]store.Head) {
		foreign.Edit(func(e2 *[][]byte, h2 *[]tlog.Hash, c2 *[]store.Head) { *e, *h, *c = *e2, *h2, *c2 })
	})
	for range 2 {
		if _, err := log.Append(t.Context(), these("x")); fault.KindOf(err) != fault.Conflict {
			t.Errorf("appending under another writer: %v, want a conflict", err)
		}
	}
}

func TestAppendReturnsWhatDecideSays(t *testing.T) {
	log := openLog(t, mount(t, storetest.NewDisk()), newKey(t).config())
	grow(t, log, 2)
	no := errors.New("no")
	if _, err := log.Append(t.Context(), func(int64) ([][]byte, error) { return nil, no }); !errors.Is(err, no) {
		t.Errorf("append is %v, want the error of decide", err)
	}
	if first, err := log.Append(t.Context(), these()); first != 2 || err != nil {
		t.Errorf("append of nothing is %d, %v; want 2", first, err)
	}
	if first, err := log.Append(t.Context(), these("a", "", "c")); first != 2 || err != nil || log.Size() != 5 {
		t.Errorf("append of three is %d, %v, size %d; want 2 and 5", first, err, log.Size())
	}
	if e, err := log.Entry(t.Context(), 3); len(e) != 0 || err != nil {
		t.Errorf("an empty entry is %q, %v", e, err)
	}
}

func TestTooLargeAnEntryIsRefusedAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fold{t: t}
		log := openLog(t, mount(t, storetest.NewDisk()), f.config(newKey(t)))
		defer log.Close()
		var all sync.WaitGroup
		for i := range 30 {
			all.Go(func() {
				decide := f.decide(fmt.Sprint(i))
				large := i%10 == 3
				_, err := log.Append(t.Context(), func(next int64) ([][]byte, error) {
					out, err := decide(next)
					if large {
						out = append(out, make([]byte, ledger.MaxEntryBytes+1))
					}
					return out, err
				})
				if large != (fault.KindOf(err) == fault.Invalid) {
					t.Errorf("call %d: %v", i, err)
				}
			})
		}
		all.Wait()
		if log.Size() != 27 || len(f.committed) != 27 {
			t.Errorf("size %d, %d committed; want 27", log.Size(), len(f.committed))
		}
	})
}

func TestAppendGivesUpOnlyBeforeItsDecision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := openLog(t, mount(t, storetest.NewDisk()), newKey(t).config())
		defer log.Close()
		ctx, cancel := context.WithCancel(t.Context())
		hold, decided := make(chan struct{}), make(chan error, 2)
		go func() {
			_, err := log.Append(ctx, func(int64) ([][]byte, error) { <-hold; return these("a")(0) })
			decided <- err
		}()
		synctest.Wait()
		go func() {
			_, err := log.Append(ctx, func(int64) ([][]byte, error) { t.Error("decided for a caller that gave up"); return nil, nil })
			decided <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-decided; !errors.Is(err, context.Canceled) {
			t.Errorf("the call that waits: %v, want canceled", err)
		}
		close(hold)
		if err := <-decided; err != nil || log.Size() != 1 {
			t.Errorf("the call that was decided: %v, size %d; want it done", err, log.Size())
		}
	})
}

func TestClosedLogAppendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := openLog(t, mount(t, storetest.NewDisk()), newKey(t).config())
		var all sync.WaitGroup
		var done, refused int
		var mu sync.Mutex
		for range 2000 {
			all.Go(func() {
				_, err := log.Append(t.Context(), these("x"))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					done++
				} else if fault.KindOf(err) == fault.Unavailable {
					refused++
				}
			})
		}
		log.Close()
		all.Wait()
		if int64(done) != log.Size() || done+refused != 2000 {
			t.Errorf("%d done, %d refused, size %d", done, refused, log.Size())
		}
		if _, err := log.Append(t.Context(), these("x")); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("append to a closed log: %v, want unavailable", err)
		}
	})
}

func TestOpenRefusesADamagedLedger(t *testing.T) {
	k := newKey(t)
	for _, c := range []struct {
		name, want string
		edit       func(entries *[][]byte, hashes *[]tlog.Hash, checkpoints *[]store.Head)
	}{
		{"an edited entry", "entry 17: ", func(e *[][]byte, _ *[]tlog.Hash, _ *[]store.Head) { (*e)[17][0] ^= 1 }},
		{"a missing entry", "entry 29 is missing", func(e *[][]byte, _ *[]tlog.Hash, _ *[]store.Head) { *e = (*e)[:29] }},
		{"an entry too many", "entry 30 has no checkpoint", func(e *[][]byte, _ *[]tlog.Hash, _ *[]store.Head) { *e = append(*e, []byte("x")) }},
		{"an edited hash", "stored hash over entries 4 to 7", func(_ *[][]byte, h *[]tlog.Hash, _ *[]store.Head) {
			(*h)[tlog.StoredHashIndex(2, 1)][5] ^= 1
		}},
		{"an edited checkpoint", "checkpoint of 30 entries", func(_ *[][]byte, _ *[]tlog.Hash, c *[]store.Head) {
			(*c)[30].Checkpoint = append([]byte(nil), (*c)[30].Checkpoint...)
			(*c)[30].Checkpoint[25] ^= 1
		}},
		{"a ledger cut back below its snapshot", "entries 20 to 24", func(e *[][]byte, h *[]tlog.Hash, c *[]store.Head) {
			*e, *h, *c = (*e)[:20], (*h)[:tlog.StoredHashCount(20)], (*c)[:21]
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := small(t, k, 30)
			s := mount(t, disk)
			if err := s.PutSnapshot(t.Context(), store.Snapshot{Size: 25, State: []byte("state")}); err != nil {
				t.Fatal(err)
			}
			disk.Edit(c.edit)
			_, err := ledger.Open(t.Context(), s, k.config())
			if fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), c.want) {
				t.Errorf("open: %v, want corrupt: %s", err, c.want)
			}
		})
	}
}

func TestOpenRefusesAnotherKey(t *testing.T) {
	k, other := newKey(t), newKey(t)
	s := mount(t, small(t, k, 3))
	if _, err := ledger.Open(t.Context(), s, other.config()); fault.KindOf(err) != fault.Corrupt || fault.Hint(err) == "" {
		t.Errorf("open with another key: %v, want corrupt with a hint", err)
	}
	skey, _, err := ledger.GenerateKey("invar.example/other")
	if err != nil {
		t.Fatal(err)
	}
	signer, verifier, err := ledger.ParseKey(skey)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]ledger.Config{
		"none":             {},
		"no key":           {Origin: origin},
		"a key so named":   {Origin: origin, Signer: signer, Verifier: verifier},
		"two keys":         {Origin: origin, Signer: k.signer, Verifier: other.verifier},
		"no signer":        {Origin: origin, Verifier: k.verifier},
		"another's origin": {Origin: "invar.example/other", Signer: k.signer, Verifier: k.verifier},
	} {
		if _, err := ledger.Open(t.Context(), s, c); fault.KindOf(err) != fault.Invalid {
			t.Errorf("open with %s: %v, want invalid", name, err)
		}
	}
}

func TestKeysHaveOneSpelling(t *testing.T) {
	skey, vkey, err := ledger.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ledger.VerifierKey(skey); got != vkey || err != nil {
		t.Errorf("vkey of the key is %q, %v; want %q", got, err, vkey)
	}
	for _, bad := range []string{"", "x", skey[1:], skey[:len(skey)-1], "PRIVATE+KEY+a+b+c", vkey} {
		if _, _, err := ledger.ParseKey(bad); fault.KindOf(err) != fault.Invalid {
			t.Errorf("ParseKey(%q): %v, want invalid", bad, err)
		}
	}
	for _, bad := range []string{"", "a b", "a+b"} {
		if _, _, err := ledger.GenerateKey(bad); fault.KindOf(err) != fault.Invalid {
			t.Errorf("GenerateKey(%q): %v, want invalid", bad, err)
		}
	}
}

func TestEntryEditedUnderTheServerIsNotShown(t *testing.T) {
	disk := storetest.NewDisk()
	log := openLog(t, mount(t, disk), newKey(t).config())
	grow(t, log, 5)
	disk.Edit(func(entries *[][]byte, _ *[]tlog.Hash, _ *[]store.Head) { (*entries)[3][0] ^= 1 })
	if e, err := log.Entry(t.Context(), 3); fault.KindOf(err) != fault.Corrupt || e != nil {
		t.Errorf("an edited entry is %q, %v; want corrupt", e, err)
	}
	if _, err := log.Entry(t.Context(), 5); fault.KindOf(err) != fault.NotFound {
		t.Errorf("entry 5 of 5: %v, want not found", err)
	}
}
