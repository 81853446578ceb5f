package handler

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/state"
)

func (h *Handler) registerLedger() {
	register(h, huma.Operation{
		OperationID: "list-entries", Method: http.MethodGet, Path: api.PathEntries, Tags: []string{tagLedger},
		Summary:     "Read a part of the ledger",
		Description: "Entries come in the ledger's order, without their exact bytes. Go on at \"next\".",
	}, func(ctx context.Context, in *entriesInput) (*body[api.Entries], error) {
		return answerWith(h.entries(ctx, in))
	})
	register(h, huma.Operation{
		OperationID: "get-entry", Method: http.MethodGet, Path: api.PathEntry, Tags: []string{tagLedger},
		Summary:     "Prove an entry",
		Description: "One entry with its exact bytes, and the proof that the ledger holds it: against the newest checkpoint that a quorum of witnesses cosigned, or the newest of all where that does not hold it yet.",
	}, func(ctx context.Context, in *struct {
		Index int64 `path:"index" minimum:"0" doc:"Place in the ledger, from 0."`
	}) (*body[api.Proof], error) {
		return answerWith(h.prove(ctx, in.Index))
	})
	register(h, huma.Operation{
		OperationID: "get-checkpoint", Method: http.MethodGet, Path: api.PathCheckpoint, Tags: []string{tagLedger},
		Summary:     "Read the signed tree head",
		Description: "Keep it: a later ledger that does not begin with this one has been rewritten.",
	}, func(ctx context.Context, _ *struct{}) (*body[api.Checkpoint], error) {
		return answerWith(h.checkpoint())
	})
	register(h, huma.Operation{
		OperationID: "get-witnesses", Method: http.MethodGet, Path: api.PathWitnesses, Tags: []string{tagLedger},
		Summary:     "Read how the ledger stands with its witnesses",
		Description: "What each witness cosigned last, up to which entry a quorum holds, and alarms. The newest checkpoint with a quorum is also served as /ledger/checkpoint.cosigned.",
	}, func(ctx context.Context, _ *struct{}) (*body[api.Witnesses], error) {
		return answerWith(h.config.Witnesses(), nil)
	})
	register(h, huma.Operation{
		OperationID: "verify-ledger", Method: http.MethodPost, Path: api.PathVerify, Tags: []string{tagLedger},
		Summary:     "Check the whole ledger",
		Description: "The server reads every entry again and checks hashes, checkpoints and signatures. To check without trusting the server, read the tiles under /ledger/.",
	}, func(ctx context.Context, _ *struct{}) (*body[api.Verification], error) {
		return answerWith(h.verify(ctx))
	})
}

type entriesInput struct {
	From  int64  `query:"from" minimum:"0" doc:"Index of the first entry."`
	To    int64  `query:"to" minimum:"0" doc:"Index after the last entry; 0 or absent: the end."`
	Env   string `query:"env" maxLength:"63" doc:"Only entries of this environment."`
	Kind  string `query:"kind" maxLength:"63" doc:"Only entries of this kind; with a dot at the end, of every kind that begins so." example:"instance."`
	Limit int    `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"How many entries at most."`
}

func (in *entriesInput) takes(e state.Entry) bool {
	if in.Env != "" && string(e.Env) != in.Env {
		return false
	}
	kind := string(e.Kind())
	return in.Kind == "" || kind == in.Kind || strings.HasSuffix(in.Kind, ".") && strings.HasPrefix(kind, in.Kind)
}

func (h *Handler) entries(ctx context.Context, in *entriesInput) (api.Entries, error) {
	size := h.config.Control.Ledger().Size()
	to := size
	if in.To != 0 {
		to = min(in.To, size)
	}
	out := api.Entries{Size: uint64(size), Entries: []api.Entry{}, Next: uint64(min(in.From, size))}
	if in.From >= to {
		return out, nil
	}
	for e, err := range h.config.Control.Entries(ctx, in.From, to) {
		if err != nil {
			return out, err
		}
		if in.takes(e.Entry) {
			out.Entries = append(out.Entries, h.marked(entryOf(e)))
		}
		if out.Next = uint64(e.Index + 1); len(out.Entries) == in.Limit {
			break
		}
	}
	return out, nil
}

func (h *Handler) prove(ctx context.Context, index int64) (api.Proof, error) {
	log := h.config.Control.Ledger()
	e, err := h.config.Control.Entry(ctx, index)
	if err != nil {
		return api.Proof{}, err
	}
	text, err := h.proof(ctx, log, index)
	if err != nil {
		return api.Proof{}, err
	}
	_, c, err := ledger.CheckProof(text, e.Leaf, h.config.Verifier) // never hand out what does not hold
	if err != nil {
		return api.Proof{}, err
	}
	hashes, err := log.ProveInclusion(ctx, index, c.Size)
	if err != nil {
		return api.Proof{}, err
	}
	leaf := tlog.RecordHash(e.Leaf)
	out := api.Proof{
		Entry: h.marked(entryOf(e)), LeafHash: leaf[:], TreeSize: uint64(c.Size), RootHash: c.Root[:],
		Checkpoint: checkpointIn(text), TLogProof: string(text), Hashes: [][]byte{},
	}
	out.Entry.Leaf = e.Leaf
	for _, hash := range hashes {
		out.Hashes = append(out.Hashes, hash[:])
	}
	return out, nil
}

