package attest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
)

var root, other = digest.Of([]byte("root")), digest.Of([]byte("other"))

func verification() Verification {
	v := Verification{Env: "prod", Generation: 3, Release: digest.Of([]byte("release")), From: time.Unix(1000, 0).UTC(), To: time.Unix(1001, 0).UTC(), Who: "alice",
		By: "example.com/ledger", Server: "1.0", Components: []Component{{Name: "web", Digest: digest.Of([]byte("web")), Root: root, Replicas: 2}}}
	v.Measured, v.Excluded = Scope()
	return v
}

func web(id string, edit ...func(*Instance)) Instance {
	i := Instance{ID: instance.ID(id), Component: "web", Digest: digest.Of([]byte("web")), State: Running, Expected: root, Found: root}
	for _, f := range edit {
		f(&i)
	}
	return i
}

func finding(n int) []instance.Finding {
	var out []instance.Finding
	for i := range n {
		out = append(out, instance.Finding{Kind: "port", Field: fmt.Sprint(i), Found: strings.Repeat("x", maxFindingBytes+9)})
	}
	return out
}

func TestTheResultIsThatOfTheWorstInstance(t *testing.T) {
	for name, c := range map[string]struct {
		edit   func(*Instance)
		result string // of the instance and of all
	}{
		"as released":   {func(*Instance) {}, AsReleased},
		"another root":  {func(i *Instance) { i.Found = other }, Differs},
		"a finding":     {func(i *Instance) { i.Findings = finding(1) }, Differs},
		"missing":       {func(i *Instance) { i.State, i.Found = Missing, "" }, Differs},
		"unknown":       {func(i *Instance) { i.State, i.Digest, i.Expected, i.Found = Unknown, "", "", "" }, Differs},
		"unreadable":    {func(i *Instance) { i.Found, i.Detail = "", "the host is away" }, NotMeasured},
		"half measured": {func(i *Instance) { i.Detail = "the host is away" }, NotMeasured},
		"waiting":       {func(i *Instance) { i.State = Waiting }, AsReleased},
	} {
		s := Verified(verification(), []Instance{web("web-b", c.edit), web("web-a")})
		v := s.Predicate
		if v.Result != c.result || v.Instances[1].Result != c.result || v.Instances[0].ID != "web-a" || (len(v.Bad()) == 0) != (c.result == AsReleased) {
			t.Errorf("%s: %s, %+v", name, v.Result, v.Instances)
		}
		if want := map[bool]int{true: 2, false: 1}[c.result == AsReleased && name != "waiting"]; v.Components[0].Good != want {
			t.Errorf("%s: %d good, want %d", name, v.Components[0].Good, want)
		}
		if err := Check(s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	failed := verification()
	failed.Detail = "the host is away"
	if got := Verified(failed, nil).Predicate.Result; got != NotMeasured {
		t.Errorf("nothing measured: %s", got)
	}
	if got := ResultOf([]Instance{{Result: Differs}, {Result: NotMeasured}}, ""); got != Differs {
		t.Errorf("one differs, one is not measured: %s", got)
	}
}

func TestFindingsAreBounded(t *testing.T) {
	all := finding(maxFindings + 5)
	v := Verified(verification(), []Instance{web("web-a", func(i *Instance) { i.Findings = all })}).Predicate
	i := v.Instances[0]
	if len(i.Findings) != maxFindings || i.More != 5 || len(i.Findings[0].Found) > maxFindingBytes+8 || len(all[0].Found) != maxFindingBytes+9 {
		t.Errorf("%d findings and %d more, of %d bytes", len(i.Findings), i.More, len(i.Findings[0].Found))
	}
}

func TestAStatementThatDoesNotGoTogetherIsFoundOut(t *testing.T) {
	for name, lie := range map[string]func(*Statement[Verification]){
		"an instance's result": func(s *Statement[Verification]) { s.Predicate.Instances[0].Result = AsReleased },
		"the whole's":          func(s *Statement[Verification]) { s.Predicate.Result = AsReleased },
		"a subject":            func(s *Statement[Verification]) { s.Subject[0] = Of("release", other) },
		"a subject less":       func(s *Statement[Verification]) { s.Subject = s.Subject[:1] },
		"its release":          func(s *Statement[Verification]) { s.Predicate.Release = other },
	} {
		s := Verified(verification(), []Instance{web("web-a", func(i *Instance) { i.Found = other })})
		if lie(&s); !errors.Is(Check(s), fault.Corrupt) {
			t.Errorf("%s: not found out", name)
		}
	}
}

func TestDecodeAcceptsOneSpellingOfOneType(t *testing.T) {
	good, err := Verified(verification(), []Instance{web("web-a")}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode[Verification](good, VerificationPredicate); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"a space":          append(bytes.Clone(good), ' '),
		"an unknown field": bytes.Replace(good, []byte(`"who":`), []byte(`"whom":`), 1),
		"another type":     bytes.Replace(good, []byte(`verification/v1`), []byte(`verification/v2`), 1),
		"no statement":     bytes.Replace(good, []byte(`Statement/v1`), []byte(`Statement/v0`), 1),
	} {
		if _, err := Decode[Verification](bad, VerificationPredicate); bytes.Equal(bad, good) || !errors.Is(err, fault.Corrupt) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	good, err := Verified(verification(), []Instance{web("web-a")}).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Decode[Verification](b, VerificationPredicate)
		if err != nil {
			return
		}
		if again, err := s.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted %q, wrote %q (%v)", b, again, err)
		}
	})
}
