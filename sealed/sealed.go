// Package sealed encrypts to age recipients (https://age-encryption.org/v1): what it wrote can be read with `age -d -i KEY` by
// whoever has the key of one of them, and by nobody else, this server included.
package sealed

import (
	"fmt"
	"io"
	"strings"

	"filippo.io/age"

	"github.com/invarhq/invar/fault"
)

// Type is the media type of what Encrypt writes.
const Type = "application/age"

// ParseRecipients checks recipients, each as age prints it ("age1…"), post-quantum ones ("age1pq1…") included.
func ParseRecipients(texts []string) ([]age.Recipient, error) {
	var all []age.Recipient
	for _, text := range texts {
		list, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil {
			return nil, fault.As(fault.Invalid, fmt.Errorf("recipient %q: %w", text, err))
		}
		all = append(all, list...)
	}
	return all, nil
}

// Encrypt returns a writer that encrypts to the recipients while it is written to. Its Close completes what w gets, and leaves w open.
func Encrypt(w io.Writer, recipients []string) (io.WriteCloser, error) {
	list, err := ParseRecipients(recipients)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fault.Errorf(fault.Invalid, "encrypting to nobody")
	}
	out, err := age.Encrypt(w, list...)
	if err != nil {
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	return out, nil
}