// proof returns the proof of an entry as text. With a checkpoint that a quorum cosigned, it shows to whoever trusts the
// witnesses that all others see the entry as well.
func (h *Handler) proof(ctx context.Context, log *ledger.Log, index int64) ([]byte, error) {
	if w := h.config.Witnesses(); w.QuorumSize > uint64(index) {
		return log.ProveIn(ctx, index, int64(w.QuorumSize), []byte(w.Cosigned))
	}
	return log.Prove(ctx, index)
}

// checkpointIn returns the signed note at the end of a proof: what follows its first empty line.
func checkpointIn(proof []byte) string {
	_, note, _ := strings.Cut(string(proof), "\n\n")
	return note
}

func (h *Handler) checkpoint() (api.Checkpoint, error) {
	note := h.config.Cosigned(h.config.Control.Ledger().Checkpoint())
	c, err := ledger.ParseCheckpoint(note, h.config.Verifier)
	if err != nil {
		return api.Checkpoint{}, err
	}
	return api.Checkpoint{Origin: c.Origin, Size: uint64(c.Size), RootHash: c.Root[:], Note: string(note), VKey: h.config.VKey}, nil
}

// verify checks every entry, hash and checkpoint of the ledger.
func (h *Handler) verify(ctx context.Context) (api.Verification, error) {
	begin := time.Now()
	report, err := ledger.Verify(ctx, h.config.Source, h.config.VKey)
	out := api.Verification{OK: err == nil, Size: uint64(report.Size), Origin: h.config.Verifier.Name(), Millis: time.Since(begin).Milliseconds()}
	damage, damaged := errors.AsType[*ledger.Damage](err)
	switch {
	case damaged:
		out.Problem = badSpotOf(damage)
	case err != nil:
		return api.Verification{}, err
	default:
		out.RootHash = report.Root[:]
	}
	return out, nil
}

func badSpotOf(d *ledger.Damage) *api.BadSpot {
	out := &api.BadSpot{Object: d.Object, Cause: d.Error()}
	if d.Object == "entry" {
		out.Index = new(uint64(d.First))
		if d.Last > d.First {
			out.Last = new(uint64(d.Last))
		}
	}
	return out
}

// Resources of the tiled log that change, relative to its prefix.
const (
	pathCheckpoint = "checkpoint"          // the newest, with the cosignatures that it has so far
	pathCosigned   = "checkpoint.cosigned" // the newest with a quorum
)

// resource returns a resource of the tiled log.
func (h *Handler) resource(ctx context.Context, path string) ([]byte, error) {
	if path == pathCosigned {
		w := h.config.Witnesses()
		if w.Cosigned == "" {
			return nil, fault.Errorf(fault.NotFound, "no checkpoint has a quorum of witnesses")
		}
		return []byte(w.Cosigned), nil
	}
	data, err := h.config.Control.Ledger().Tile(ctx, path)
	if err == nil && path == pathCheckpoint {
		data = h.config.Cosigned(data)
	}
	return data, err
}

// tile serves the ledger as tlog-tiles: https://c2sp.org/tlog-tiles.
func (h *Handler) tile(w http.ResponseWriter, r *http.Request) {
	path := r.PathValue("path")
	data, err := h.resource(r.Context(), path)
	if err != nil {
		if fault.KindOf(err) == fault.Invalid {
			err = fault.As(fault.NotFound, err) // a path of no tile
		}
		p := h.problem(r.Context(), "tile", err)
		writeProblem(w, p.(*api.Problem))
		return
	}
	if path == pathCheckpoint || path == pathCosigned {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-cache")
	} else {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	_, _ = w.Write(data) // the client has gone when this fails
}

// entryOf is an entry as it goes over the wire.
func entryOf(at control.Indexed) api.Entry {
	e := at.Entry
	out := api.Entry{
		Index: uint64(at.Index), ID: string(e.ID), Kind: string(e.Kind()), Time: e.Time, Actor: e.Actor.String(), Who: string(e.Actor.Principal), Auth: e.Actor.Auth, Env: string(e.Env),
		Reason: e.Reason, Outcome: e.Outcome, Data: dataOf(e),
	}
	for _, s := range e.Subject {
		out.Subjects = append(out.Subjects, api.Subject{Name: s.Name, Digest: s.Digest})
	}
	if e.Body != nil {
		out.Body = &api.Body{Digest: e.Body.Digest, SizeBytes: e.Body.Size, Type: e.Body.Type}
	}
	return out
}

// marked says of an entry whether its body was erased.
func (h *Handler) marked(e api.Entry) api.Entry {
	if e.Body == nil {
		return e
	}
	if err := h.config.Control.Erased(e.Body.Digest); err != nil {
		e.Body.Erased = err.Error()
	}
	return e
}

// dataOf is what is particular to the entry's kind, spelled as in its leaf. It was decoded from there, so it encodes.
func dataOf(e state.Entry) json.RawMessage {
	b, err := digest.Canonical(e.Data)
	if err != nil || string(b) == "{}" {
		return nil
	}
	return b
}
