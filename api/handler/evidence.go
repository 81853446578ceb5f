package handler

import (
	"context"
	"io"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

const typeBlob = "application/octet-stream"

type digestInput struct {
	Digest string `path:"digest" pattern:"^sha256:[0-9a-f]{64}$" doc:"Digest of the content."`
}

type sizeInput struct {
	Size int64 `path:"size" minimum:"0" doc:"Number of entries."`
}

// registerEvidence adds what an auditor needs beside the ledger itself.
func (h *Handler) registerEvidence() {
	register(h, huma.Operation{
		OperationID: "get-evidence-checkpoint", Method: http.MethodGet, Path: api.PathEvidenceCheckpoint, Tags: []string{tagLedger},
		Summary:     "Read an earlier signed tree head",
		Description: "The oldest checkpoint of at least so many entries that the log signed.",
		Errors:      []int{http.StatusNotFound},
	}, func(ctx context.Context, in *sizeInput) (*body[api.Checkpoint], error) {
		return answerWith(h.checkpointAt(ctx, in.Size))
	})
	register(h, huma.Operation{
		OperationID: "get-evidence-blob", Method: http.MethodGet, Path: api.PathEvidenceBlob, Tags: []string{tagLedger},
		Summary:     "Read content that an entry names",
		Description: "Plans, releases, policies' bundles, inputs and decisions, SBOMs, provenance, recordings.",
		Errors:      []int{http.StatusNotFound},
		Responses: map[string]*huma.Response{"200": {
			Description: "The content", Content: map[string]*huma.MediaType{typeBlob: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}},
		}},
	}, func(_ context.Context, in *digestInput) (*huma.StreamResponse, error) {
		blob, err := h.content(digest.Digest(in.Digest))
		if err != nil {
			return nil, err
		}
		return stream(typeBlob, func(w io.Writer) error {
			defer blob.Close()
			_, err := io.Copy(w, blob)
			return err
		}), nil
	})
	register(h, huma.Operation{
		OperationID: "list-attachments", Method: http.MethodGet, Path: api.PathEvidenceImage, Tags: []string{tagLedger},
		Summary:     "List what is attached to an image",
		Description: "SBOMs and provenance, by the digest of the image's manifest.",
	}, func(_ context.Context, in *digestInput) (*body[api.Attachments], error) {
		found, err := h.config.Attached(digest.Digest(in.Digest))
		return answerWith(api.Attachments{Attachments: append([]api.Attachment{}, found...)}, err)
	})
	register(h, huma.Operation{
		OperationID: "record-export", Method: http.MethodPost, Path: api.PathEvidenceExports, Tags: []string{tagLedger},
		Summary:       "Record an export of evidence",
		Description:   "The ledger gets an entry of what was exported, and by whom. The answer has the log's signature of the manifest. The server does not see what was exported: what the signature says is that this manifest, and no other, was recorded there.",
		DefaultStatus: http.StatusCreated,
	}, func(ctx context.Context, in *struct{ Body api.ExportRequest }) (*body[api.ExportReceipt], error) {
		r := in.Body
		entry, note, err := h.config.Control.RecordExport(ctx, actorFrom(ctx), state.EvidenceExport{
			From: r.From, To: r.To, Scope: spec.EnvName(r.Env), Size: r.Size, Moves: r.Moves, Manifest: r.Manifest})
		return answerWith(api.ExportReceipt{Entry: uint64(entry), Note: string(note)}, err)
	})
}

// content opens what an entry names. Recordings are kept apart from all else.
func (h *Handler) content(d digest.Digest) (io.ReadCloser, error) {
	r, err := h.config.Control.Content(d)
	if fault.KindOf(err) == fault.NotFound && h.config.Recordings != nil {
		return h.config.Recordings(d)
	}
	return r, err
}

func (h *Handler) checkpointAt(ctx context.Context, size int64) (api.Checkpoint, error) {
	log := h.config.Control.Ledger()
	for note, err := range log.Checkpoints(ctx, size, log.Size()) {
		if err != nil {
			return api.Checkpoint{}, err
		}
		c, err := ledger.ParseCheckpoint(note, h.config.Verifier)
		if err != nil {
			return api.Checkpoint{}, err
		}
		return api.Checkpoint{Origin: c.Origin, Size: uint64(c.Size), RootHash: c.Root[:], Note: string(note), VKey: h.config.VKey}, nil
	}
	return api.Checkpoint{}, fault.Errorf(fault.NotFound, "the ledger has %d entries, not %d", log.Size(), size)
}
