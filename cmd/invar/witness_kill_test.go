package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/ledger/witness"
	"github.com/invarhq/invar/ledger/witness/serve"
	"github.com/invarhq/invar/store/storetest"
)

// TestWitnessThatIsKilledRemembersAllThatItCosigned kills a witness at any moment while a log asks it as fast as it can.
func TestWitnessThatIsKilledRemembersAllThatItCosigned(t *testing.T) {
	skey, vkey, err := ledger.GenerateKey("invar.example/ledger")
	if err != nil {
		t.Fatal(err)
	}
	signer, verifier, err := ledger.ParseKey(skey)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := storetest.NewDisk().Open()
	if err != nil {
		t.Fatal(err)
	}
	log, err := ledger.Open(t.Context(), disk, ledger.Config{Origin: signer.Name(), Signer: signer, Verifier: verifier})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	dir := filepath.Join(t.TempDir(), "w")
	old, total := int64(0), 0
	for life := range 12 {
		got, answered := liveAndDie(t, dir, vkey, log, old)
		total += answered
		s, err := serve.Read(dir)
		if err != nil {
			t.Fatalf("life %d: %v", life, err)
		}
		if len(s.Alarms) != 0 {
			t.Fatalf("life %d: alarms %+v", life, s.Alarms)
		}
		remembers := int64(0)
		if len(s.Logs) > 0 {
			remembers = s.Logs[0].Size
		}
		if remembers < got || remembers > log.Size() {
			t.Fatalf("life %d: it cosigned %d and remembers %d, of %d", life, got, remembers, log.Size())
		}
		old = remembers
	}
	if total == 0 {
		t.Error("nothing was cosigned in 12 lives")
	}
	t.Logf("%d cosignatures in 12 lives", total)
}

// liveAndDie runs a witness that is asked until it is killed. It returns the largest size that it answered with a cosignature for, and how many.
func liveAndDie(t *testing.T, dir, vkey string, log *ledger.Log, old int64) (largest int64, answered int) {
	t.Helper()
	said := new(output)
	c := exec.CommandContext(t.Context(), binary, "witness", "--data", dir, "--listen", "127.0.0.1:0", "--log", vkey)
	c.Stdout, c.Stderr = io.Discard, said
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	var addr string
	for deadline := time.Now().Add(20 * time.Second); addr == ""; time.Sleep(2 * time.Millisecond) {
		if m := listening.FindStringSubmatch(said.String()); m != nil {
			addr = m[1]
		} else if time.Now().After(deadline) {
			t.Fatalf("the witness did not start\n%s", said)
		}
	}
	timer := time.AfterFunc(time.Duration(rand.IntN(100))*time.Millisecond, func() { c.Process.Kill() })
	defer timer.Stop()
	for {
		if _, err := log.Append(t.Context(), func(next int64) ([][]byte, error) { return [][]byte{fmt.Append(nil, next)}, nil }); err != nil {
			t.Fatal(err)
		}
		size := log.Size()
		status, body, err := addCheckpoint(t.Context(), addr, log, old)
		if err != nil {
			return largest, answered // it is dead
		}
		if status != http.StatusOK || !strings.HasPrefix(body, "— ") {
			t.Fatalf("from %d to %d: status %d, %s", old, size, status, body)
		}
		old, largest = size, size
		answered++
	}
}

func addCheckpoint(ctx context.Context, addr string, log *ledger.Log, old int64) (int, string, error) {
	proof, err := log.ProveConsistency(ctx, old, log.Size())
	if err != nil {
		return 0, "", err
	}
	request := witness.Request{Old: old, Proof: proof, Checkpoint: log.Checkpoint()}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/add-checkpoint", bytes.NewReader(request.Marshal()))
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}
