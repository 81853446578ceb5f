package tiles_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/ledger/tiles"
	"github.com/invarhq/invar/store/storetest"
)

const origin = "invar.example/ledger"

// served is an open ledger, its verifier key, and that key parsed.
type served struct {
	*ledger.Log
	vkey     string
	verifier note.Verifier
}

func newLog(t testing.TB) served {
	t.Helper()
	skey, vkey, err := ledger.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, verifier, err := ledger.ParseKey(skey)
	if err != nil {
		t.Fatal(err)
	}
	s, err := storetest.NewDisk().Open()
	if err != nil {
		t.Fatal(err)
	}
	log, err := ledger.Open(t.Context(), s, ledger.Config{Origin: origin, Signer: signer, Verifier: verifier})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return served{log, vkey, verifier}
}

// grow appends entries until there are size.
func (s served) grow(t testing.TB, size int64) {
	t.Helper()
	_, err := s.Append(t.Context(), func(next int64) (out [][]byte, _ error) {
		for i := next; i < size; i++ {
			out = append(out, fmt.Appendf(nil, "entry %d", i))
		}
		return out, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// copyTo adds what the log serves now to a copy of it.
func (s served) copyTo(t testing.TB, files fstest.MapFS) {
	t.Helper()
	for path := range ledger.TilePaths(s.Size()) {
		data, err := s.Tile(t.Context(), path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		files[path] = &fstest.MapFile{Data: data}
	}
}

func TestCopyVerifiesAtEverySize(t *testing.T) {
	log := newLog(t)
	files := make(fstest.MapFS) // one copy that grows, so it keeps the partial tiles of all sizes
	for _, size := range []int64{0, 1, 2, 3, 255, 256, 257, 300, 511, 512, 1000, 4096, 5000, 65536, 66000} {
		log.grow(t, size)
		fresh := make(fstest.MapFS)
		log.copyTo(t, fresh)
		log.copyTo(t, files)
		for name, copied := range map[string]fstest.MapFS{"fresh": fresh, "grown": files} {
			report, err := ledger.Verify(t.Context(), tiles.New(copied), log.vkey)
			if err != nil || report.Size != size || report.Hashes != tlog.StoredHashCount(size) || report.Checkpoints != 1 {
				t.Errorf("%s copy of %d entries: %+v, %v", name, size, report, err)
			}
		}
	}
}

func TestCopyOnDiskVerifies(t *testing.T) {
	log := newLog(t)
	log.grow(t, 700)
	dir := t.TempDir()
	for path := range ledger.TilePaths(700) {
		data, err := log.Tile(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, filepath.FromSlash(path))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if report, err := ledger.Verify(t.Context(), tiles.New(os.DirFS(dir)), log.vkey); err != nil || report.Size != 700 {
		t.Errorf("verified %+v, %v", report, err)
	}
}

// TestAnyFlippedByteOfACopyIsFound flips every byte of every file of a small copy that grew twice, and some of each
// file of one that has full tiles.
func TestAnyFlippedByteOfACopyIsFound(t *testing.T) {
	for _, c := range []struct {
		sizes  []int64
		stride int
	}{{[]int64{3, 17, 40}, 1}, {[]int64{3, 200, 262}, 61}} {
		log := newLog(t)
		files := make(fstest.MapFS)
		for _, size := range c.sizes {
			log.grow(t, size)
			log.copyTo(t, files)
		}
		for path, file := range files {
			for i := 0; i < len(file.Data); i += c.stride {
				file.Data[i] ^= 0x01
				_, err := ledger.Verify(t.Context(), tiles.New(files), log.vkey)
				file.Data[i] ^= 0x01
				if err == nil {
					t.Errorf("byte %d of %s was flipped, and the copy verifies", i, path)
				}
				if path != "checkpoint" && fault.KindOf(err) != fault.Corrupt {
					t.Errorf("byte %d of %s was flipped: %v, want corrupt", i, path, err)
				}
			}
		}
		if _, err := ledger.Verify(t.Context(), tiles.New(files), log.vkey); err != nil {
			t.Errorf("with all flipped back: %v", err)
		}
	}
}

// TestFlippedEntryOfACopyIsNamed flips the bytes of the entries, and of the lengths before them.
func TestFlippedEntryOfACopyIsNamed(t *testing.T) {
	log := newLog(t)
	log.grow(t, 60)
	files := make(fstest.MapFS)
	log.copyTo(t, files)
	bundle := files["tile/entries/000.p/60"].Data
	for i, entry := int64(0), bundle; i < 60; i++ {
		size := 2 + len(fmt.Sprintf("entry %d", i))
		for j := range size {
			entry[j] ^= 0x80
			_, err := ledger.Verify(t.Context(), tiles.New(files), log.vkey)
			entry[j] ^= 0x80
			d, ok := errors.AsType[*ledger.Damage](err)
			if !ok || d.Object != "entry" || d.First != i || d.Last != i {
				t.Errorf("byte %d of entry %d was flipped: %v", j, i, err)
			}
		}
		entry = entry[size:]
	}
}

func TestMissingFilesAreFound(t *testing.T) {
	log := newLog(t)
	log.grow(t, 600)
	files := make(fstest.MapFS)
	log.copyTo(t, files)
	for path, file := range files {
		delete(files, path)
		if _, err := ledger.Verify(t.Context(), tiles.New(files), log.vkey); err == nil {
			t.Errorf("%s is missing, and the copy verifies", path)
		}
		files[path] = &fstest.MapFile{Data: file.Data[:len(file.Data)/2]}
		if _, err := ledger.Verify(t.Context(), tiles.New(files), log.vkey); err == nil {
			t.Errorf("%s is cut in half, and the copy verifies", path)
		}
		files[path] = file
	}
}

// client is a public client of tiled logs: x/mod's tile reader, which checks each tile against the tree, with C2SP paths
// over HTTP.
type client struct {
	t   *testing.T
	url string
}

func (c client) Height() int { return 8 }

func (c client) ReadTiles(ts []tlog.Tile) (out [][]byte, _ error) {
	for _, tile := range ts {
		out = append(out, c.get(strings.Replace(strings.Replace(tile.Path(), "tile/8/", "tile/", 1), "/data/", "/entries/", 1)))
	}
	return out, nil
}

func (c client) SaveTiles([]tlog.Tile, [][]byte) {}

func (c client) get(path string) []byte {
	c.t.Helper()
	resp, err := http.Get(c.url + "/" + path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("%s: %s, %v", path, resp.Status, err)
	}
	return data
}

// serve serves the resources of a log as a server would.
func serve(t *testing.T, log *ledger.Log) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := log.Tile(r.Context(), strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		w.Write(data)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestPublicClientReadsTheTiles(t *testing.T) {
	log := newLog(t)
	c := client{t, serve(t, log.Log)}
	var old tlog.Tree
	for _, size := range []int64{1, 255, 256, 300, 66000} {
		log.grow(t, size)
		checkpoint, err := ledger.ParseCheckpoint(c.get("checkpoint"), log.verifier)
		if err != nil || checkpoint.Size != size {
			t.Fatalf("checkpoint is %+v, %v; want size %d", checkpoint, err, size)
		}
		tree := tlog.Tree{N: size, Hash: checkpoint.Root}
		reader := tlog.TileHashReader(tree, c)
		for _, i := range []int64{0, size / 2, size - 1} {
			proof, err := tlog.ProveRecord(size, i, reader)
			if err != nil {
				t.Fatalf("entry %d of %d, from tiles: %v", i, size, err)
			}
			entry := c.entry(i, size)
			if err := tlog.CheckRecord(proof, size, tree.Hash, i, tlog.RecordHash(entry)); err != nil {
				t.Errorf("entry %d of %d, %q: %v", i, size, entry, err)
			}
		}
		if old.N > 0 {
			proof, err := tlog.ProveTree(size, old.N, reader)
			if err != nil {
				t.Fatal(err)
			}
			if err := tlog.CheckTree(proof, size, tree.Hash, old.N, old.Hash); err != nil {
				t.Errorf("the tree of %d in that of %d: %v", old.N, size, err)
			}
		}
		old = tree
	}
}

// entry reads an entry from its bundle.
func (c client) entry(i, size int64) []byte {
	c.t.Helper()
	t := tlog.Tile{H: 8, L: -1, N: i / 256, W: int(min(256, size-i/256*256))}
	data, err := c.ReadTiles([]tlog.Tile{t})
	if err != nil {
		c.t.Fatal(err)
	}
	entries, err := ledger.ParseBundle(data[0])
	if err != nil || len(entries) != t.W {
		c.t.Fatalf("bundle %s has %d entries, %v", ledger.TilePath(t), len(entries), err)
	}
	return entries[i%256]
}

func TestTilesBeyondTheTreeAreNotFound(t *testing.T) {
	log := newLog(t)
	log.grow(t, 300)
	for path, want := range map[string]fault.Kind{
		"tile/0/001.p/44": "", "tile/0/001.p/43": "", "tile/1/000.p/1": "", "tile/entries/001.p/44": "", "checkpoint": "",
		"tile/0/001.p/45": fault.NotFound, "tile/0/001": fault.NotFound, "tile/0/002.p/1": fault.NotFound, "tile/1/000.p/2": fault.NotFound,
		"tile/2/000.p/1": fault.NotFound, "tile/entries/001.p/45": fault.NotFound, "tile/entries/x999/x999/999": fault.NotFound,
		"tile/8/0/000": fault.Invalid, "tile/data/000": fault.Invalid, "tile/0/0": fault.Invalid, "": fault.Invalid, "/checkpoint": fault.Invalid,
	} {
		if _, err := log.Tile(context.Background(), path); fault.KindOf(err) != want {
			t.Errorf("%q: %v, want kind %q", path, err, want)
		}
	}
}

// Cosignatures of witnesses on the checkpoint are no damage; a second signature in the log's name is.
func TestCosignaturesOnTheCheckpointAreNoDamage(t *testing.T) {
	for name, c := range map[string]struct {
		more string
		ok   bool
	}{
		"a cosignature":               {"— witness.example/w jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n", true},
		"in the log's name":           {"— " + origin + " jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n", false},
		"a line that is no signature": {"witness.example/w AAAA\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			log := newLog(t)
			log.grow(t, 3)
			files := make(fstest.MapFS)
			log.copyTo(t, files)
			files[tiles.Checkpoint].Data = append(files[tiles.Checkpoint].Data, c.more...)
			if _, err := ledger.Verify(t.Context(), tiles.New(files), log.vkey); (err == nil) != c.ok {
				t.Errorf("%v", err)
			}
		})
	}
}
