package evidence

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"

	"github.com/invarhq/invar/fault"
)

// envelope is a DSSE envelope (https://github.com/secure-systems-lab/dsse).
type envelope struct {
	PayloadType string `json:"payloadType"`
	Payload     []byte `json:"payload"`
	Signatures  []struct {
		Sig []byte `json:"sig"`
	} `json:"signatures"`
}

// openEnvelope returns what is in the envelope, if the key has signed it.
func openEnvelope(raw []byte, key ed25519.PublicKey) (payload []byte, err error) {
	var e envelope
	if err := json.Unmarshal(raw, &e); err != nil {
		return nil, fault.Errorf(fault.Corrupt, "it is no DSSE envelope: %w", err)
	}
	signed := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(e.PayloadType), e.PayloadType, len(e.Payload), e.Payload)
	for _, s := range e.Signatures {
		if ed25519.Verify(key, signed, s.Sig) {
			return e.Payload, nil
		}
	}
	return nil, fault.Errorf(fault.Denied, "it is not signed with the log's key")
}
