package instance

import (
	"fmt"
	"slices"
	"unicode/utf8"
)

// Finding is a measured difference between an instance and its release.
type Finding struct {
	Kind     string   `json:"kind"`            // what was looked at: "mount", "port" …; package drift lists them
	Field    string   `json:"field,omitempty"` // which of it
	Expected string   `json:"expected,omitempty"`
	Found    string   `json:"found,omitempty"`
	Controls []string `json:"controls,omitempty"` // of NIST SP 800-53, that ask to look
}

// maxKey bounds a key: entries list them.
const maxKey = 200

// Key tells a finding from others of the same instance, whatever the values are.
func (f Finding) Key() string { return cut(f.Kind+" "+f.Field, maxKey) }

// Cut returns the finding with its texts cut to n bytes each. Its key stays, unless n is small.
func (f Finding) Cut(n int) Finding {
	f.Field, f.Expected, f.Found = cut(f.Field, n), cut(f.Expected, n), cut(f.Found, n)
	return f
}

// cut cuts s to at most n bytes of whole characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	n = max(0, n-len("…"))
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// String says what differs, for people.
func (f Finding) String() string {
	what := f.Kind
	if f.Field != "" {
		what += " " + f.Field
	}
	switch {
	case f.Expected == "":
		return fmt.Sprintf("%s: %s, which was not released", what, f.Found)
	case f.Found == "":
		return fmt.Sprintf("%s: nothing instead of %s", what, f.Expected)
	}
	return fmt.Sprintf("%s: %s instead of %s", what, f.Found, f.Expected)
}

func sameFindings(a, b []Finding) bool {
	return slices.EqualFunc(a, b, func(x, y Finding) bool {
		return x.Kind == y.Kind && x.Field == y.Field && x.Expected == y.Expected && x.Found == y.Found
	})
}
