// Package digest names content by its SHA-256.
//
// A Digest is spelled as in the OCI image specification, "sha256:" and 64 lower-case
// hexadecimal digits, and in no other way. Values that are not bytes are named by the
// digest of their canonical JSON (RFC 8785), so that one value has one name on any machine.
package digest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/gowebpki/jcs"

	"github.com/invarhq/invar/fault"
)

const prefix = "sha256:"

// Digest is the name of some content: "sha256:" and 64 lower-case hexadecimal digits.
// The zero value names nothing.
type Digest string

// Of returns the digest of b.
func Of(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest(prefix + hex.EncodeToString(sum[:]))
}

// OfReader returns the digest of all that r holds, and its length in bytes.
func OfReader(r io.Reader) (Digest, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return "", n, err
	}
	return Digest(prefix + hex.EncodeToString(h.Sum(nil))), n, nil
}

// Canonical returns the canonical JSON of v (RFC 8785).
func Canonical(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding canonical JSON: %w", err)
	}
	out, err := jcs.Transform(raw)
	if err != nil {
		return nil, fmt.Errorf("encoding canonical JSON: %w", err)
	}
	return out, nil
}

// DecodeExact reads canonical JSON of at most limit bytes into a value, and accepts its one spelling only: unknown fields, anything
// after it, and whatever differs from what again, the value's encoder, gives are errors.
func DecodeExact(b []byte, into any, limit int, again func() ([]byte, error)) error {
	if len(b) > limit {
		return fmt.Errorf("%d bytes, %d are allowed", len(b), limit)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("there is more after it")
	}
	canonical, err := again()
	if err != nil {
		return err
	}
	if !bytes.Equal(canonical, b) {
		return fmt.Errorf("not in canonical form")
	}
	return nil
}

// OfValue returns the digest of the canonical JSON of v.
func OfValue(v any) (Digest, error) {
	b, err := Canonical(v)
	if err != nil {
		return "", err
	}
	return Of(b), nil
}

// Parse accepts the one spelling of a digest. Its errors are of kind fault.Invalid.
func Parse(s string) (Digest, error) {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok || len(rest) != 2*sha256.Size || strings.ToLower(rest) != rest {
		return "", fault.Errorf(fault.Invalid, "digest %q: want sha256: and 64 lower-case hexadecimal digits", s)
	}
	if _, err := hex.DecodeString(rest); err != nil {
		return "", fault.Errorf(fault.Invalid, "digest %q: %v", s, err)
	}
	return Digest(s), nil
}

// String returns the digest as Parse accepts it.
func (d Digest) String() string { return string(d) }

// Hex returns the 64 hexadecimal digits alone.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), prefix) }

// Short returns the first twelve hexadecimal digits, for people.
func (d Digest) Short() string {
	h := d.Hex()
	if len(h) > 12 {
		return h[:12]
	}
	return h
}
