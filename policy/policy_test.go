package policy_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/version"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/policy"
	"github.com/invarhq/invar/policy/library"
	"github.com/invarhq/invar/spec"
)

func TestEngineIsTheVersionThatIsLinked(t *testing.T) {
	if got := "opa v" + version.Version; got != policy.Engine {
		t.Errorf("linked with %s, decisions say %s", got, policy.Engine)
	}
}

func TestDecide(t *testing.T) {
	for _, tc := range []struct {
		name, rego string
		want       []string
	}{
		{"nothing to say", `deny contains "no" if input.app == "other"`, []string{"allowed: true"}},
		{"a string", `deny contains "no root" if input.app == "shop"`, []string{"allowed: false", "deny p.deny: no root"}},
		{"a warning lets pass", `warn contains "hm" if true`, []string{"allowed: true", "warn p.warn: hm"}},
		{"a violation refuses", `violation contains {"msg": "bad"} if true`, []string{"allowed: false", "violation p.violation: bad"}},
		{"a suffix, as conftest has it", `deny_root contains "no" if true`, []string{"allowed: false", "deny p.deny_root: no"}},
		{"other names are not asked", "deny contains \"no\" if false\ndenied contains \"x\" if true\nwarning contains \"x\" if true", []string{"allowed: true"}},
		{"an object with id, subject, controls and details", `deny contains {"msg": "no", "id": "x", "subject": "component web", "controls": ["B", "A", "B"], "port": 80, "deep": {"a": [1]}} if true`,
			[]string{"allowed: false", `deny p.deny/x: no [component web] [A B] {"deep":{"a":[1]},"port":80}`}},
		{"what refuses comes first, sorted", "warn contains \"a\" if true\nviolation contains \"v\" if true\ndeny contains m if some m in [\"z\", \"b\"]",
			[]string{"allowed: false", "deny p.deny: b", "deny p.deny: z", "violation p.violation: v", "warn p.warn: a"}},
		{"the time is the input's", `deny contains input.now if time.parse_rfc3339_ns(input.now) > 0`, []string{"allowed: false", "deny p.deny: 2026-03-04T12:00:00Z"}},
		{"controls of annotations, package and rule", "# METADATA\n# scope: rule\n# custom:\n#   controls: [R]\ndeny contains \"no\" if true",
			[]string{"allowed: false", "deny p.deny: no [P R]"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			head := "package p\n"
			if strings.Contains(tc.rego, "METADATA") {
				head = "# METADATA\n# custom:\n#   controls: [P]\npackage p\n"
			}
			if diff := cmp.Diff(tc.want, lines(decided(t, compiled(t, head+tc.rego), sample()))); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestAMessageHasTheControlsOfTheRuleWithItsID(t *testing.T) {
	b := compiled(t, `package p

# METADATA
# scope: rule
# custom: {id: root, controls: [AC-6]}
deny contains {"msg": "runs as root", "id": "root"} if true

# METADATA
# scope: rule
# custom: {id: tag, controls: [CM-2]}
deny contains {"msg": "floats", "id": "tag"} if true

deny contains {"msg": "other", "id": "other"} if true
`)
	want := []string{"allowed: false", "deny p.deny/other: other [AC-6 CM-2]", "deny p.deny/root: runs as root [AC-6]", "deny p.deny/tag: floats [CM-2]"}
	if diff := cmp.Diff(want, lines(decided(t, b, sample()))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAPolicyThatFailsRefuses(t *testing.T) {
	for _, tc := range []struct{ name, rego, want string }{
		{"a function's error", `deny contains "no" if to_number(input.app) > 1`, `failure error: p.rego:2: to_number:`},
		{"a conflict", "deny contains x if x := f\nf := \"a\" if input.v == 1\nf := \"b\" if input.app == \"shop\"", "failure error: p.rego:"},
		{"a number", `deny contains 7 if true`, "failure result: rule p.deny: 7 is neither"},
		{"true", `deny contains true if true`, "failure result: rule p.deny: true is neither"},
		{"null", `deny contains null if true`, "failure result: rule p.deny: null is neither"},
		{"an object without msg", `deny contains {"message": "no"} if true`, `failure result: rule p.deny: {"message":"no"} is neither`},
		{"an id that is no string", `deny contains {"msg": "no", "id": 7} if true`, "failure result: rule p.deny:"},
		{"a warning that is none, too", `warn contains 7 if true`, "failure result: rule p.warn: 7 is neither"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := decided(t, compiled(t, "package p\n"+tc.rego), sample())
			if d.Allowed || d.Failure == nil || len(d.Results) > 0 {
				t.Fatalf("got %v, want a refusal", lines(d))
			}
			if got := lines(d)[1]; !strings.HasPrefix(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

const endless = `package p
deny contains "no" if {
	many := numbers.range(1, 1000)
	some a in many
	some b in many
	some c in many
	a + b + c < 0
}
`

func TestAPolicyThatTakesTooLongRefuses(t *testing.T) {
	limits := policy.DefaultLimits()
	limits.Time = 50 * time.Millisecond
	b := compiled(t, endless).Within(limits)
	d := decided(t, b, sample())
	if want := []string{"allowed: false", "failure timeout: the rules took more than 50ms"}; !cmp.Equal(lines(d), want) {
		t.Fatalf("got %v, want %v", lines(d), want)
	}
	if err := policy.Replay(t.Context(), d, b.Archive(), encoded(t, sample())); err != nil {
		t.Errorf("replaying: %v", err)
	}
}

func TestAnEndedCallerGetsNoDecision(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d, err := compiled(t, "package p\ndeny contains \"no\" if true").Decide(ctx, sample(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, %v", d, err)
	}
}

func TestAPolicyThatSaysTooMuchRefuses(t *testing.T) {
	limits := policy.DefaultLimits()
	limits.Results = 3
	d := decided(t, compiled(t, "package p\nwarn contains m if {\n\tsome n in numbers.range(1, 9)\n\tm := sprintf(\"%d\", [n])\n}").Within(limits), sample())
	want := []string{"allowed: false", "failure limit: the rules have 9 results, 3 are allowed", "warn p.warn: 1", "warn p.warn: 2", "warn p.warn: 3"}
	if diff := cmp.Diff(want, lines(d)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	limits = policy.DefaultLimits()
	limits.Bytes = 20
	d = decided(t, compiled(t, "package p\nwarn contains \"0123456789\" if true").Within(limits), sample())
	if d.Allowed || d.Failure == nil || d.Failure.Kind != policy.FailedLimit {
		t.Errorf("got %v", lines(d))
	}
}

func TestCompileSaysEverythingThatIsWrong(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"syntax, in two files", map[string]string{"a.rego": "package a\n\ndeny contains {", "b.rego": "package b\nwarn[x] { true }"}, []string{"a.rego:3: ", "b.rego:2: "}},
		{"the network and the clock", map[string]string{"a.rego": "package a\ndeny contains \"no\" if http.send({}).status == 1\nwarn contains \"x\" if {\n\ttime.now_ns() > 1\n}"},
			[]string{"a.rego:2: http.send is refused", "a.rego:4: time.now_ns is refused", "input.now"}},
		{"randomness", map[string]string{"a.rego": "package a\ndeny contains rand.intn(\"x\", 2) if uuid.rfc4122(\"x\")"}, []string{"rand.intn is refused", "uuid.rfc4122 is refused"}},
		{"the environment of the process", map[string]string{"a.rego": "package a\ndeny contains \"no\" if opa.runtime().env.HOME"}, []string{"opa.runtime is refused"}},
		{"a lookup, signing, certificates", map[string]string{"a.rego": "package a\ndeny contains \"no\" if { net.lookup_ip_addr(\"x\"); io.jwt.encode_sign({}, {}, {}); crypto.x509.parse_and_verify_certificates(\"x\") }"},
			[]string{"net.lookup_ip_addr is refused", "io.jwt.encode_sign is refused", "crypto.x509.parse_and_verify_certificates is refused"}},
		{"a function that is passed on", map[string]string{"a.rego": "package a\ndeny contains \"no\" if f(1) with f as time.now_ns\nf(x) := x"}, []string{"time.now_ns is refused"}},
		{"a zone of the machine", map[string]string{"a.rego": "package a\ndeny contains \"no\" if time.clock([1, \"Local\"])[0] > 18"}, []string{"a.rego:2: time.clock is refused with a time zone"}},
		{"what is refused beside what is misspelt", map[string]string{"a.rego": "package a\ndeny contains \"no\" if time.now_ns() > 1\nwarn contains \"x\" if input.enviroment"},
			[]string{"2 problems", "a.rego:2: time.now_ns is refused", "a.rego:3: undefined ref: input.enviroment"}},
		{"a misspelt field of the input", map[string]string{"a.rego": "package a\ndeny contains \"no\" if input.enviroment.name == \"prod\""}, []string{"a.rego:2: undefined ref: input.enviroment"}},
		{"a misspelt field of a component", map[string]string{"a.rego": "package a\ndeny contains \"no\" if {\n\tsome p in input.after.components\n\tp.component.usr == \"root\"\n}"}, []string{"a.rego:4: undefined ref: p.component.usr", "usr"}},
		{"nothing to ask", map[string]string{"a.rego": "package a\nallow if true"}, []string{"no rule deny, violation or warn"}},
		{"nothing at all", map[string]string{}, []string{"no rule deny, violation or warn"}},
		{"a deny that is a boolean", map[string]string{"a.rego": "package a\n\ndeny if true"}, []string{"a.rego:3: rule deny is not a set of messages"}},
		{"a deny that has a default", map[string]string{"a.rego": "package a\ndefault deny := false\nwarn contains \"x\" if true"}, []string{"a.rego:2: rule deny is not a set"}},
		{"a deny that is a function", map[string]string{"a.rego": "package a\ndeny(x) := x"}, []string{"a.rego:2: rule deny is not a set"}},
		{"a deny inside of a rule", map[string]string{"a.rego": "package a\nrules.deny contains \"x\" if true"}, []string{"a.rego:2: rule rules.deny is not a set"}},
		{"a deny with keys", map[string]string{"a.rego": "package a\ndeny.web contains \"x\" if true"}, []string{"a.rego:2: rule deny.web is not a set"}},
		{"files that opa would not read", map[string]string{"a.rego": "package a\ndeny contains \"x\" if true", "lists.json": "{}", ".hidden.rego": "package h", "../b.rego": "package b"},
			[]string{"lists.json: a policy has files", ".hidden.rego: opa passes over", "../b.rego: its path"}},
		{"data that is no object, or there twice", map[string]string{"a.rego": "package a\ndeny contains \"x\" if true", "data.json": `{"x": {"y": 1}}`, "x/data.json": `{"y": 2}`, "z/data.json": "[1]"},
			[]string{"x/data.json: another data.json has", "z/data.json: data is a JSON object"}},
		{"a rule where data is", map[string]string{"a.rego": "package a\ndeny contains \"x\" if true", "data.json": `{"a": {"deny": ["y"]}}`}, []string{"a.rego:", "conflict"}},
		{"a function that is not there", map[string]string{"a.rego": "package a\ndeny contains \"x\" if nosuch(1)"}, []string{"a.rego:2: undefined function nosuch"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := policy.Files{}
			for name, content := range tc.files {
				files[name] = []byte(content)
			}
			_, err := policy.Compile("baseline", files)
			if !errors.Is(err, fault.Invalid) {
				t.Fatalf("got %v, want fault.Invalid", err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got  %v\nwant %q in it", err, want)
				}
			}
		})
	}
}

func exception(id string) policy.Exception {
	return policy.Exception{ID: id, Rule: "p.deny/root", Environments: []string{"prod*"}, Ticket: "OPS-7", Reason: "until the base image is fixed",
		Expires: noon.Add(time.Hour), GrantedBy: "carol"}
}

func TestExceptions(t *testing.T) {
	b := compiled(t, `package p
deny contains {"msg": "runs as root", "id": "root", "subject": s} if some s in ["component db", "component web"]
warn contains {"msg": "hm", "id": "root"} if true
`)
	db, web, warn := "deny p.deny/root: runs as root [component db]", "deny p.deny/root: runs as root [component web]", "warn p.warn/root: hm"
	with := func(edit func(*policy.Exception)) policy.Exception {
		e := exception("E1")
		edit(&e)
		return e
	}
	for _, tc := range []struct {
		name       string
		exceptions []policy.Exception
		want       []string
		kept       int
	}{
		{"none", nil, []string{"allowed: false", db, web, warn}, 0},
		{"one for all", []policy.Exception{exception("E1")}, []string{"allowed: true", db + " exempted by E1", web + " exempted by E1", warn}, 1},
		{"one for one subject", []policy.Exception{with(func(e *policy.Exception) { e.Subject = "component db" })}, []string{"allowed: false", db + " exempted by E1", web, warn}, 1},
		{"expired", []policy.Exception{with(func(e *policy.Exception) { e.Expires = noon })}, []string{"allowed: false", db + " expired [E1]", web + " expired [E1]", warn}, 1},
		{"expired and another", []policy.Exception{exception("E2"), with(func(e *policy.Exception) { e.Expires = noon })},
			[]string{"allowed: true", db + " exempted by E2 expired [E1]", web + " exempted by E2 expired [E1]", warn}, 2},
		{"two of the same: the first by id", []policy.Exception{exception("E2"), exception("E1")}, []string{"allowed: true", db + " exempted by E1", web + " exempted by E1", warn}, 1},
		{"another environment", []policy.Exception{with(func(e *policy.Exception) { e.Environments = []string{"staging"} })}, []string{"allowed: false", db, web, warn}, 0},
		{"another rule", []policy.Exception{with(func(e *policy.Exception) { e.Rule = "p.deny" })}, []string{"allowed: false", db, web, warn}, 0},
		{"a warning needs none", []policy.Exception{with(func(e *policy.Exception) { e.Rule = "p.warn/root" })}, []string{"allowed: false", db, web, warn}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := decided(t, b, sample(), tc.exceptions...)
			if diff := cmp.Diff(tc.want, lines(d)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if len(d.Exceptions) != tc.kept {
				t.Errorf("the decision has %d exceptions, want %d", len(d.Exceptions), tc.kept)
			}
			if err := policy.Replay(t.Context(), d, b.Archive(), encoded(t, sample())); err != nil {
				t.Errorf("replaying: %v", err)
			}
		})
	}
}

func TestAnExceptionHasAllThatOneAsksFor(t *testing.T) {
	for name, edit := range map[string]func(*policy.Exception){
		"id": func(e *policy.Exception) { e.ID = "" }, "rule": func(e *policy.Exception) { e.Rule = " " },
		"ticket": func(e *policy.Exception) { e.Ticket = "" }, "reason": func(e *policy.Exception) { e.Reason = "" },
		"granted": func(e *policy.Exception) { e.GrantedBy = "" }, "environment": func(e *policy.Exception) { e.Environments = nil },
		"pattern": func(e *policy.Exception) { e.Environments = []string{"["} }, "time": func(e *policy.Exception) { e.Expires = time.Time{} },
	} {
		e := exception("E1")
		edit(&e)
		if err := e.Check(); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := compiled(t, "package p\ndeny contains \"x\" if true").Decide(t.Context(), sample(), []policy.Exception{e}); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: deciding with it: got %v", name, err)
		}
	}
	two := []policy.Exception{exception("E1"), exception("E1")}
	if _, err := compiled(t, "package p\ndeny contains \"x\" if true").Decide(t.Context(), sample(), two); !errors.Is(err, fault.Invalid) {
		t.Errorf("twice the same id: got %v", err)
	}
}

func TestReplayFindsWhatIsNotSo(t *testing.T) {
	b := compiled(t, "package p\ndeny contains {\"msg\": \"no\", \"id\": \"root\"} if input.app == \"shop\"\nwarn contains \"hm\" if true")
	in := encoded(t, sample())
	other := sample()
	other.App = "shop"
	other.Change.Reason = "another"
	for _, tc := range []struct {
		name   string
		edit   func(*policy.Decision)
		bundle []byte
		input  []byte
	}{
		{"a result that is left out", func(d *policy.Decision) { d.Results, d.Allowed = d.Results[1:], true }, nil, nil},
		{"a refusal that says allowed", func(d *policy.Decision) { d.Allowed = true }, nil, nil},
		{"another message", func(d *policy.Decision) { d.Results[0].Message = "fine" }, nil, nil},
		{"a kind made milder", func(d *policy.Decision) { d.Results[0].Kind, d.Allowed = policy.Warn, true }, nil, nil},
		{"an exception that was not there", func(d *policy.Decision) { d.Results[0].Exempted, d.Allowed = "E1", true }, nil, nil},
		{"an exception for another environment", func(d *policy.Decision) {
			e := exception("E1")
			e.Environments = []string{"staging"}
			d.Exceptions, d.Results[0].Exempted, d.Allowed = []policy.Exception{e}, "E1", true
		}, nil, nil},
		{"another time", func(d *policy.Decision) { d.At = d.At.Add(time.Hour) }, nil, nil},
		{"another query", func(d *policy.Decision) { d.Query = "{}" }, nil, nil},
		{"another output", func(d *policy.Decision) { d.Output = d.Input }, nil, nil},
		{"another bundle", nil, compiled(t, "package p\ndeny contains \"x\" if false").Archive(), nil},
		{"another input", nil, nil, encoded(t, other)},
		{"data of another bundle", func(d *policy.Decision) { d.Data = d.Input }, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := decided(t, b, sample())
			if err := policy.Replay(t.Context(), d, b.Archive(), in); err != nil {
				t.Fatalf("the true one: %v", err)
			}
			if tc.edit != nil {
				tc.edit(&d)
			}
			bundle, input := b.Archive(), in
			if tc.bundle != nil {
				bundle = tc.bundle
			}
			if tc.input != nil {
				input = tc.input
			}
			if err := policy.Replay(t.Context(), d, bundle, input); !errors.Is(err, fault.Corrupt) {
				t.Errorf("got %v, want fault.Corrupt", err)
			}
		})
	}
}

func TestADecisionOfAnotherEngineIsNotReplayedByThisOne(t *testing.T) {
	b := compiled(t, "package p\ndeny contains \"x\" if true")
	d := decided(t, b, sample())
	d.Engine = "opa v1.0.0"
	err := policy.Replay(t.Context(), d, b.Archive(), encoded(t, sample()))
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(fault.Hint(err), "opa eval") {
		t.Errorf("got %v, hint %q", err, fault.Hint(err))
	}
}

func libraryFiles(t testing.TB) policy.Files {
	t.Helper()
	files, err := policy.ReadDir(library.FS())
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestLibraryTestsPass(t *testing.T) {
	got, err := policy.Test(t.Context(), libraryFiles(t))
	if err != nil {
		t.Fatal(err)
	}
	packages := map[string]bool{}
	for _, o := range got {
		if !o.Passed {
			t.Errorf("%s:%d: %s: %s", o.File, o.Line, o.Name, o.Cause)
		}
		packages[strings.Split(o.Name, ".")[1]] = true
	}
	for name := range libraryFiles(t) {
		if strings.HasSuffix(name, "_test.rego") && !packages[strings.TrimSuffix(name, ".rego")] {
			t.Errorf("%s has no test that ran", name)
		}
	}
}

func TestLibraryAllowsASoundReleaseAndSaysWhatIsWrongWithAnother(t *testing.T) {
	b := bundle(t, libraryFiles(t))
	if got := lines(decided(t, b, sample())); !cmp.Equal(got, []string{"allowed: true"}) {
		t.Errorf("a sound release: %v", got)
	}
	bad := sample()
	c := &bad.After.Components[0]
	c.Replicas, c.Component.User, c.Component.Resources.MemoryBytes = 1, "", 0
	c.Component.Files[0].Mode, c.Component.Secrets[0].Mode = 0o4755, 0o444
	img := bad.Images["web"]
	img.Repository, img.Tag, img.Pinned, img.SBOM = "evil.example/web", "latest", false, &policy.SBOM{Digest: img.Manifest, Packages: 1, Complete: true, Licenses: []string{"AGPL-3.0-only"}}
	bad.Images = map[spec.ImageName]policy.Image{"web": img}
	d := decided(t, b, bad)
	var got []string
	for _, r := range d.Results {
		got = append(got, r.Rule)
		if len(r.Controls) == 0 {
			t.Errorf("%s has no controls", r.Rule)
		}
	}
	want := []string{"invar.allowed_licences.deny/allowed-licences", "invar.allowed_registries.deny/allowed-registries",
		"invar.file_modes.deny/secret-readable", "invar.file_modes.deny/set-user-id", "invar.no_floating_references.deny/newest",
		"invar.no_floating_references.deny/not-pinned", "invar.no_root_user.deny/no-root-user", "invar.production_replicas.deny/production-replicas",
		"invar.resource_limits.deny/resource-limits"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestLibraryAnnotatesEveryRuleWithControls(t *testing.T) {
	for name, content := range libraryFiles(t).WithoutTests() {
		if strings.HasSuffix(name, ".rego") && !strings.Contains(string(content), "#   controls: [\"") {
			t.Errorf("%s names no controls", name)
		}
	}
}

func TestTestSaysWhichTestFailsAndWhere(t *testing.T) {
	got, err := policy.Test(t.Context(), policy.Files{"p.rego": []byte("package p\ndeny contains \"x\" if input.app == \"shop\""),
		"p_test.rego": []byte("package p_test\nimport data.p\ntest_good if count(p.deny) == 1 with input as {\"app\": \"shop\"}\n\ntest_bad if {\n\tprint(\"seen\")\n\tcount(p.deny) == 7 with input as {\"app\": \"shop\"}\n}\ntodo_test_later if false")})
	if err != nil {
		t.Fatal(err)
	}
	want := []policy.Outcome{{Name: "p_test.test_bad", File: "p_test.rego", Line: 5, Cause: `line 7: count(p.deny) == 7 with input as {"app": "shop"}`, Output: "seen\n"},
		{Name: "p_test.test_good", File: "p_test.rego", Line: 3, Passed: true}, {Name: "p_test.todo_test_later", File: "p_test.rego", Line: 9, Skipped: true}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, err := policy.Test(t.Context(), policy.Files{"p.rego": []byte("package p\ndeny contains \"x\" if true"), "p_test.rego": []byte("package p_test\ntest_x if time.now_ns() > 1")}); !errors.Is(err, fault.Invalid) {
		t.Errorf("a test that reads the clock: got %v", err)
	}
}

func TestBundlesAreNamedByTheirContentAlone(t *testing.T) {
	files := libraryFiles(t)
	a, b := bundle(t, files), bundle(t, files.WithoutTests())
	if a.Digest() != b.Digest() {
		t.Error("tests change the digest")
	}
	c, err := policy.Compile("another name", files)
	if err != nil || a.Digest() != c.Digest() {
		t.Errorf("the name changes the digest: %v", err)
	}
	changed := maps.Clone(files)
	changed["data.json"] = append([]byte(" "), files["data.json"]...)
	d := bundle(t, changed)
	if a.Digest() == d.Digest() {
		t.Error("another file has the same digest")
	}
	if a.Data() != d.Data() {
		t.Error("white space changes the digest of the data")
	}
	again, err := policy.Open("baseline", a.Archive())
	if err != nil || again.Digest() != a.Digest() || again.Query() != a.Query() {
		t.Errorf("opened again: %v", err)
	}
}

func TestReadDirTakesWhatAPolicyHas(t *testing.T) {
	got, err := policy.ReadDir(fstest.MapFS{"a.rego": {Data: []byte("package a")}, "lib/b_test.rego": {Data: []byte("package b")}, "x/data.json": {Data: []byte("{}")}, "README.md": {}, "x/notes.txt": {}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a.rego", "lib/b_test.rego", "x/data.json"}, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestManyDecideAtOnce(t *testing.T) {
	b := bundle(t, libraryFiles(t))
	want := decided(t, b, sample())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				d, err := b.Decide(t.Context(), sample(), nil)
				if diff := cmp.Diff(want, d); err != nil || diff != "" {
					t.Errorf("%v\n%s", err, diff)
				}
			}
		})
	}
	wg.Wait()
}

// The order of what a policy is given changes nothing.
func TestDecisionsDependOnNothingButTheirArguments(t *testing.T) {
	files := policy.Files{"p.rego": []byte(`package p
deny contains {"msg": m, "id": "root", "subject": m} if {
	some p in input.after.components
	m := p.component.name
	p.replicas < 3
}`)}
	rapid.Check(t, func(t *rapid.T) {
		b, err := policy.Compile("baseline", files)
		if err != nil {
			t.Fatal(err)
		}
		in := sampleOf("prod", rapid.IntRange(1, 5).Draw(t, "components"))
		var exceptions []policy.Exception
		for _, id := range []string{"E1", "E2", "E3"} {
			e := exception(id)
			e.Subject = rapid.SampledFrom([]string{"", "web-000", "web-001"}).Draw(t, "subject")
			e.Expires = noon.Add(time.Duration(rapid.IntRange(-1, 1).Draw(t, "hours")) * time.Hour)
			exceptions = append(exceptions, e)
		}
		d, err := b.Decide(context.Background(), in, exceptions)
		if err != nil {
			t.Fatal(err)
		}
		other, err := b.Decide(context.Background(), in, rapid.Permutation(exceptions).Draw(t, "order"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d, other); diff != "" {
			t.Fatalf("another order of exceptions:\n%s", diff)
		}
		enc, err := policy.Encode(d)
		if err != nil {
			t.Fatal(err)
		}
		dec, err := policy.Decode(enc)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d, dec); diff != "" {
			t.Fatalf("decoded:\n%s", diff)
		}
		input, err := policy.EncodeInput(in)
		if err != nil {
			t.Fatal(err)
		}
		if err := policy.Replay(context.Background(), dec, b.Archive(), input); err != nil {
			t.Fatal(err)
		}
		for _, r := range d.Results {
			if r.Exempted == "" && d.Allowed {
				t.Fatal("allowed although a deny has no exception")
			}
		}
	})
}

func TestInputsAreCheckedBeforeTheyAreDecidedOn(t *testing.T) {
	for name, edit := range map[string]func(*policy.Input){
		"version": func(in *policy.Input) { in.V = 2 }, "time": func(in *policy.Input) { in.Now = in.Now.Add(time.Nanosecond) },
		"local time": func(in *policy.Input) { in.Now = in.Now.In(time.FixedZone("", 3600)) }, "phase": func(in *policy.Input) { in.Phase = "" },
		"kind": func(in *policy.Input) { in.Change.Kind = "x" }, "app": func(in *policy.Input) { in.App = "other" },
		"environment": func(in *policy.Input) { in.Environment.Name = "staging" }, "no release": func(in *policy.Input) { in.After = nil },
		"plan of another": func(in *policy.Input) { in.Plan.Env = "staging" },
	} {
		in := sample()
		edit(&in)
		if _, err := compiled(t, "package p\ndeny contains \"x\" if true").Decide(t.Context(), in, nil); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b := compiled(f, "package p\ndeny contains {\"msg\": \"no\", \"id\": \"root\", \"more\": 1} if true\nwarn contains \"hm\" if true")
	for _, d := range []policy.Decision{decided(f, b, sample()), decided(f, b, sample(), exception("E1"))} {
		enc, err := policy.Encode(d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(enc)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := policy.Decode(b)
		if err != nil {
			return
		}
		if again, err := policy.Encode(d); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s\nbecomes %s, %v", b, again, err)
		}
		if d.Allowed && len(d.Refusals()) > 0 {
			t.Error("allowed although a result refuses")
		}
	})
}

func FuzzDecodeInput(f *testing.F) {
	for _, in := range inputs() {
		f.Add(encoded(f, in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := policy.DecodeInput(b)
		if err != nil {
			return
		}
		if again, err := policy.EncodeInput(in); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s\nbecomes %s, %v", b, again, err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	f.Add(compiled(f, "package p\ndeny contains \"no\" if true").Archive())
	f.Add(bundle(f, policy.Files{"p.rego": []byte("package p\nwarn contains data.x.y if true"), "x/data.json": []byte(`{"y": "z"}`)}).Archive())
	f.Fuzz(func(t *testing.T, b []byte) {
		opened, err := policy.Open("baseline", b)
		if err != nil {
			return
		}
		if !bytes.Equal(opened.Archive(), b) {
			t.Error("the archive changes when it is opened")
		}
	})
}

func FuzzCompile(f *testing.F) {
	f.Add("package p\ndeny contains \"no\" if true", "{}")
	for name, content := range libraryFiles(f) {
		if strings.HasSuffix(name, ".rego") {
			f.Add(string(content), `{"settings": {}}`)
		}
	}
	f.Fuzz(func(t *testing.T, rego, data string) {
		b, err := policy.Compile("fuzzed", policy.Files{"p.rego": []byte(rego), "data.json": []byte(data)})
		if err != nil {
			if !errors.Is(err, fault.Invalid) {
				t.Errorf("got %v, want fault.Invalid", err)
			}
			return
		}
		if _, err := policy.Open("fuzzed", b.Archive()); err != nil {
			t.Errorf("its archive can't be opened: %v", err)
		}
	})
}

// BenchmarkDecide measures a decision of the starter library on a release of 200 components.
func BenchmarkDecide(b *testing.B) {
	policies, in := bundle(b, libraryFiles(b)), sampleOf("prod", 200)
	var took []time.Duration
	before := processorTime(b)
	for b.Loop() {
		start := time.Now()
		if d, err := policies.Decide(b.Context(), in, nil); err != nil || !d.Allowed {
			b.Fatal(lines(d), err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/1000/float64(len(took)), "cpu-ms/op")
}

// processorTime is what this process has used, of all processors: it means something on a busy machine, too.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCompile measures what is done once a bundle.
func BenchmarkCompile(b *testing.B) {
	files := libraryFiles(b)
	for b.Loop() {
		if _, err := policy.Compile("starter", files); err != nil {
			b.Fatal(err)
		}
	}
}
