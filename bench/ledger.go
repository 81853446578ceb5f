package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/store/sqlite"
)

const tesseraVersion = "v1.0.4" // as in go.mod

// benchLedger appends entries of 512 bytes, each signed and durable before its append returns, and verifies a large ledger.
func benchLedger(ctx context.Context, b *bench) error {
	b.note("peer: tessera %s, POSIX driver, in its fastest form (until the index is assigned) and until a signed checkpoint has the entry", tesseraVersion)
	for _, writers := range []int{1, 512} {
		if err := b.appends(ctx, writers); err != nil {
			return err
		}
	}
	if err := b.verifies(ctx, int64(b.pick(1_000_000, 50_000)), 512, 3000); err != nil {
		return err
	}
	return b.verifies(ctx, int64(b.pick(20_000, 5_000)), 1, 0)
}

// appends measures one number of writers: ours and the peer in turn.
func (b *bench) appends(ctx context.Context, writers int) error {
	var ours, latency, integrated, integratedLatency, published sample
	lasts := time.Duration(b.pick(2000, 300)) * time.Millisecond
	for round := range b.pick(5, 2) {
		dir := filepath.Join(b.dir, fmt.Sprintf("append-%d-%d", writers, round))
		rate, took, err := ourAppends(ctx, dir+"-invar", writers, lasts)
		if err != nil {
			return err
		}
		ours.add(rate)
		latency.add(took)
		if rate, took, err = tesseraAppends(ctx, dir+"-tessera", writers, lasts, false); err != nil {
			return err
		}
		integrated.add(rate)
		integratedLatency.add(took)
		if rate, _, err = tesseraAppends(ctx, dir+"-published", writers, lasts, true); err != nil {
			return err
		}
		published.add(rate)
	}
	what := fmt.Sprintf("append, %d writers", writers)
	if writers == 1 {
		what = "append, 1 writer"
	}
	ratio := ratios(ours, integrated).p50()
	b.row(what+", index assigned", ours.rate("/s"), integrated.rate("/s"), ratio, atLeast(ratio, 2, " ×"))
	b.row("  median time of one append", latency.rate("ms"), integratedLatency.rate("ms"), ratios(latency, integratedLatency).p50(), target{})
	b.row("  the same, in a published checkpoint", ours.rate("/s"), published.rate("/s"), ratios(ours, published).p50(), target{})
	return nil
}

func newKey() (note.Signer, note.Verifier, string, error) {
	secret, vkey, err := ledger.GenerateKey("bench.localhost/ledger")
	if err != nil {
		return nil, nil, "", err
	}
	signer, verifier, err := ledger.ParseKey(secret)
	return signer, verifier, vkey, err
}

// write lets the writers append for a while, and returns appends per second and the median time of one in milliseconds.
func write(writers int, lasts time.Duration, add func(entry []byte) error) (rate, median float64, err error) {
	var serial, done atomic.Int64
	var mu sync.Mutex
	var times sample
	var all sync.WaitGroup
	began := time.Now()
	for range writers {
		all.Go(func() {
			var own sample
			for time.Since(began) < lasts {
				entry := make([]byte, 512)
				binary.BigEndian.PutUint64(entry, uint64(serial.Add(1)))
				at := time.Now()
				if e := add(entry); e != nil {
					mu.Lock()
					err = e
					mu.Unlock()
					return
				}
				own.since(at)
				done.Add(1)
			}
			mu.Lock()
			times = append(times, own...)
			mu.Unlock()
		})
	}
	all.Wait()
	return float64(done.Load()) / time.Since(began).Seconds(), times.p50(), err
}

func ourAppends(ctx context.Context, dir string, writers int, lasts time.Duration) (float64, float64, error) {
	s, log, _, err := newLedger(ctx, dir)
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	defer s.Close()
	defer log.Close()
	return write(writers, lasts, func(entry []byte) error {
		_, err := log.Append(ctx, func(int64) ([][]byte, error) { return [][]byte{entry}, nil })
		return err
	})
}

