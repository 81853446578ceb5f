// Package sqlite keeps a ledger in one SQLite file, DIR/ledger.db.
//
// # Format 1
//
//	entries(idx, data)       one row an entry, numbered from 0 without a gap
//	hashes(first, data)      rows of up to 120 hashes of 32 bytes, of one commit, the first of which
//	                         has the index first in the order of tlog.StoredHashIndex
//	checkpoints(size, number, note)
//	                         one row a commit: its signed note, numbered from 0 without a gap
//	snapshot(one, size, state)
//
// PRAGMA application_id is 0x696e7661 ("inva"), PRAGMA user_version is the format. Rows of the first three
// tables are only ever added; triggers refuse anything else. A commit is one transaction.
//
// # Durability
//
// The file is in WAL mode with synchronous=FULL: a commit is in the write-ahead log, and synced, before
// Append returns (https://www.sqlite.org/wal.html). Until it is closed, the ledger is ledger.db together with
// ledger.db-wal: copy both.
//
// # One writer
//
// DIR/lock is locked (flock) while a Store is open and holds the writer's process id. The kernel drops
// the lock when the process ends in any way, so there is no stale lock.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/tlog"
	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/store"
)

// Format is the format that this package writes, and the newest that it reads.
const Format = 1

const (
	fileName      = "ledger.db"
	applicationID = 0x696e7661
	rowsAtOnce    = 32  // entries that one statement inserts
	hashesInRow   = 120 // what fits in one page: reading one hash reads no other page
)

// schema makes format 1.
const schema = `
CREATE TABLE entries     (idx   INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE hashes      (first INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE checkpoints (size  INTEGER PRIMARY KEY, number INTEGER NOT NULL, note BLOB NOT NULL) STRICT;
CREATE TABLE snapshot    (one   INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL, state BLOB NOT NULL) STRICT;

CREATE TRIGGER entries_stay      BEFORE UPDATE ON entries     BEGIN SELECT RAISE(ABORT, 'entries are immutable');     END;
CREATE TRIGGER entries_remain    BEFORE DELETE ON entries     BEGIN SELECT RAISE(ABORT, 'entries are immutable');     END;
CREATE TRIGGER hashes_stay       BEFORE UPDATE ON hashes      BEGIN SELECT RAISE(ABORT, 'hashes are immutable');      END;
CREATE TRIGGER hashes_remain     BEFORE DELETE ON hashes      BEGIN SELECT RAISE(ABORT, 'hashes are immutable');      END;
CREATE TRIGGER checkpoints_stay  BEFORE UPDATE ON checkpoints BEGIN SELECT RAISE(ABORT, 'checkpoints are immutable'); END;
CREATE TRIGGER checkpoints_remain BEFORE DELETE ON checkpoints BEGIN SELECT RAISE(ABORT, 'checkpoints are immutable'); END;
`

// Store is the one writer of a ledger file, and a reader.
type Store struct {
	*Reader
	lock *os.File
	db   *sql.DB // of the one connection that writes

	mu         sync.Mutex // guards the connection
	conn       *sql.Conn
	newest     *sql.Stmt
	entry      *sql.Stmt
	entryRun   *sql.Stmt // rowsAtOnce of them
	hashes     *sql.Stmt
	checkpoint *sql.Stmt
}

var _ store.Store = (*Store)(nil)

// Create makes an empty ledger in dir, which must exist, and opens it. It fails with fault.Conflict
// when dir has one.
func Create(ctx context.Context, dir string) (*Store, error) {
	return open(ctx, dir, initialise)
}

// Open opens the ledger in dir for writing. fault.NotFound: dir has none, and none is made;
// fault.Conflict: another process writes it; fault.Invalid: it is of a newer format.
func Open(ctx context.Context, dir string) (*Store, error) {
	return open(ctx, dir, func(ctx context.Context, dir string) error { return exists(dir) })
}

// open locks dir, lets prepare see to its file, and opens that.
func open(ctx context.Context, dir string, prepare func(context.Context, string) error) (_ *Store, err error) {
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the ledger in %s: %w", dir, err)
	}
	s := &Store{lock: lock}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("opening the ledger in %s: %w", dir, err), s.Close())
		}
	}()
	if err := prepare(ctx, dir); err != nil {
		return nil, err
	}
	if err := s.openWriter(ctx, dir); err != nil {
		return nil, err
	}
	s.Reader, err = newReader(ctx, dsn(dir, fileName, "_pragma=query_only(1)"))
	if err != nil {
		return nil, err
	}
	return s, nil
}

