package state

import (
	"fmt"
	"iter"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// Records resolves the digest of a release. The ledger has digests only; records are blobs.
type Records func(digest.Digest) (release.Record, error)

// State is what the entries so far say. It is a value: it never changes, and may be read by any number of
// goroutines. The zero value is of no use; New makes one.
type State struct {
	db      *memdb.MemDB // a snapshot that nobody writes to
	records Records

	live bool     // it goes back to a state from Live.Now
	from int64    // the size of that
	puts []object // what it has over that, in order
}

// Log is what the state knows of the ledger itself.
type Log struct {
	Size   int64  `json:"size"` // entries that the state is the fold of
	Origin string `json:"origin"`
	VKey   string `json:"vkey"`

	LastChange  ChangeNumber  `json:"last_change,omitempty"`
	LastErasure ErasureNumber `json:"last_erasure,omitempty"`
}

// Environment is a named place that runs one release at a time.
type Environment struct {
	deploy.Environment
	App         spec.AppName `json:"app"`                 // of the newest head that had one
	Entry       int64        `json:"entry"`               // index of the newest entry that belongs to it
	Volumes     bool         `json:"volumes"`             // a release with volumes was here, and they were not destroyed since
	VolumesDue  bool         `json:"volumes_due"`         // its volumes are to be destroyed once no instance is left
	HeadEntry   int64        `json:"head_entry"`          // index of the entry that moved the head last
	CompletedAt int          `json:"completed_at"`        // newest generation that completed with a release; 0: none
	ConfirmBy   time.Time    `json:"confirm_by,omitzero"` // the head is reverted unless confirmed by then; zero: it need not be
	Reviews     []Review     `json:"reviews,omitempty"`   // due, oldest first
	Fork        *Forked      `json:"fork,omitempty"`      // nil: it is none
	Measured    *Measured    `json:"measured,omitempty"`  // last; nil: never
	Calm        Calm         `json:"calm,omitzero"`       // of the head
	Since       time.Time    `json:"since,omitzero"`      // when it began to run something, after it ran nothing
}

// Destroyed reports whether the head is nothing.
func (e Environment) Destroyed() bool { return e.Head.Number > 0 && e.Head.Release == "" }

// MoveKind says how a head moved.
type MoveKind string

// The kinds of moves.
const (
	MovedByApply    MoveKind = "apply"
	MovedByRollback MoveKind = "rollback"
	MovedByRevert   MoveKind = "revert"
	MovedByDestroy  MoveKind = "destroy"
	MovedByFork     MoveKind = "fork"
)

// Generation is one head that an environment has or had, and how it came to be.
type Generation struct {
	Env     spec.EnvName  `json:"env"`
	Number  int           `json:"number"`
	Kind    MoveKind      `json:"kind"`
	App     spec.AppName  `json:"app"`
	Release digest.Digest `json:"release,omitempty"` // "": destroyed
	Bundle  digest.Digest `json:"bundle,omitempty"`
	Plan    digest.Digest `json:"plan,omitempty"` // of an apply
	To      int           `json:"to,omitempty"`   // of a rollback: the generation that it went back to

	Restore []deploy.Restore `json:"restore,omitempty"` // volumes that were to get other data

	Change  EntryID        `json:"change"` // the entry that moved the head
	Entry   int64          `json:"entry"`  // its index
	Actor   Actor          `json:"actor"`
	Reason  string         `json:"reason,omitempty"`
	At      time.Time      `json:"at"`
	Outcome deploy.Outcome `json:"outcome"`
	EndedAt time.Time      `json:"ended_at,omitzero"`
	Cause   string         `json:"cause,omitempty"` // of a failure

	Of        ChangeNumber `json:"of,omitempty"` // the change that it carried out; 0: it needed no approval
	Emergency bool         `json:"emergency,omitempty"`
	Volumes   bool         `json:"volumes,omitempty"`  // destroyed, with them
	Promoted  *Promoted    `json:"promoted,omitempty"` // of an apply: from where
	Fork      *Forked      `json:"fork,omitempty"`     // of a fork: from where, and until when
}

// KnownBundle is a bundle that a change used.
type KnownBundle struct {
	Digest digest.Digest `json:"digest"`
	App    spec.AppName  `json:"app"`
	Source digest.Digest `json:"source"`
	Entry  int64         `json:"entry"`
}

// KnownRelease is a release that a change used.
type KnownRelease struct {
	Digest digest.Digest `json:"digest"`
	App    spec.AppName  `json:"app"`
	Env    spec.EnvName  `json:"env"`
	Bundle digest.Digest `json:"bundle"`
	Entry  int64         `json:"entry"`
}

// TokenID names a token. It is no secret.
type TokenID string

// Token is an API token. Its secret is known to its holder alone.
type Token struct {
	ID        TokenID       `json:"id"`
	Name      string        `json:"name"`
	Secret    digest.Digest `json:"secret"`
	Actor     Actor         `json:"actor"` // who made it
	CreatedAt time.Time     `json:"created_at"`
	RevokedAt time.Time     `json:"revoked_at,omitzero"`

	Principal    platform.PrincipalName `json:"principal,omitempty"`
	Permissions  []platform.Permission  `json:"permissions,omitempty"`
	Environments []platform.Pattern     `json:"environments,omitempty"`
	ExpiresAt    time.Time              `json:"expires_at,omitzero"`
	Session      bool                   `json:"session,omitempty"`
	Key          string                 `json:"key,omitempty"`
}

// Tables and their indexes beside "id".
const (
	tableLog          = "log"
	tableEnvironments = "environments"
	tableGenerations  = "generations"
	tableBundles      = "bundles"
	tableReleases     = "releases"
	tableTokens       = "tokens"
	tableChanges      = "changes"
	tableRevocations  = "revocations"
	tableSecrets      = "secrets"
	tableErasures     = "erasures"
	tableHost         = "host"
	tableDrifts       = "drifts"

	indexRelease = "release"
	indexSecret  = "secret"
	indexOpen    = "open"
	indexVersion = "version"
	indexDigest  = "digest"
)

// key indexes a table of *T by a string that ends where the object's begins or ends with it.
type key[T any] func(*T) string

// FromObject implements memdb.SingleIndexer.
func (k key[T]) FromObject(raw any) (bool, []byte, error) {
	s := k(raw.(*T))
	return s != "", []byte(s + "\x00"), nil
}

// FromArgs implements memdb.Indexer.
func (k key[T]) FromArgs(args ...any) ([]byte, error) { return []byte(args[0].(string) + "\x00"), nil }

// PrefixFromArgs implements memdb.PrefixIndexer.
func (k key[T]) PrefixFromArgs(args ...any) ([]byte, error) { return []byte(args[0].(string)), nil }

func generationKey(env spec.EnvName, number int) string { return fmt.Sprintf("%s/%010d", env, number) }

func schema() *memdb.DBSchema {
	id := func(ix memdb.Indexer) *memdb.IndexSchema {
		return &memdb.IndexSchema{Name: "id", Unique: true, Indexer: ix}
	}
	table := func(name string, indexes ...*memdb.IndexSchema) *memdb.TableSchema {
		t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{}}
		for _, ix := range indexes {
			t.Indexes[ix.Name] = ix
		}
		return t
	}
	return &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		tableLog:          table(tableLog, id(key[Log](func(*Log) string { return tableLog }))),
		tableEnvironments: table(tableEnvironments, id(key[Environment](func(e *Environment) string { return string(e.Name) }))),
		tableGenerations: table(tableGenerations,
			id(key[Generation](func(g *Generation) string { return generationKey(g.Env, g.Number) })),
			&memdb.IndexSchema{Name: indexRelease, AllowMissing: true,
				Indexer: key[Generation](func(g *Generation) string { return string(g.Release) })}),
		tableBundles:  table(tableBundles, id(key[KnownBundle](func(b *KnownBundle) string { return string(b.Digest) }))),
		tableReleases: table(tableReleases, id(key[KnownRelease](func(r *KnownRelease) string { return string(r.Digest) }))),
		tableChanges: table(tableChanges, id(key[Change](func(c *Change) string { return changeKey(c.Change) })),
			&memdb.IndexSchema{Name: indexOpen, AllowMissing: true, Indexer: key[Change](openKey)}),
		tableRevocations: table(tableRevocations, id(key[Revocation](func(r *Revocation) string { return string(r.Release) }))),
		tableTokens: table(tableTokens, id(key[Token](func(t *Token) string { return string(t.ID) })),
			&memdb.IndexSchema{Name: indexSecret, Unique: true, Indexer: key[Token](func(t *Token) string { return string(t.Secret) })}),
		tableSecrets: table(tableSecrets, id(key[KnownSecret](func(s *KnownSecret) string { return secretKey(s.Env, s.Name, s.Entry) })),
			&memdb.IndexSchema{Name: indexVersion, Unique: true, Indexer: key[KnownSecret](func(s *KnownSecret) string { return string(s.Version) })}),
		tableHost: table(tableHost, id(key[Host](func(*Host) string { return tableHost }))),
		tableErasures: table(tableErasures, id(key[KnownErasure](func(r *KnownErasure) string { return erasureKey(r.Erasure) })),
			&memdb.IndexSchema{Name: indexDigest, AllowMissing: true, Indexer: key[KnownErasure](erasureDigest)}),
		tableDrifts: table(tableDrifts, id(key[Drift](driftKey)),
			&memdb.IndexSchema{Name: indexOpen, AllowMissing: true, Indexer: key[Drift](differing)}),
	}}
}

