package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/store"
	"github.com/invarhq/invar/store/sqlite"
	"github.com/invarhq/invar/store/storetest"
)

func TestSQLiteIsAStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) func() (store.Store, error) {
		dir := t.TempDir()
		return func() (store.Store, error) {
			s, err := sqlite.Open(t.Context(), dir)
			if fault.KindOf(err) == fault.NotFound {
				s, err = sqlite.Create(t.Context(), dir)
			}
			if err != nil {
				return nil, err
			}
			return s, nil
		}
	})
}

// small makes a ledger of n entries of one commit each, and closes it.
func small(t testing.TB, dir string, k key, n int) {
	t.Helper()
	s := create(t, dir)
	log := openLog(t, s, k)
	for i := range n {
		if _, err := log.Append(t.Context(), one(fmt.Sprintf("entry %d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(log.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
}

// raw opens the file as any SQLite tool would, and removes what keeps such a tool from editing.
func raw(t testing.TB, dir string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(1)
	for _, table := range []string{"entries", "hashes", "checkpoints"} {
		edit(t, db, fmt.Sprintf("DROP TRIGGER %s_stay; DROP TRIGGER %s_remain", table, table))
	}
	return db
}

func edit(t testing.TB, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(context.Background(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func TestAnyFlippedByteOfARowIsFound(t *testing.T) {
	dir, k := t.TempDir(), newKey(t)
	small(t, dir, k, 7)
	db := raw(t, dir)
	r, err := sqlite.OpenReadOnly(t.Context(), dir) // sees each edit, as the file stays open in WAL mode
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, c := range []struct{ table, key, column, object string }{
		{"entries", "idx", "data", "entry"}, {"hashes", "first", "data", "hash"}, {"checkpoints", "size", "note", "checkpoint"},
	} {
		for id, data := range rowsOf(t, db, c.table, c.key, c.column) {
			update := fmt.Sprintf("UPDATE %s SET %s = ? WHERE %s = ?", c.table, c.column, c.key)
			for i := range data {
				data[i] ^= 0x01
				edit(t, db, update, data, id)
				_, err := ledger.Verify(t.Context(), r, k.vkey)
				d, ok := errors.AsType[*ledger.Damage](err)
				if !ok || d.Object != c.object || c.object != "hash" && d.First != id {
					t.Errorf("byte %d of %s %d was flipped: %v", i, c.object, id, err)
				}
				data[i] ^= 0x01
			}
			edit(t, db, update, data, id)
		}
	}
	if _, err := ledger.Verify(t.Context(), r, k.vkey); err != nil {
		t.Errorf("with all flipped back: %v", err)
	}
}

func rowsOf(t *testing.T, db *sql.DB, table, key, column string) map[int64][]byte {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), fmt.Sprintf("SELECT %s, %s FROM %s", key, column, table))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	out := make(map[int64][]byte)
	for rows.Next() {
		var id int64
		var data []byte
		if err := rows.Scan(&id, &data); err != nil {
			t.Fatal(err)
		}
		out[id] = data
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEditedLedgerIsRefusedAndNamed(t *testing.T) {
	k := newKey(t)
	for _, c := range []struct{ name, edit, want string }{
		{"an edited entry", "UPDATE entries SET data = x'00' WHERE idx = 11", "entry 11: "},
		{"an entry removed", "DELETE FROM entries WHERE idx = 11", "entry 11 is missing"},
		{"the last entry removed", "DELETE FROM entries WHERE idx = 29", "entry 29 is missing"},
		{"an entry added", "INSERT INTO entries VALUES (30, x'00')", "entry 30 has no checkpoint"},
		{"entries swapped", "UPDATE entries SET idx = 100 WHERE idx = 4; UPDATE entries SET idx = 4 WHERE idx = 5; UPDATE entries SET idx = 5 WHERE idx = 100", "entry 4: "},
		{"hashes removed", "DELETE FROM hashes WHERE first = 10", "stored hash 10 is missing"},
		{"the last hashes removed", "DELETE FROM hashes WHERE first = (SELECT max(first) FROM hashes)", "stored hashes, want"},
		{"hashes cut", "UPDATE hashes SET data = substr(data, 1, 31) WHERE first = 10", "not whole hashes"},
		{"the newest checkpoint removed", "DELETE FROM checkpoints WHERE size = 30", "entry 29 has no checkpoint"},
		{"all checkpoints removed", "DELETE FROM checkpoints", "entry 0 has no checkpoint"},
		{"a checkpoint moved", "UPDATE checkpoints SET size = 31 WHERE size = 30; INSERT INTO entries VALUES (30, x'00'); INSERT INTO hashes VALUES (56, zeroblob(32))", "checkpoint of 31 entries"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			small(t, dir, k, 30)
			db := raw(t, dir)
			edit(t, db, c.edit)
			db.Close()
			if _, err := verify(t, dir, k.vkey); fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), c.want) {
				t.Errorf("verify: %v, want corrupt: %s", err, c.want)
			}
			s, err := sqlite.Open(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := ledger.Open(t.Context(), s, k.config()); fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), c.want) {
				t.Errorf("open: %v, want corrupt: %s", err, c.want)
			}
		})
	}
}

func TestMissingOldCheckpointIsFound(t *testing.T) {
	k := newKey(t)
	for _, size := range []int{0, 1, 17, 29} {
		dir := t.TempDir()
		small(t, dir, k, 30)
		db := raw(t, dir)
		edit(t, db, "DELETE FROM checkpoints WHERE size = ?", size)
		db.Close()
		want := fmt.Sprintf("checkpoint number %d is missing", size)
		if _, err := verify(t, dir, k.vkey); fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), want) {
			t.Errorf("verify: %v, want corrupt: %s", err, want)
		}
	}
}

func TestRowsStayAsTheyAre(t *testing.T) {
	dir := t.TempDir()
	small(t, dir, newKey(t), 3)
	db, err := sql.Open("sqlite", filepath.Join(dir, "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, query := range []string{
		"UPDATE entries SET data = x'00'", "DELETE FROM entries", "UPDATE hashes SET data = x'00'", "DELETE FROM hashes",
		"UPDATE checkpoints SET note = x'00'", "DELETE FROM checkpoints",
	} {
		if _, err := db.Exec(query); err == nil || !strings.Contains(err.Error(), "immutable") {
			t.Errorf("%s: %v, want refused", query, err)
		}
	}
}

// TestDamagedFileNeverVerifiesAsAnother damages the file itself. Some bytes of a database file mean nothing; all that
// matters is that no damage passes as another ledger.
func TestDamagedFileNeverVerifiesAsAnother(t *testing.T) {
	dir, k := t.TempDir(), newKey(t)
	small(t, dir, k, 40)
	want, err := verify(t, dir, k.vkey)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	broken := 0
	attempt := func(what string, data []byte) {
		t.Helper()
		bad := t.TempDir()
		if err := os.WriteFile(filepath.Join(bad, "ledger.db"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := verify(t, bad, k.vkey)
		if err != nil {
			broken++
		} else if got != want {
			t.Errorf("%s: verified as %+v", what, got)
		}
	}
	for at := 0; at < len(whole); at += 151 {
		flipped := slices.Clone(whole)
		flipped[at] ^= 0x10
		attempt(fmt.Sprintf("byte %d flipped", at), flipped)
	}
	if broken < 20 {
		t.Errorf("%d flipped bytes were found, want most of those in rows", broken)
	}
	for size := 0; size < len(whole); size += 4096 {
		broken = 0
		attempt(fmt.Sprintf("cut to %d bytes", size), whole[:size])
		if broken == 0 {
			t.Errorf("a file cut from %d to %d bytes verifies", len(whole), size)
		}
	}
}

func TestTruncatedFileIsRefused(t *testing.T) {
	dir, k := t.TempDir(), newKey(t)
	small(t, dir, k, 2000)
	file := filepath.Join(dir, "ledger.db")
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{info.Size() - 4096, info.Size() / 2, 4096, 1000, 10} {
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
		s, err := sqlite.Open(t.Context(), dir)
		if err == nil {
			_, err = ledger.Open(t.Context(), s, k.config())
			s.Close()
		}
		if fault.KindOf(err) != fault.Corrupt {
			t.Errorf("opening a file cut to %d bytes: %v, want corrupt", size, err)
		}
		t.Log(err)
	}
}

func TestNewerFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	small(t, dir, newKey(t), 3)
	edit(t, raw(t, dir), "PRAGMA user_version = 99")
	s, err := sqlite.Open(t.Context(), dir)
	if err == nil {
		s.Close()
	}
	_, readErr := sqlite.OpenReadOnly(t.Context(), dir)
	for _, err := range []error{err, readErr} {
		if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "format 99") || !strings.Contains(err.Error(), "up to 1") || fault.Hint(err) == "" {
			t.Errorf("opening format 99: %v, want invalid, saying both formats", err)
		}
	}
}

func TestOpenMakesNoLedger(t *testing.T) {
	dir := t.TempDir()
	if _, err := sqlite.Open(t.Context(), dir); fault.KindOf(err) != fault.NotFound {
		t.Errorf("opening an empty directory: %v, want not found", err)
	}
	if _, err := sqlite.OpenReadOnly(t.Context(), dir); fault.KindOf(err) != fault.NotFound {
		t.Errorf("reading an empty directory: %v, want not found", err)
	}
	if _, err := sqlite.Open(t.Context(), filepath.Join(dir, "none")); fault.KindOf(err) != fault.NotFound {
		t.Errorf("opening no directory: %v, want not found", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ledger.db")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening made a file: %v", err)
	}
	create(t, dir).Close()
	if _, err := sqlite.Create(t.Context(), dir); fault.KindOf(err) != fault.Conflict {
		t.Errorf("creating a second ledger: %v, want a conflict", err)
	}
	other := t.TempDir()
	db, err := sql.Open("sqlite", filepath.Join(other, "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	edit(t, db, "CREATE TABLE t (x)")
	db.Close()
	if _, err := sqlite.Open(t.Context(), other); fault.KindOf(err) != fault.Invalid {
		t.Errorf("opening another program's database: %v, want invalid", err)
	}
	if err := os.WriteFile(filepath.Join(other, "ledger.db"), []byte(strings.Repeat("not a database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(t.Context(), other); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("opening a text file: %v, want corrupt", err)
	}
}

func TestSecondServerIsRefusedWithThePidOfTheFirst(t *testing.T) {
	dir := t.TempDir()
	s := create(t, dir)
	_, err := sqlite.Open(t.Context(), dir)
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) || fault.Hint(err) == "" {
		t.Errorf("second open: %v, want a conflict that names process %d", err, os.Getpid())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = sqlite.Open(t.Context(), dir)
	if err != nil {
		t.Fatalf("after the first has closed: %v", err)
	}
	s.Close()
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		out = append(out, f.Name())
	}
	return out
}

func TestVerifyingACopyLeavesItAlone(t *testing.T) {
	dir, k := t.TempDir(), newKey(t)
	small(t, dir, k, 10)
	dup := t.TempDir()
	duplicate(t, dir, dup)
	before := names(t, dup)
	if _, err := verify(t, dup, k.vkey); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(before, "ledger.db-wal") {
		t.Errorf("a closed ledger is %v, want no write-ahead log", before)
	}
	if after := names(t, dup); !slices.Equal(before, after) {
		t.Errorf("verifying left %v, there was %v", after, before)
	}
}

func duplicate(t *testing.T, from, to string) {
	t.Helper()
	for _, name := range names(t, from) {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLiveLedgerAndItsCopyVerify(t *testing.T) {
	dir, k := t.TempDir(), newKey(t)
	s := create(t, dir)
	defer s.Close()
	log := openLog(t, s, k)
	defer log.Close()
	for i := range int64(20) {
		if _, err := log.Append(t.Context(), one("x")); err != nil {
			t.Fatal(err)
		}
		if report, err := verify(t, dir, k.vkey); err != nil || report.Size != i+1 {
			t.Errorf("the ledger in use: %+v, %v; want %d entries", report, err, i+1)
		}
	}
	dup := t.TempDir()
	duplicate(t, dir, dup)
	if report, err := verify(t, dup, k.vkey); err != nil || report.Size != 20 {
		t.Errorf("a copy of the ledger in use: %+v, %v; want 20 entries", report, err)
	}
}

// TestFullDiskFailsAppendsAndLosesNothing fills a file system of 2 MiB.
func TestFullDiskFailsAppendsAndLosesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir, k := t.TempDir(), newKey(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 600<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	s := create(t, dir)
	defer s.Close()
	log := openLog(t, s, k)
	defer log.Close()

	kept := make(map[int64]string)
	fill := func() error {
		for {
			e := strings.Repeat(fmt.Sprintf("%d ", len(kept)), 500)
			i, err := log.Append(t.Context(), one(e))
			if err != nil {
				return err
			}
			kept[i] = e
		}
	}
	for range 3 { // a full disk fails every append, and stays readable
		err := fill()
		if fault.KindOf(err) != fault.Unavailable || fault.Hint(err) == "" {
			t.Fatalf("appending to a full disk: %v, want unavailable with a hint", err)
		}
		if log.Size() != int64(len(kept)) {
			t.Fatalf("the log has %d entries, %d were acknowledged", log.Size(), len(kept))
		}
		if _, err := ledger.Verify(t.Context(), s, k.vkey); err != nil {
			t.Fatalf("on a full disk: %v", err)
		}
	}
	full := len(kept)
	if full < 50 {
		t.Fatalf("the disk was full after %d entries", full)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := fill(); fault.KindOf(err) != fault.Unavailable || len(kept) <= full {
		t.Errorf("after space was freed, %d entries were added, then %v", len(kept)-full, err)
	}
	for i := range int64(len(kept)) {
		if e, err := log.Entry(t.Context(), i); err != nil || string(e) != kept[i] {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
	if err := errors.Join(log.Close(), s.Close()); err != nil {
		t.Errorf("closing on a full disk: %v", err)
	}
	report, err := verify(t, dir, k.vkey)
	if err != nil || report.Size != int64(len(slices.Collect(maps.Keys(kept)))) {
		t.Errorf("verified %+v, %v; want %d entries", report, err, len(kept))
	}
}
