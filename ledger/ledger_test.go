package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/store"
	"github.com/invarhq/invar/store/storetest"
)

const origin = "invar.example/ledger"

// key is a ledger key for tests.
type key struct {
	signer   note.Signer
	verifier note.Verifier
	vkey     string
}

func newKey(t testing.TB) key {
	t.Helper()
	skey, vkey, err := ledger.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, verifier, err := ledger.ParseKey(skey)
	if err != nil {
		t.Fatal(err)
	}
	return key{signer, verifier, vkey}
}

func (k key) config() ledger.Config {
	return ledger.Config{Origin: origin, Signer: k.signer, Verifier: k.verifier}
}

// mount opens the store on a disk until the end of the test.
func mount(t testing.TB, disk *storetest.Disk) *storetest.Store {
	t.Helper()
	s, err := disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openLog(t testing.TB, s store.Store, config ledger.Config) *ledger.Log {
	t.Helper()
	log, err := ledger.Open(t.Context(), s, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log
}

func these(entries ...string) func(int64) ([][]byte, error) {
	return func(int64) ([][]byte, error) {
		var out [][]byte
		for _, e := range entries {
			out = append(out, []byte(e))
		}
		return out, nil
	}
}

// grow appends entries, one a commit, until there are size.
func grow(t testing.TB, log *ledger.Log, size int64) {
	t.Helper()
	for log.Size() < size {
		if _, err := log.Append(context.Background(), these(fmt.Sprintf("entry %d", log.Size()))); err != nil {
			t.Fatal(err)
		}
	}
}

// small is a ledger of n entries of one commit each, on a disk that is not open.
func small(t testing.TB, k key, n int64) *storetest.Disk {
	t.Helper()
	disk := storetest.NewDisk()
	s := mount(t, disk)
	log := openLog(t, s, k.config())
	grow(t, log, n)
	log.Close()
	s.Close()
	return disk
}

// verify is the oracle: it verifies what is on the disk.
func verify(t testing.TB, disk *storetest.Disk, vkey string, known ...[]byte) (ledger.Report, error) {
	t.Helper()
	disk = disk.Clone()
	return ledger.Verify(t.Context(), mount(t, disk), vkey, known...)
}

func TestVerifyReportsWhatItChecked(t *testing.T) {
	k := newKey(t)
	disk := storetest.NewDisk()
	s := mount(t, disk)
	log := openLog(t, s, k.config())
	for range 50 { // more than one section
		if _, err := log.Append(t.Context(), these(strings.Split(strings.Repeat("x ", 99), " ")...)); err != nil {
			t.Fatal(err)
		}
	}
	log.Close()
	s.Close()
	report, err := verify(t, disk, k.vkey)
	if err != nil {
		t.Fatal(err)
	}
	root := report.Root
	report.Root = tlog.Hash{}
	want := ledger.Report{Origin: origin, Size: 5000, Hashes: tlog.StoredHashCount(5000), Checkpoints: 51}
	if report != want {
		t.Errorf("report is %+v, want %+v", report, want)
	}
	log = openLog(t, mount(t, disk), k.config())
	if want, err := log.Root(t.Context(), 5000); root != want || err != nil {
		t.Errorf("root is %v, want %v, %v", root, want, err)
	}
}

func TestEmptyLedgerVerifies(t *testing.T) {
	k := newKey(t)
	report, err := verify(t, small(t, k, 0), k.vkey)
	if err != nil || report.Size != 0 || report.Checkpoints != 1 {
		t.Errorf("verified %+v, %v; want no entry and one checkpoint", report, err)
	}
}

func TestAnyFlippedByteIsFound(t *testing.T) {
	k := newKey(t)
	disk := small(t, k, 9)
	flip := func(name string, at *byte, check func(d *ledger.Damage) bool) {
		t.Helper()
		for _, mask := range []byte{0x01} {
			*at ^= mask
			_, err := verify(t, disk, k.vkey)
			d, ok := errors.AsType[*ledger.Damage](err)
			if !ok || !check(d) || !errors.Is(err, fault.Corrupt) {
				t.Errorf("%s: verify says %v", name, err)
			}
			*at ^= mask
		}
	}
	var entries [][]byte
	var hashes []tlog.Hash
	var checkpoints []store.Head
	disk.Edit(func(e *[][]byte, h *[]tlog.Hash, c *[]store.Head) { entries, hashes, checkpoints = *e, *h, *c })
	for i, e := range entries {
		for j := range e {
			flip(fmt.Sprintf("byte %d of entry %d", j, i), &e[j], func(d *ledger.Damage) bool {
				return d.Object == "entry" && d.First == int64(i) && d.Last == int64(i)
			})
		}
	}
	for i := range hashes {
		level, n := tlog.SplitStoredHashIndex(int64(i))
		for j := range tlog.HashSize {
			flip(fmt.Sprintf("byte %d of stored hash %d", j, i), &hashes[i][j], func(d *ledger.Damage) bool {
				return d.Object == "hash" && d.First == n<<level && d.Last == (n+1)<<level-1
			})
		}
	}
	for i, c := range checkpoints {
		for j := range c.Checkpoint {
			flip(fmt.Sprintf("byte %d of checkpoint %d", j, i), &c.Checkpoint[j], func(d *ledger.Damage) bool {
				return d.Object == "checkpoint" && d.First == c.Size
			})
		}
	}
}

// An insider who can write the database, but not sign, makes the whole tree fit a changed entry.
func TestRewrittenTreeIsFoundAtItsCheckpoint(t *testing.T) {
	k := newKey(t)
	disk := small(t, k, 100)
	disk.Edit(func(entries *[][]byte, hashes *[]tlog.Hash, _ *[]store.Head) {
		(*entries)[41] = []byte("forged")
		*hashes = nil
		for i, e := range *entries {
			more, err := tlog.StoredHashes(int64(i), e, tlog.HashReaderFunc(func(indexes []int64) (out []tlog.Hash, _ error) {
				for _, at := range indexes {
					out = append(out, (*hashes)[at])
				}
				return out, nil
			}))
			if err != nil {
				t.Fatal(err)
			}
			*hashes = append(*hashes, more...)
		}
	})
	_, err := verify(t, disk, k.vkey)
	d, ok := errors.AsType[*ledger.Damage](err)
	if !ok || d.First != 41 || d.Last != 41 {
		t.Errorf("verify says %v, want entry 41", err)
	}
}

func TestKnownCheckpointsMustFit(t *testing.T) {
	k := newKey(t)
	long, other := small(t, k, 40), small(t, k, 20)
	signed := func(d *storetest.Disk, i int) (out []byte) {
		d.Edit(func(_ *[][]byte, _ *[]tlog.Hash, checkpoints *[]store.Head) { out = (*checkpoints)[i].Checkpoint })
		return out
	}
	if _, err := verify(t, long, k.vkey, signed(long, 0), signed(long, 7), signed(long, 40), signed(other, 20)); err != nil {
		t.Errorf("with its own checkpoints: %v", err)
	}
	if _, err := verify(t, other, k.vkey, signed(long, 40)); err == nil || !strings.Contains(err.Error(), "entries 20 to 39") {
		t.Errorf("a ledger cut back from 40 to 20 entries: %v; want it to say that entries 20 to 39 are missing", err)
	}
	fork := storetest.NewDisk()
	log := openLog(t, mount(t, fork), k.config())
	if _, err := log.Append(t.Context(), these("another history")); err != nil {
		t.Fatal(err)
	}
	if _, err := verify(t, long, k.vkey, log.Checkpoint()); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("with a checkpoint of a fork: %v", err)
	}
	if _, err := verify(t, long, newKey(t).vkey); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("with another key: %v", err)
	}
}