// New returns the state before the first entry.
func New(records Records) State {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic(fmt.Sprintf("state: the schema is wrong: %v", err)) // program text, not data
	}
	return State{db: db, records: records}
}

// get returns the object with the id, nil when there is none.
func get[T any](tx *memdb.Txn, table, index, id string) *T {
	raw, err := tx.First(table, index, id)
	if err != nil {
		panic(fmt.Sprintf("state: reading %s: %v", table, err)) // names a table or index that the schema lacks
	}
	t, _ := raw.(*T)
	return t
}

// all yields the objects whose key begins with prefix, in order of their key.
func all[T any](tx *memdb.Txn, table, prefix string) iter.Seq[T] {
	it, err := tx.Get(table, "id_prefix", prefix)
	if err != nil {
		panic(fmt.Sprintf("state: reading %s: %v", table, err))
	}
	return func(yield func(T) bool) {
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if !yield(*raw.(*T)) {
				return
			}
		}
	}
}

// Log returns what the state knows of the ledger.
func (s State) Log() Log {
	if l := get[Log](s.db.Txn(false), tableLog, "id", tableLog); l != nil {
		return *l
	}
	return Log{}
}

// Size returns how many entries the state is the fold of: the index of the next.
func (s State) Size() int64 { return s.Log().Size }

