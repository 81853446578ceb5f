package digest_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// FIPS 180-4's one-block example, and the empty text.
const (
	ofABC   = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	ofEmpty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

func TestDigestsAreSHA256(t *testing.T) {
	if got := digest.Of([]byte("abc")); got != ofABC {
		t.Errorf("got %s, want %s", got, ofABC)
	}
	got, n, err := digest.OfReader(strings.NewReader(""))
	if got != ofEmpty || n != 0 || err != nil {
		t.Errorf("got %s of %d bytes, %v; want %s", got, n, err, ofEmpty)
	}
	if got := digest.Digest(ofABC).Short(); got != "ba7816bf8f01" {
		t.Errorf("short: got %s", got)
	}
}

func TestParseAcceptsOneSpelling(t *testing.T) {
	if d, err := digest.Parse(ofABC); err != nil || d.String() != ofABC {
		t.Errorf("got %s, %v", d, err)
	}
	for _, s := range []string{"", "abc", ofABC[7:], strings.ToUpper(ofABC), ofABC + "0", ofABC[:70], "sha512:" + ofABC[7:], " " + ofABC, "sha256:" + strings.Repeat("g", 64)} {
		if d, err := digest.Parse(s); !errors.Is(err, fault.Invalid) {
			t.Errorf("Parse(%q) = %s, %v; want an invalid digest", s, d, err)
		}
	}
}

// The example of RFC 8785, section 3.2.3: names are sorted by their UTF-16 code units.
func TestCanonicalJSONIsSorted(t *testing.T) {
	got, err := digest.Canonical(map[string]any{"\u20ac": "Euro Sign", "\r": "Carriage Return", "1": "One", "\u0080": "Control"})
	want := "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u0080\":\"Control\",\"\u20ac\":\"Euro Sign\"}"
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
}

func TestEqualValuesHaveOneName(t *testing.T) {
	type value struct {
		B int    `json:"b"`
		A string `json:"a,omitempty"`
	}
	one, err1 := digest.OfValue(value{B: 1})
	other, err2 := digest.OfValue(map[string]int{"b": 1})
	if one != other || err1 != nil || err2 != nil {
		t.Errorf("got %s (%v) and %s (%v), want one digest", one, err1, other, err2)
	}
	if _, err := digest.OfValue(func() {}); err == nil {
		t.Error("a func has a digest")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(ofABC)
	f.Add("sha256:")
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := digest.Parse(s); err == nil && d.String() != s {
			t.Errorf("%q was accepted as %q", s, d)
		}
	})
}
