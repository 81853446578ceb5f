package sshkey

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/fault"
)

// AllowedSigner is a line of an allowed_signers file (ssh-keygen(1), ALLOWED SIGNERS): who may sign with which key, for
// what, and when.
//
//	alice namespaces="invar-approval@v1",valid-after="20260101000000Z",valid-before="20270101000000Z" ssh-ed25519 AAAA…
//
// Names and namespaces are literal: OpenSSH would take *, ? and ! for patterns, so they are refused. Times are whole
// seconds in UTC, and both limits count as valid. ssh-keygen before 9.1 doesn't know the Z and refuses such a line.
type AllowedSigner struct {
	Principals  []string  // who; at least one
	Namespaces  []string  // for what; none is for anything
	ValidAfter  time.Time // zero: always was
	ValidBefore time.Time // zero: for ever
	Key         PublicKey
}

// timeLayout has the Z that says UTC; without it OpenSSH takes a time for local.
const timeLayout = "20060102150405Z"

// maxAllowedBytes bounds an allowed_signers file.
const maxAllowedBytes = 16 << 20

// FormatAllowedSigners returns the file, or fault.Invalid when a name can't be written in it.
func FormatAllowedSigners(signers []AllowedSigner) (string, error) {
	var b strings.Builder
	for _, s := range signers {
		line, err := s.line()
		if err != nil {
			return "", fmt.Errorf("allowed signer %s: %w", strings.Join(s.Principals, ","), err)
		}
		b.WriteString(line)
	}
	return b.String(), nil
}

func (s AllowedSigner) line() (string, error) {
	if err := s.check(); err != nil {
		return "", err
	}
	var options []string
	if len(s.Namespaces) > 0 {
		options = append(options, `namespaces="`+strings.Join(s.Namespaces, ",")+`"`)
	}
	if !s.ValidAfter.IsZero() {
		options = append(options, `valid-after="`+s.ValidAfter.UTC().Format(timeLayout)+`"`)
	}
	if !s.ValidBefore.IsZero() {
		options = append(options, `valid-before="`+s.ValidBefore.UTC().Format(timeLayout)+`"`)
	}
	fields := []string{strings.Join(s.Principals, ",")}
	if len(options) > 0 {
		fields = append(fields, strings.Join(options, ","))
	}
	return strings.Join(append(fields, s.Key.String()), " ") + "\n", nil
}

// check refuses what the file can't hold, or would hold as something else.
func (s AllowedSigner) check() error {
	switch {
	case len(s.Principals) == 0:
		return fault.Errorf(fault.Invalid, "nobody is named")
	case s.Key.IsZero():
		return fault.Errorf(fault.Invalid, "there is no key")
	case strings.HasPrefix(s.Principals[0], "#"):
		return fault.Errorf(fault.Invalid, "name %q begins as a comment does", s.Principals[0])
	}
	for _, name := range slices.Concat(s.Principals, s.Namespaces) {
		if err := checkName(name); err != nil {
			return err
		}
	}
	for _, t := range []time.Time{s.ValidAfter, s.ValidBefore} {
		if y := t.UTC().Year(); !t.IsZero() && (!t.Truncate(time.Second).Equal(t) || y < 1971 || y > 9999) {
			return fault.Errorf(fault.Invalid, "time %s: want whole seconds between 1971 and 9999", t)
		}
	}
	return nil
}

// checkName refuses names that OpenSSH would split or take for patterns.
func checkName(name string) error {
	special := func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`,*?!"\`, r) }
	if name == "" || strings.ContainsFunc(name, special) {
		return fault.Errorf(fault.Invalid, `name %q: want ASCII without spaces, and none of , * ? ! " \`, name)
	}
	return nil
}

