package sqlite_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/store/sqlite"
)

// BenchmarkAppend appends durable, signed entries of 512 bytes.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := create(b, b.TempDir())
			defer s.Close()
			log := openLog(b, s, newKey(b))
			defer log.Close()
			entry := bytes.Repeat([]byte("x"), 512)
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var all sync.WaitGroup
			for range writers {
				all.Go(func() {
					for left.Add(-1) >= 0 {
						if _, err := log.Append(b.Context(), func(int64) ([][]byte, error) { return [][]byte{entry}, nil }); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

// numbered builds a ledger of n entries of 256 bytes in groups of 512.
func numbered(b *testing.B, dir string, n int64) (*sqlite.Store, *ledger.Log, key) {
	s, k := create(b, dir), newKey(b)
	log := openLog(b, s, k)
	for log.Size() < n {
		_, err := log.Append(b.Context(), func(next int64) ([][]byte, error) {
			entries := make([][]byte, min(512, n-next))
			for i := range entries {
				entries[i] = make([]byte, 256)
				binary.BigEndian.PutUint64(entries[i], uint64(next)+uint64(i))
			}
			return entries, nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	return s, log, k
}

// BenchmarkMillion reads a ledger of 1,000,000 entries of 256 bytes, which it builds once.
func BenchmarkMillion(b *testing.B) {
	const n = 1_000_000
	dir := b.TempDir()
	s, log, k := numbered(b, dir, n)
	b.Run("prove", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := log.ProveInclusion(b.Context(), int64(i)*7919%n, n); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("consistency", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := log.ProveConsistency(b.Context(), 1+int64(i)*7919%n, n); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			other, err := ledger.Open(b.Context(), s, k.config())
			if err != nil {
				b.Fatal(err)
			}
			other.Close()
		}
	})
	log.Close()
	s.Close()
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			report, err := verify(b, dir, k.vkey)
			if err != nil || report.Size != n || report.Hashes != tlog.StoredHashCount(n) {
				b.Fatalf("verified %+v, %v", report, err)
			}
		}
	})
}
