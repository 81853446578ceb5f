package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/csv"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/spec"
)

// Population says what an auditor draws a sample from, so that anybody can count it again: every head that moved in a part of a
// ledger. It is written as canonical JSON (RFC 8785) and has one spelling.
type Population struct {
	V      int           `json:"v"` // 1
	Log    string        `json:"log"`
	Filter string        `json:"filter"`
	Env    spec.EnvName  `json:"env,omitempty"`
	From   Tree          `json:"from"`  // entries from this size on
	To     Tree          `json:"to"`    // up to this size
	AsOf   Tree          `json:"as_of"` // outcomes are those that this tree tells
	Count  int           `json:"count"`
	Digest digest.Digest `json:"digest"` // of population.csv
}

// Tree is a size of a log, with the hash that commits to all entries before it.
type Tree struct {
	Size int64  `json:"size"`
	Root string `json:"root"` // base64
}

// Filter is how a population is chosen from the entries.
const Filter = "kind is change.apply, change.rollback, change.destroy or deploy.revert"

// Encode returns the one spelling.
func (p Population) Encode() ([]byte, error) {
	if p.V != 1 || p.Log == "" || p.From.Size < 0 || p.To.Size < p.From.Size || p.AsOf.Size < p.To.Size || p.Count < 0 {
		return nil, fault.Errorf(fault.Invalid, "encoding a population: it is none")
	}
	return digest.Canonical(p)
}

// DecodePopulation reads what Encode wrote, and nothing else. Its errors are of kind fault.Corrupt.
func DecodePopulation(b []byte) (Population, error) {
	var p Population
	if err := digest.DecodeExact(b, &p, 1<<20, func() ([]byte, error) { return p.Encode() }); err != nil {
		return Population{}, fault.As(fault.Corrupt, fmt.Errorf("reading a population: %w", err))
	}
	return p, nil
}

// columns of population.csv.
var columns = []string{"number", "entry", "id", "time", "env", "kind", "generation", "release", "plan", "change", "author", "approvers", "actor",
	"emergency", "freeze_override", "outcome", "reason"}

// table is population.csv: one line for each head that moved, numbered from 1.
func table(moves []Move) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	if err := w.Write(columns); err != nil {
		return nil, err
	}
	for i, m := range moves {
		if err := w.Write(m.row(i + 1)); err != nil {
			return nil, err
		}
	}
	w.Flush()
	return b.Bytes(), w.Error()
}

func (m Move) row(number int) []string {
	g := m.Generation
	author, change := m.Entry.Actor.Who(), ""
	var approvers []string
	if m.Change != nil {
		author, change = m.Change.Author.Who(), strconv.Itoa(int(m.Change.Change))
		for _, a := range m.Change.Approvals {
			approvers = append(approvers, a.By.Who())
		}
	}
	row := []string{strconv.Itoa(number), strconv.FormatInt(m.Index, 10), string(m.Entry.ID), m.Entry.Time.Format("2006-01-02T15:04:05.000Z"),
		string(g.Env), string(m.Entry.Kind()), strconv.Itoa(g.Number), string(g.Release), string(m.plan()), change, author, strings.Join(approvers, " "),
		m.Entry.Actor.Who(), strconv.FormatBool(g.Emergency), m.Override, string(g.Outcome), g.Reason}
	for i, cell := range row {
		row[i] = harmless(cell)
	}
	return row
}

// harmless keeps a spreadsheet from taking what somebody wrote for a formula: such a cell gets an apostrophe before it.
func harmless(cell string) string {
	if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) {
		return "'" + cell
	}
	return cell
}

func (m Move) plan() digest.Digest {
	if m.Change != nil {
		return m.Change.Plan
	}
	return m.Generation.Plan
}