// Environments yields every environment that ever had a head, by name.
func (s State) Environments() iter.Seq[Environment] {
	return all[Environment](s.db.Txn(false), tableEnvironments, "")
}

// Environment returns an environment. It fails with fault.NotFound.
func (s State) Environment(name spec.EnvName) (Environment, error) {
	e := get[Environment](s.db.Txn(false), tableEnvironments, "id", string(name))
	if e == nil {
		return Environment{}, fault.WithHint(fault.Errorf(fault.NotFound, "environment %q does not exist", name),
			"invar status lists those that do; invar apply %s makes this one", name)
	}
	return *e, nil
}

// Platform returns the platform's definition that is in force: that of the head of its environment, whatever became of
// its rollout, which has nothing to start. It reports false for a ledger from before there was one.
func (s State) Platform() (platform.Definition, bool) {
	e := get[Environment](s.db.Txn(false), tableEnvironments, "id", string(platform.Env))
	if e == nil || e.Head.Record.Platform == nil {
		return platform.Definition{}, false
	}
	return *e.Head.Record.Platform, true
}

// History yields the environment's generations, oldest first.
func (s State) History(name spec.EnvName) iter.Seq[Generation] {
	return all[Generation](s.db.Txn(false), tableGenerations, string(name)+"/")
}

// Generation returns one of the environment's generations. It fails with fault.NotFound.
func (s State) Generation(name spec.EnvName, number int) (Generation, error) {
	g := get[Generation](s.db.Txn(false), tableGenerations, "id", generationKey(name, number))
	if g == nil {
		return Generation{}, fault.WithHint(fault.Errorf(fault.NotFound, "environment %q has no generation %d", name, number),
			"invar history %s lists them", name)
	}
	return *g, nil
}

// Heads yields every generation that has or had the release, by environment and number.
func (s State) Heads(d digest.Digest) iter.Seq[Generation] {
	it, err := s.db.Txn(false).Get(tableGenerations, indexRelease, string(d))
	if err != nil {
		panic(fmt.Sprintf("state: reading %s: %v", tableGenerations, err))
	}
	return func(yield func(Generation) bool) {
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if !yield(*raw.(*Generation)) {
				return
			}
		}
	}
}

// Bundle returns a bundle that a change used. It fails with fault.NotFound.
func (s State) Bundle(d digest.Digest) (KnownBundle, error) {
	b := get[KnownBundle](s.db.Txn(false), tableBundles, "id", string(d))
	if b == nil {
		return KnownBundle{}, fault.Errorf(fault.NotFound, "bundle %s is not in the ledger", d)
	}
	return *b, nil
}

