package control

import (
	"context"
	"fmt"
	"io"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/evidence"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/state"
)

// Content returns a reader of content that an entry names, but for recordings. It fails with fault.NotFound. A read that finds damage fails
// with fault.Corrupt.
func (s *Service) Content(d digest.Digest) (io.ReadCloser, error) {
	if err := s.Erased(d); err != nil {
		return nil, err
	}
	r, _, err := s.config.Blobs.Open(d)
	return r, err
}

// RecordExport records that evidence was exported, and returns the entry's index and the log's signature of the manifest (evidence.Receipt).
func (s *Service) RecordExport(ctx context.Context, by Actor, d state.EvidenceExport) (int64, []byte, error) {
	at, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		if d.Size > now.Size() {
			return nil, fault.Errorf(fault.Invalid, "the ledger has %d entries, not %d", now.Size(), d.Size)
		}
		return []state.Entry{s.entry(by, "", d)}, nil
	})
	if err != nil {
		return 0, nil, fmt.Errorf("recording an export: %w", err)
	}
	note, err := evidence.Receipt{Log: s.config.Origin, Entry: at, Manifest: d.Manifest}.Sign(s.config.Signer)
	return at, note, err
}

// WitnessAlarm records that a witness knows the ledger otherwise than it is, with what it answered.
func (s *Service) WitnessAlarm(ctx context.Context, d state.WitnessAlarm, evidence []byte) error {
	var body *state.Body
	if len(evidence) > 0 {
		d.Evidence = digest.Of(evidence)
		if err := s.put(ctx, d.Evidence, evidence); err != nil {
			return fmt.Errorf("storing what a witness answered: %w", err)
		}
		body = &state.Body{Digest: d.Evidence, Size: int64(len(evidence)), Type: "application/octet-stream"}
	}
	_, err := s.append(ctx, func(state.State) ([]state.Entry, error) {
		e := s.entry(operator, "", d)
		e.Body = body
		return []state.Entry{e}, nil
	})
	return err
}

// Keep makes the evidence of an instance durable among the content, before an entry names it, and names it.
func (s *Service) Keep(ctx context.Context, content []byte) (digest.Digest, error) {
	d := digest.Of(content)
	if err := s.put(ctx, d, content); err != nil {
		return "", fmt.Errorf("keeping evidence: %w", err)
	}
	return d, nil
}