// roots returns the hash of the tree at each of these sizes, ascending.
func roots(leaves [][]byte, sizes ...int64) ([]tlog.Hash, tlog.HashReader, error) {
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, n := range indexes {
			if n >= int64(len(hashes)) {
				return nil, fault.Errorf(fault.NotFound, "stored hash %d", n)
			}
			out[i] = hashes[n]
		}
		return out, nil
	})
	for i, leaf := range leaves {
		more, err := tlog.StoredHashes(int64(i), leaf, reader)
		if err != nil {
			return nil, nil, err
		}
		hashes = append(hashes, more...)
	}
	out := make([]tlog.Hash, len(sizes))
	for i, n := range sizes {
		h, err := tlog.TreeHash(n, reader)
		if err != nil {
			return nil, nil, err
		}
		out[i] = h
	}
	return out, reader, nil
}

// Sample draws n different numbers of 1 to count, by a seed that nobody chose who knew the population:
//
//	the block with number i is SHA-256(seed || 0x00 || digest of the population as "sha256:…" || 0x00 || i as 8 bytes, big-endian), i from 0;
//	its first 8 bytes, big-endian, are x;
//	x is passed over when it is not below the largest multiple of count that 2^64 has, so that no number is more likely than another;
//	else the number is x mod count + 1, and is passed over when it was drawn before.
//
// The numbers are in the order of their drawing. A sample of more than there are is all of them, in their order.
func Sample(seed string, population digest.Digest, count, n int) []int {
	if n >= count {
		out := make([]int, count)
		for i := range out {
			out[i] = i + 1
		}
		return out
	}
	limit := -uint64(count) % uint64(count) // 2^64 mod count: that many values at the top are passed over
	var out []int
	for i := uint64(0); len(out) < n; i++ {
		block := sha256.Sum256(binary.BigEndian.AppendUint64(slices.Concat([]byte(seed), []byte{0}, []byte(population), []byte{0}), i))
		x := binary.BigEndian.Uint64(block[:8])
		if limit != 0 && x >= -limit {
			continue
		}
		if k := int(x%uint64(count)) + 1; !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

// Algorithm says how Sample draws, for whoever wants to do it again.
const Algorithm = `block(i) = SHA-256(seed, 0x00, population digest, 0x00, i as 8 bytes big-endian), i = 0, 1, 2 …; x = its first 8 bytes, big-endian;
x is passed over if x >= 2^64 - (2^64 mod count), or if x mod count + 1 was drawn before; else it draws x mod count + 1`

// proofOf returns the proof that a tree of the checkpoint has an entry.
func proofOf(i, size int64, r tlog.HashReader, checkpoint []byte) ([]byte, error) {
	p, err := tlog.ProveRecord(size, i, r)
	if err != nil {
		return nil, err
	}
	return ledger.FormatProof(i, p, checkpoint), nil
}

// ReadPopulation reads the population of a bundle, and compares its table with what its statement says. It takes the bundle's word for the
// rest: Verify counts it again. Its errors are of kind fault.Invalid where there is none, else fault.Corrupt.
func ReadPopulation(fsys fs.FS) (p Population, header []string, rows [][]string, err error) {
	statement, err := fs.ReadFile(fsys, FileStatement)
	if err != nil {
		return p, nil, nil, fault.As(fault.Invalid, fmt.Errorf("reading a population: %w", err))
	}
	if p, err = DecodePopulation(statement); err != nil {
		return p, nil, nil, err
	}
	raw, err := fs.ReadFile(fsys, FilePopulation)
	if err != nil {
		return p, nil, nil, fault.As(fault.Corrupt, fmt.Errorf("reading a population: %w", err))
	}
	if got := digest.Of(raw); got != p.Digest {
		return p, nil, nil, fault.Errorf(fault.Corrupt, "%s is %s; %s says %s", FilePopulation, got, FileStatement, p.Digest)
	}
	all, err := csv.NewReader(bytes.NewReader(raw)).ReadAll()
	if err != nil || len(all) != p.Count+1 {
		return p, nil, nil, fault.Errorf(fault.Corrupt, "%s does not have the %d lines that %s says: %v", FilePopulation, p.Count, FileStatement, err)
	}
	return p, all[0], all[1:], nil
}

// WriteRows writes rows of a population as CSV.
func WriteRows(w io.Writer, header []string, rows [][]string) error {
	out := csv.NewWriter(w)
	if err := out.WriteAll(append([][]string{header}, rows...)); err != nil {
		return fmt.Errorf("writing rows: %w", err)
	}
	return nil
}