// Bundles yields every bundle that a change used.
func (s State) Bundles() iter.Seq[KnownBundle] {
	return all[KnownBundle](s.db.Txn(false), tableBundles, "")
}

// Release returns a release that a change used. It fails with fault.NotFound.
func (s State) Release(d digest.Digest) (KnownRelease, error) {
	r := get[KnownRelease](s.db.Txn(false), tableReleases, "id", string(d))
	if r == nil {
		return KnownRelease{}, fault.Errorf(fault.NotFound, "release %s is not in the ledger", d)
	}
	return *r, nil
}

// Releases yields every release that a change used.
func (s State) Releases() iter.Seq[KnownRelease] {
	return all[KnownRelease](s.db.Txn(false), tableReleases, "")
}

// Token returns a token, also a revoked one. It fails with fault.NotFound.
func (s State) Token(id TokenID) (Token, error) {
	t := get[Token](s.db.Txn(false), tableTokens, "id", string(id))
	if t == nil {
		return Token{}, fault.Errorf(fault.NotFound, "token %q does not exist", id)
	}
	return *t, nil
}

// TokenOf returns the token whose secret has the digest. It fails with fault.NotFound.
func (s State) TokenOf(secret digest.Digest) (Token, error) {
	t := get[Token](s.db.Txn(false), tableTokens, indexSecret, string(secret))
	if t == nil {
		return Token{}, fault.Errorf(fault.NotFound, "no such token")
	}
	return *t, nil
}

// Tokens yields every token, also revoked ones, by ID.
func (s State) Tokens() iter.Seq[Token] { return all[Token](s.db.Txn(false), tableTokens, "") }

// Changed returns a channel that is closed when a newer state is published. It is for states from Live.Now.
func (s State) Changed() <-chan struct{} { return s.watch(tableLog, tableLog) }

// EnvironmentChanged returns a channel that is closed when a newer state of the environment is published, or when
// it comes to be. It may be closed for a change of another environment as well: read again.
func (s State) EnvironmentChanged(name spec.EnvName) <-chan struct{} {
	return s.watch(tableEnvironments, string(name))
}

func (s State) watch(table, id string) <-chan struct{} {
	ch, _, err := s.db.Txn(false).FirstWatch(table, "id", id)
	if err != nil {
		panic(fmt.Sprintf("state: watching %s: %v", table, err))
	}
	return ch
}

// Live holds the newest state. Publish has one caller at a time; the rest is for anyone.
type Live struct {
	primary *memdb.MemDB
	records Records
}

// NewLive begins with a state.
func NewLive(s State) *Live {
	l := &Live{New(s.records).db, s.records}
	tx := l.primary.Txn(true)
	for _, o := range s.objects() {
		must(tx.Insert(o.table, o.value))
	}
	tx.Commit()
	return l
}

// Now returns the newest state.
func (l *Live) Now() State {
	s := State{db: l.primary.Snapshot(), records: l.records}
	s.live, s.from = true, s.Size()
	return s
}

// Publish makes s the newest state and tells watchers, all at once. s must be what Apply made of the newest state so
// far: any other is refused with fault.Conflict.
func (l *Live) Publish(s State) error {
	tx := l.primary.Txn(true)
	defer tx.Abort()
	if now := get[Log](tx, tableLog, "id", tableLog); !s.live || now != nil && now.Size != s.from {
		return fault.Errorf(fault.Conflict, "publishing a state that does not go back to the newest")
	}
	for _, o := range s.puts {
		must(tx.Insert(o.table, o.value))
	}
	tx.Commit()
	return nil
}

type object struct {
	table string
	value any
}

// objects returns all that the state consists of, in order of table and key.
func (s State) objects() []object {
	tx := s.db.Txn(false)
	var out []object
	for _, table := range []string{tableLog, tableEnvironments, tableGenerations, tableBundles, tableReleases, tableTokens, tableChanges, tableRevocations, tableSecrets, tableErasures, tableHost, tableDrifts} {
		it, err := tx.Get(table, "id")
		must(err)
		for raw := it.Next(); raw != nil; raw = it.Next() {
			out = append(out, object{table, raw})
		}
	}
	return out
}

// must stops the program where its text contradicts the schema. No data can make it do so.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("state: %v", err))
	}
}
