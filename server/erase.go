package server

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/state"
)

// eraseRetry is the pause after a deletion that failed.
const eraseRetry = 5 * time.Second

// eraseContent deletes what the ledger says is erased, until ctx ends. The entry comes first: a server that dies before the deletion
// finds it when it starts again. Whatever is there again, because somebody uploaded it, is deleted again.
func (s *Server) eraseContent(ctx context.Context) error {
	for {
		now := s.control.State()
		changed := now.Changed()
		var retry <-chan time.Time
		for r := range now.Erasures() {
			if r.Status != state.Erased {
				continue
			}
			if err := s.erase(r.Digest); err != nil {
				s.log.Error("deleting what was erased", "digest", r.Digest, "entry", r.ErasedIn, "err", err)
				retry = time.After(eraseRetry)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-retry:
		}
	}
}

// erase deletes content wherever bodies live. It may be done again.
func (s *Server) erase(d digest.Digest) error {
	return errors.Join(s.content.Remove(d), s.recordings.remove(d))
}

// openRecording is recordings.open, but says of what was erased which entry did so.
func (s *Server) openRecording(d digest.Digest) (io.ReadCloser, error) {
	if err := s.control.Erased(d); err != nil {
		return nil, err
	}
	return s.recordings.open(d)
}
