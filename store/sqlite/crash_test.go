package sqlite_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/store/sqlite"
)

// The environment of a child that appends until it is killed.
const (
	childDir = "INVAR_TEST_LEDGER_DIR"
	childKey = "INVAR_TEST_LEDGER_KEY"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := appendUntilKilled(context.Background(), dir, os.Getenv(childKey)); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// appendUntilKilled appends from 32 goroutines, and prints each entry and its index when it is acknowledged.
func appendUntilKilled(ctx context.Context, dir, skey string) error {
	signer, verifier, err := ledger.ParseKey(skey)
	if err != nil {
		return err
	}
	s, err := sqlite.Open(ctx, dir)
	if err != nil {
		return err
	}
	log, err := ledger.Open(ctx, s, ledger.Config{Origin: origin, Signer: signer, Verifier: verifier})
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	for w := range 32 {
		all.Go(func() {
			for i := 0; ; i++ {
				e := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				at, err := log.Append(ctx, one(e))
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				os.Stdout.WriteString(fmt.Sprintf("%d %s\n", at, e)) // one write: a line is whole or missing
			}
		})
	}
	all.Wait()
	return nil
}

func TestKilledServerLosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	skey, vkey, err := ledger.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	if err := create(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	acknowledged := make(map[int64]string)
	for life := range 8 {
		before := len(acknowledged)
		runAndKill(t, dir, skey, 100+life*137, acknowledged)
		if len(acknowledged) == before {
			t.Fatalf("nothing was acknowledged in life %d", life)
		}
		report, err := verify(t, dir, vkey)
		if err != nil || report.Size < int64(len(acknowledged)) {
			t.Fatalf("after kill %d: %+v, %v; want at least %d entries", life, report, err, len(acknowledged))
		}
	}
	r, err := sqlite.OpenReadOnly(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for at, want := range acknowledged {
		for e, err := range r.Entries(t.Context(), at, at+1) {
			if err != nil || string(e) != want {
				t.Errorf("entry %d is %q, %v; it was acknowledged as %q", at, e, err, want)
			}
		}
	}
	t.Logf("%d entries were acknowledged in 8 lives", len(acknowledged))
}

// runAndKill runs a child until it has acknowledged n entries, kills it, and collects all that it acknowledged.
func runAndKill(t *testing.T, dir, skey string, n int, acknowledged map[int64]string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), self)
	child.Env = append(os.Environ(), childDir+"="+dir, childKey+"="+skey)
	child.Stderr = t.Output()
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		index, e, _ := strings.Cut(lines.Text(), " ")
		at, err := strconv.ParseInt(index, 10, 64)
		if err != nil {
			t.Errorf("the child wrote %q", lines.Text())
			continue
		}
		acknowledged[at] = e
		if n--; n == 0 {
			child.Process.Kill()
		}
	}
	if err := child.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the child ended with %v, want killed", err)
	}
}