// ParseAllowedSigners reads a file that FormatAllowedSigners wrote. What OpenSSH knows beside that (comments, patterns,
// certificate authorities, other spellings) is refused.
func ParseAllowedSigners(text string) ([]AllowedSigner, error) {
	if len(text) > maxAllowedBytes {
		return nil, fault.Errorf(fault.Invalid, "allowed signers: larger than %d bytes", maxAllowedBytes)
	}
	var signers []AllowedSigner
	n := 0
	for line := range strings.Lines(text) {
		n++
		s, err := parseAllowed(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("allowed signers, line %d: %w", n, err)
		}
		if again, err := s.line(); err != nil || again != line {
			return nil, fault.Errorf(fault.Invalid, "allowed signers, line %d: not as invar writes it", n)
		}
		signers = append(signers, s)
	}
	return signers, nil
}

func parseAllowed(line string) (AllowedSigner, error) {
	fields := strings.Split(line, " ")
	if len(fields) != 3 && len(fields) != 4 {
		return AllowedSigner{}, fault.Errorf(fault.Invalid, "want names, options and a key")
	}
	s := AllowedSigner{Principals: strings.Split(fields[0], ",")}
	if len(fields) == 4 {
		if err := s.parseOptions(fields[1]); err != nil {
			return AllowedSigner{}, err
		}
	}
	var err error
	s.Key, err = ParsePublicKey(strings.Join(fields[len(fields)-2:], " "))
	return s, err
}

// parseOptions reads NAME="VALUE",…; no value has a quote in it.
func (s *AllowedSigner) parseOptions(text string) error {
	for text != "" {
		name, rest, ok := strings.Cut(text, `="`)
		value, rest, closed := strings.Cut(rest, `"`)
		if !ok || !closed {
			return fault.Errorf(fault.Invalid, "option %.40q: want NAME=\"VALUE\"", text)
		}
		if err := s.option(name, value); err != nil {
			return err
		}
		text = strings.TrimPrefix(rest, ",")
	}
	return nil
}

func (s *AllowedSigner) option(name, value string) (err error) {
	switch name {
	case "namespaces":
		s.Namespaces = strings.Split(value, ",")
	case "valid-after":
		s.ValidAfter, err = time.Parse(timeLayout, value)
	case "valid-before":
		s.ValidBefore, err = time.Parse(timeLayout, value)
	default:
		return fault.Errorf(fault.Invalid, "option %.40q is not known", name)
	}
	return fault.As(fault.Invalid, err)
}

// VerifyAllowed checks, as ssh-keygen -Y verify does, that the principal may sign for the namespace at that time
// and has signed the message. Its errors are fault.Denied.
func VerifyAllowed(signers []AllowedSigner, principal, namespace string, at time.Time, message []byte, sig Signature) (Facts, error) {
	reason := fault.Errorf(fault.Denied, "no line names %s with key %s", principal, sig.Key().Fingerprint())
	for _, s := range signers {
		if s.Key != sig.Key() || !slices.Contains(s.Principals, principal) {
			continue
		}
		if err := s.allows(namespace, at); err != nil {
			reason = err
			continue
		}
		return sig.Verify(s.Key, namespace, message)
	}
	return Facts{}, fmt.Errorf("SSH signature of %s: %w", principal, reason)
}

// allows says why the line does not count for the namespace at that time, or nil.
func (s AllowedSigner) allows(namespace string, at time.Time) error {
	at = at.Truncate(time.Second)
	switch {
	case len(s.Namespaces) > 0 && !slices.Contains(s.Namespaces, namespace):
		return fault.Errorf(fault.Denied, "key %s may not sign for %q", s.Key.Fingerprint(), namespace)
	case !s.ValidAfter.IsZero() && at.Before(s.ValidAfter):
		return fault.Errorf(fault.Denied, "key %s is valid only from %s", s.Key.Fingerprint(), s.ValidAfter.UTC().Format(time.RFC3339))
	case !s.ValidBefore.IsZero() && at.After(s.ValidBefore):
		return fault.Errorf(fault.Denied, "key %s was valid until %s", s.Key.Fingerprint(), s.ValidBefore.UTC().Format(time.RFC3339))
	}
	return nil
}
