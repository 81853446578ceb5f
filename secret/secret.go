// Package secret has the words for secrets: what they are called, how long they may be, and how a version's content is
// spelled before it is encrypted.
//
// A secret belongs to an environment and is written ENV/NAME. It has versions, which never change. A version is named by
// the digest of its ciphertext: the name tells nothing of the value, not even that two versions have the same one. A
// release pins a version of each secret that its components name; the value is only ever delivered to instances.
//
// # Content
//
// What is encrypted is
//
//	invar-secret-v1 ENV/NAME LENGTH LF
//
// followed by the LENGTH bytes of the value and as many zero bytes as make the whole a multiple of BlockBytes. So a
// ciphertext can't be passed off as another secret's, and its size tells the value's length only to the block.
package secret

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// Limits.
const (
	MaxBytes   = 64 << 10 // of a value
	BlockBytes = 512      // what a content's size is a multiple of
)

const magic = "invar-secret-v1 "

// Ref names a secret.
type Ref struct {
	Env  spec.EnvName
	Name string
}

// Parse reads ENV/NAME. Its errors are of kind fault.Invalid.
func Parse(s string) (Ref, error) {
	env, name, ok := strings.Cut(s, "/")
	r := Ref{spec.EnvName(env), name}
	if !ok {
		return Ref{}, fault.WithHint(fault.Errorf(fault.Invalid, "%q names no secret", s), "write ENV/NAME, as staging/db-password")
	}
	return r, r.Check()
}

func (r Ref) String() string { return string(r.Env) + "/" + r.Name }

// Check says what is wrong with the name. Its errors are of kind fault.Invalid.
func (r Ref) Check() error {
	if err := spec.CheckName(string(r.Env)); err != nil {
		return fmt.Errorf("environment of secret %s: %w", r, err)
	}
	if err := spec.CheckName(r.Name); err != nil {
		return fmt.Errorf("name of secret %s: %w", r, err)
	}
	return nil
}

// CheckValue says what is wrong with a value, without repeating it. Its errors are of kind fault.Invalid.
func CheckValue(value []byte) error {
	switch {
	case len(value) == 0:
		return fault.Errorf(fault.Invalid, "the value is empty")
	case len(value) > MaxBytes:
		return fault.Errorf(fault.Invalid, "the value has %d bytes, %d are allowed", len(value), MaxBytes)
	}
	return nil
}

// Seal returns the content of a version: what is to be encrypted. Its errors are of kind fault.Invalid.
func Seal(r Ref, value []byte) ([]byte, error) {
	if err := errors.Join(r.Check(), CheckValue(value)); err != nil {
		return nil, err
	}
	head := magic + r.String() + " " + strconv.Itoa(len(value)) + "\n"
	n := len(head) + len(value)
	content := make([]byte, (n+BlockBytes-1)/BlockBytes*BlockBytes)
	copy(content, head)
	copy(content[len(head):], value)
	return content, nil
}

// Open reads a content. The value is a part of it, not a copy. It accepts what Seal returns for the same name, and nothing else;
// its errors are of kind fault.Corrupt and hold nothing of the content.
func Open(r Ref, content []byte) ([]byte, error) {
	head, rest, ok := bytes.Cut(content, []byte("\n"))
	name, ok2 := bytes.CutPrefix(head, []byte(magic))
	named, length, ok3 := bytes.Cut(name, []byte(" "))
	n, err := strconv.Atoi(string(length))
	switch {
	case !ok || !ok2 || !ok3 || err != nil || strconv.Itoa(n) != string(length) || n < 1 || n > MaxBytes || n > len(rest):
		return nil, fault.Errorf(fault.Corrupt, "secret %s: what was decrypted is no secret", r)
	case string(named) != r.String():
		return nil, fault.Errorf(fault.Corrupt, "secret %s: what was decrypted is another secret", r)
	case len(content)%BlockBytes != 0 || len(rest)-n >= BlockBytes || len(bytes.Trim(rest[n:], "\x00")) > 0:
		return nil, fault.Errorf(fault.Corrupt, "secret %s: what was decrypted has no end", r)
	}
	return rest[:n:n], nil
}