// exists finds the ledger file, so that a mistyped directory does not start an empty ledger.
func exists(dir string) error {
	info, err := os.Stat(filepath.Join(dir, fileName))
	if errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0 {
		return fault.Errorf(fault.NotFound, "%s has no ledger", dir)
	}
	return err
}

// initialise makes the file, under another name first: a crash leaves no ledger or a whole one.
func initialise(ctx context.Context, dir string) error {
	if err := exists(dir); fault.KindOf(err) != fault.NotFound {
		if err == nil {
			err = fault.Errorf(fault.Conflict, "%s has a ledger already", dir)
		}
		return err
	}
	draft := fileName + ".new"
	for _, left := range []string{draft, draft + "-journal"} { // by a crash
		if err := os.Remove(filepath.Join(dir, left)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := writeSchema(ctx, dsn(dir, draft)); err != nil {
		return classify(fmt.Errorf("creating %s: %w", fileName, err))
	}
	if err := os.Rename(filepath.Join(dir, draft), filepath.Join(dir, fileName)); err != nil {
		return err
	}
	return syncDir(dir)
}

// writeSchema makes a file of format 1, durably.
func writeSchema(ctx context.Context, dsn string) error {
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	script := fmt.Sprintf("BEGIN IMMEDIATE; PRAGMA application_id = %d; PRAGMA user_version = %d; %s COMMIT;", applicationID, Format, schema)
	_, err = db.ExecContext(ctx, script)
	return errors.Join(err, db.Close())
}

// openWriter opens the connection that writes.
func (s *Store) openWriter(ctx context.Context, dir string) (err error) {
	if s.db, err = sql.Open("sqlite", dsn(dir, fileName, "_pragma=journal_mode(WAL)", "_pragma=synchronous(FULL)", "_pragma=journal_size_limit(67108864)")); err != nil {
		return err
	}
	if s.conn, err = s.db.Conn(ctx); err != nil {
		return classify(err)
	}
	if err := checkFormat(ctx, s.conn); err != nil {
		return err
	}
	for _, p := range []struct {
		stmt **sql.Stmt
		text string
	}{
		{&s.newest, "SELECT coalesce(max(size), 0), coalesce(max(number) + 1, 0) FROM (SELECT size, number FROM checkpoints ORDER BY size DESC LIMIT 1)"},
		{&s.entry, "INSERT INTO entries (idx, data) VALUES (?, ?)"},
		{&s.entryRun, "INSERT INTO entries (idx, data) VALUES (?, ?)" + strings.Repeat(", (?, ?)", rowsAtOnce-1)},
		{&s.hashes, "INSERT INTO hashes (first, data) VALUES (?, ?)"},
		{&s.checkpoint, "INSERT INTO checkpoints (size, number, note) VALUES (?, ?, ?)"},
	} {
		if *p.stmt, err = s.conn.PrepareContext(ctx, p.text); err != nil {
			return classify(err)
		}
	}
	return nil
}

// checkFormat refuses files that are not a ledger of a format that this package reads.
func checkFormat(ctx context.Context, q interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}) error {
	var id, format int64
	err := q.QueryRowContext(ctx, "SELECT application_id, user_version FROM pragma_application_id, pragma_user_version").Scan(&id, &format)
	switch {
	case err != nil:
		return classify(fmt.Errorf("reading the format of %s: %w", fileName, err))
	case id != applicationID:
		return fault.Errorf(fault.Invalid, "%s is not a ledger: its application id is %#x", fileName, id)
	case format > Format:
		return fault.WithHint(
			fault.Errorf(fault.Invalid, "%s has format %d; this program reads formats up to %d", fileName, format, Format),
			"Use the version of invar that wrote it, or a newer one.")
	case format < 1:
		return fault.Errorf(fault.Corrupt, "%s has format %d, which never was", fileName, format)
	}
	return nil
}

// Append commits a batch; see store.Store.
func (s *Store) Append(ctx context.Context, size int64, b store.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx = context.WithoutCancel(ctx) // a commit is not interrupted half-way
	if _, err := s.conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return classify(fmt.Errorf("beginning a commit: %w", err))
	}
	err := s.insert(ctx, size, b)
	if err == nil {
		_, err = s.conn.ExecContext(ctx, "COMMIT")
	}
	if err != nil {
		// SQLite has rolled back already after some errors; then this one fails, and says nothing.
		s.conn.ExecContext(ctx, "ROLLBACK")
		return classify(fmt.Errorf("committing %d entries at %d: %w", len(b.Entries), size, err))
	}
	return nil
}