func newLedger(ctx context.Context, dir string) (*sqlite.Store, *ledger.Log, string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, "", err
	}
	signer, verifier, vkey, err := newKey()
	if err != nil {
		return nil, nil, "", err
	}
	s, err := sqlite.Create(ctx, dir)
	if err != nil {
		return nil, nil, "", err
	}
	log, err := ledger.Open(ctx, s, ledger.Config{Origin: signer.Name(), Signer: signer, Verifier: verifier})
	return s, log, vkey, err
}

// tesseraAppends is the peer. With one writer a batch is one entry, as batches only wait then.
func tesseraAppends(ctx context.Context, dir string, writers int, lasts time.Duration, published bool) (float64, float64, error) {
	defer os.RemoveAll(dir)
	signer, _, _, err := newKey()
	if err != nil {
		return 0, 0, err
	}
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		return 0, 0, err
	}
	batch := uint(min(writers, 256))
	options := tessera.NewAppendOptions().WithCheckpointSigner(signer).WithBatching(batch, 5*time.Millisecond).WithCheckpointInterval(100 * time.Millisecond)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	appender, shutdown, reader, err := tessera.NewAppender(ctx, driver, options)
	if err != nil {
		return 0, 0, err
	}
	add := func(entry []byte) error {
		_, err := appender.Add(ctx, tessera.NewEntry(entry))()
		return err
	}
	if published {
		awaiter := tessera.NewPublicationAwaiter(ctx, reader.ReadCheckpoint, 5*time.Millisecond)
		add = func(entry []byte) error {
			_, _, err := awaiter.Await(ctx, appender.Add(ctx, tessera.NewEntry(entry)))
			return err
		}
	}
	rate, median, err := write(writers, lasts, add)
	if e := shutdown(ctx); err == nil {
		err = e
	}
	return rate, median, err
}

// verifies checks everything in a ledger: entries, hashes, checkpoints. Group is how many entries share a checkpoint: with many writers that
// is up to 512; an append that comes alone has one of its own, and its signature is what costs most to check.
func (b *bench) verifies(ctx context.Context, entries, group int64, limit float64) error {
	dir := filepath.Join(b.dir, fmt.Sprintf("verify-%d", group))
	s, log, vkey, err := newLedger(ctx, dir)
	if err != nil {
		return err
	}
	for log.Size() < entries && err == nil {
		_, err = log.Append(ctx, func(next int64) ([][]byte, error) {
			batch := make([][]byte, min(group, entries-next))
			for i := range batch {
				batch[i] = make([]byte, 256)
				binary.BigEndian.PutUint64(batch[i], uint64(next)+uint64(i))
			}
			return batch, nil
		})
	}
	log.Close()
	if err := errors.Join(err, s.Close()); err != nil {
		return err
	}
	runtime.GC()
	var took, processor sample
	for range b.pick(5, 2) {
		began, before := time.Now(), processorTime(os.Getpid())
		if err := verify(ctx, dir, vkey, entries); err != nil {
			return err
		}
		took.since(began)
		processor.took(processorTime(os.Getpid()) - before)
	}
	what := fmt.Sprintf("verify %s entries, %d a checkpoint", number(float64(entries)), group)
	t := target{}
	if limit > 0 {
		t = atMost(took.p50(), limit, " ms")
	}
	b.row(what, took.ms(), "", 0, t)
	b.row("  processor time of that, all cores", processor.ms(), "", 0, target{})
	return nil
}

func verify(ctx context.Context, dir, vkey string, entries int64) error {
	r, err := sqlite.OpenReadOnly(ctx, dir)
	if err != nil {
		return err
	}
	defer r.Close()
	report, err := ledger.Verify(ctx, r, vkey)
	if err == nil && report.Size != entries {
		err = fmt.Errorf("verified %d entries of %d", report.Size, entries)
	}
	return err
}