func (s *Store) insert(ctx context.Context, size int64, b store.Batch) error {
	var have, commits int64
	if err := s.newest.QueryRowContext(ctx).Scan(&have, &commits); err != nil {
		return err
	}
	if have != size {
		return fault.Errorf(fault.Conflict, "decided on size %d, the ledger has %d", size, have)
	}
	if len(b.Entries) == 0 && commits > 0 {
		return fault.Errorf(fault.Invalid, "a commit without entries")
	}
	if err := s.insertEntries(ctx, size, b.Entries); err != nil {
		return err
	}
	first := tlog.StoredHashCount(size)
	for run := range slices.Chunk(b.Hashes, hashesInRow) {
		if _, err := s.hashes.ExecContext(ctx, first, joinHashes(run)); err != nil {
			return err
		}
		first += int64(len(run))
	}
	_, err := s.checkpoint.ExecContext(ctx, size+int64(len(b.Entries)), commits, b.Checkpoint)
	return err
}

// insertEntries inserts the entries, from index next on, in as few statements as there are for it.
func (s *Store) insertEntries(ctx context.Context, next int64, entries [][]byte) error {
	args := make([]any, 0, 2*rowsAtOnce)
	for len(entries) > 0 {
		stmt, rows := s.entry, 1
		if len(entries) >= rowsAtOnce {
			stmt, rows = s.entryRun, rowsAtOnce
		}
		args = args[:0]
		for _, e := range entries[:rows] {
			args = append(args, next, notNull(e))
			next++
		}
		if _, err := stmt.ExecContext(ctx, args...); err != nil {
			return err
		}
		entries = entries[rows:]
	}
	return nil
}

// notNull keeps an empty entry from being stored as NULL.
func notNull(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func joinHashes(hashes []tlog.Hash) []byte {
	out := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		out = append(out, h[:]...)
	}
	return out
}

// PutSnapshot replaces the snapshot; see store.Store.
func (s *Store) PutSnapshot(ctx context.Context, snapshot store.Snapshot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.conn.ExecContext(ctx, "INSERT OR REPLACE INTO snapshot (one, size, state) VALUES (1, ?, ?)",
		snapshot.Size, notNull(snapshot.State))
	if err != nil {
		return classify(fmt.Errorf("storing the snapshot at %d: %w", snapshot.Size, err))
	}
	return nil
}

// Close moves the write-ahead log into the file and gives up the lock.
func (s *Store) Close() error {
	var errs []error
	if s.Reader != nil {
		errs = append(errs, s.Reader.Close())
	}
	for _, stmt := range []*sql.Stmt{s.newest, s.entry, s.entryRun, s.hashes, s.checkpoint} {
		if stmt != nil { // database/sql does not close those of a single connection, which would stay open
			errs = append(errs, stmt.Close())
		}
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	errs = append(errs, s.lock.Close())
	return errors.Join(errs...)
}

// dsn names a file in dir for the driver.
func dsn(dir, file string, params ...string) string {
	u := url.URL{Scheme: "file", OmitHost: true, Path: filepath.Join(dir, file)}
	if abs, err := filepath.Abs(u.Path); err == nil {
		u.Path = abs
	}
	u.RawQuery = "_pragma=busy_timeout(10000)"
	for _, p := range params {
		u.RawQuery += "&" + p
	}
	return u.String()
}

// classify gives an error of SQLite its kind.
func classify(err error) error {
	e, ok := errors.AsType[*driver.Error](err)
	if !ok {
		return err
	}
	switch e.Code() & 0xff {
	case lib.SQLITE_FULL, lib.SQLITE_IOERR, lib.SQLITE_CANTOPEN, lib.SQLITE_NOMEM, lib.SQLITE_BUSY, lib.SQLITE_LOCKED,
		lib.SQLITE_READONLY, lib.SQLITE_PERM:
		return fault.WithHint(fault.As(fault.Unavailable, err), "Check the disk's free space and health.")
	case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB, lib.SQLITE_FORMAT:
		return fault.As(fault.Corrupt, err)
	}
	return err
}
