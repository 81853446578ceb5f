package evidence_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	formats "github.com/transparency-dev/formats/proof"

	"github.com/invarhq/invar/evidence"
	"github.com/invarhq/invar/image/sbom"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/state"
)

// The tools here are not ours: OpenSSH, opa, coreutils, jq, Tessera, go-securesystemslib, x/mod, and NIST's schema. None of the tests skips.

// tools builds those that are no part of a system, and returns the directory that they are in.
var tools = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "stock-")
	if err != nil {
		return "", err
	}
	opa, err := exec.Command("go", "tool", "-n", "opa").Output()
	if err != nil {
		return "", err
	}
	if err := os.Symlink(strings.TrimSpace(string(opa)), filepath.Join(dir, "opa")); err != nil {
		return "", err
	}
	install := exec.Command("go", "install", "github.com/transparency-dev/tessera/cmd/fsck@v1.0.4")
	install.Env, install.Dir = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=-mod=mod", "GOWORK=off"), dir
	install.Stderr = os.Stderr
	return dir, install.Run()
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := tools(); err == nil && code >= 0 {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// isolated runs a shell command in a directory, and where this user may without any network.
func isolated(t *testing.T, dir, command string) (string, error) {
	t.Helper()
	bin, err := tools()
	if err != nil {
		t.Fatalf("building the tools: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args := []string{"bash", "-euo", "pipefail", "-c", command}
	if os.Geteuid() == 0 {
		args = append([]string{"unshare", "--net", "--"}, args...)
	}
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Dir, c.Env = dir, []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + dir}
	out, err := c.CombinedOutput()
	return string(out), err
}

// onDisk writes a bundle to a directory.
func onDisk(t *testing.T, fsys fstest.MapFS) string {
	t.Helper()
	dir := t.TempDir()
	for p, f := range fsys {
		at := filepath.Join(dir, filepath.FromSlash(p))
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// whole is a ledger with one of everything.
func whole(t *testing.T) *world {
	w := governed(t)
	_, key, err := ledger.PrivateKey(w.skey)
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := sbom.Sign([]byte(`{"subject":[{"name":"web"}]}`), key)
	if err != nil {
		t.Fatal(err)
	}
	w.attached = []evidence.Attachment{
		{Type: sbom.TypeEnvelope, Content: w.keep(envelope, "x").Digest},
		{Type: sbom.TypeSBOM, Content: w.keep([]byte(`{"bomFormat":"CycloneDX"}`), "x").Digest},
	}
	w.emergency()
	w.request(person("alice"), w.shop("prod", "4", 1)) // excepted, for a week
	w.approve("bob")
	w.approve("carol")
	w.later(time.Minute)
	w.carryOut("dave", w.shop("prod", "4", 1))
	w.measured("dave", func(*measurement) {})
	w.reproduced(state.Same, state.Same)
	w.later(80 * time.Hour)
	return w
}

var shell = regexp.MustCompile("(?s)```sh\n(.*?)```")

// Every command of VERIFY.md can be pasted, and says that all is well.
func TestTheCommandsOfVERIFYDoWhatTheySay(t *testing.T) {
	w := whole(t)
	fsys := w.export()
	if r := w.verify(fsys); !r.OK() {
		t.Fatal(lines(r.Findings))
	}
	dir := onDisk(t, fsys)
	ran := 0
	for _, block := range shell.FindAllStringSubmatch(string(fsys[evidence.FileGuide].Data), -1) {
		if strings.Contains(block[1], "invar ") || strings.Contains(block[1], "ajv ") {
			continue
		}
		ran++
		out, err := isolated(t, dir, block[1])
		if err != nil {
			t.Errorf("%s\n%v\n%s", block[1], err, out)
			continue
		}
		switch {
		case strings.Contains(block[1], "ssh-keygen"):
			if n := strings.Count(out, "Good \"invar-"); n != 4 {
				t.Errorf("%d good signatures, want 4\n%s", n, out)
			}
		case strings.Contains(block[1], "opa eval"):
			for line := range strings.Lines(block[1]) {
				if want := line[strings.LastIndex(line, " ")+1:]; !strings.Contains(out, strings.TrimSpace(want)) {
					t.Errorf("%s\nsaid %s", line, out)
				}
			}
		case strings.Contains(block[1], "fsck"):
			if !strings.Contains(out, "Completed ranges") || strings.Contains(out, "Invalid") || strings.Contains(out, "failed") {
				t.Errorf("%s", out)
			}
		case strings.Contains(block[1], "wc -l"):
			for line := range strings.Lines(block[1]) {
				if _, want, ok := strings.Cut(strings.TrimSpace(line), "# "); ok && !strings.Contains(out, want) {
					t.Errorf("%s\nsaid %s", line, out)
				}
			}
		case strings.Contains(block[1], "attestations"):
			if !strings.Contains(out, `{"environment":"prod","generation":3,"result":"as-released",`) || strings.Count(out, "\n") != 1 {
				t.Errorf("%s", out)
			}
		case strings.Contains(block[1], "payload"):
			if !strings.Contains(out, `"web"`) {
				t.Errorf("%s", out)
			}
		}
	}
	if ran != 8 {
		t.Errorf("ran %d blocks, want 8:\n%s", ran, fsys[evidence.FileGuide].Data)
	}
}

// OpenSSH refuses what is not what was signed, and who may not have signed it.
func TestOpenSSHRefusesWhatIsNotSo(t *testing.T) {
	w := governed(t)
	d := rules()
	d.Principals[1].SSHKeys = []string{keyLine("bob's new key")}
	w.later(time.Hour)
	w.define(person("root"), d)
	fsys := w.export()
	dir := onDisk(t, fsys)
	const good = "ssh-keygen -Y verify -f trust/allowed_signers -I bob -n invar-approval@v1 -Overify-time=20261102110000Z -s approvals/000009-approval-bob.sig < approvals/000009-approval-bob.statement"
	for _, c := range []struct {
		name, old, new string
		ok             bool
	}{
		{"as it is", "", "", true},
		{"another namespace", "invar-approval@v1", "invar-rejection@v1", false},
		{"another's signature", "000009-approval-bob.sig", "000010-approval-carol.sig", false},
		{"another statement", "000009-approval-bob.statement", "000010-approval-carol.statement", false},
		{"another person", "-I bob", "-I carol", false},
		{"after the key was taken away", "20261102110000Z", "20261103110000Z", false},
		{"before the key was given", "20261102110000Z", "20261101110000Z", false},
	} {
		out, err := isolated(t, dir, strings.Replace(good, c.old, c.new, 1))
		if (err == nil) != c.ok {
			t.Errorf("%s: %v\n%s", c.name, err, out)
		}
	}
}

// coreutils finds a file that was changed, and Tessera a leaf.
func TestOtherToolsFindWhatWasTouched(t *testing.T) {
	w := governed(t)
	fsys := w.export()
	for _, p := range files(fsys) {
		if strings.HasPrefix(p, "tile/entries/") {
			fsys[p] = &fstest.MapFile{Data: bytes.Replace(fsys[p].Data, []byte("2026"), []byte("2025"), 1)}
		}
	}
	dir := onDisk(t, fsys)
	if out, err := isolated(t, dir, "sha256sum --check --quiet SHA256SUMS"); err == nil || !strings.Contains(out, "tile/entries/") {
		t.Errorf("%v\n%s", err, out)
	}
	out, _ := isolated(t, dir, `timeout 20 fsck --storage_url="file://$PWD/" --public_key=trust/ledger.vkey --ui=false --logtostderr -v=1`)
	if !strings.Contains(out, "Invalid") && !strings.Contains(out, "failed") {
		t.Errorf("%s", out)
	}
}

// NIST's schema takes both OSCAL files, and refuses what they are not.
func TestOSCALIsValid(t *testing.T) {
	raw, err := os.ReadFile("testdata/oscal/oscal_complete_schema-1.2.2.json")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("oscal.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("oscal.json")
	if err != nil {
		t.Fatal(err)
	}
	w := whole(t)
	fsys := w.export()
	for _, p := range []string{evidence.FileResults, evidence.FileComponents} {
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(fsys[p].Data))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		broken, err := jsonschema.UnmarshalJSON(bytes.NewReader(bytes.Replace(fsys[p].Data, []byte(`"uuid"`), []byte(`"uid"`), 1)))
		if err != nil {
			t.Fatal(err)
		}
		if schema.Validate(broken) == nil {
			t.Errorf("%s: the schema takes anything", p)
		}
	}
	var results struct {
		Results struct {
			Results []struct {
				Findings []struct {
					Title  string
					Target struct{ Status struct{ State string } }
				}
			}
		} `json:"assessment-results"`
	}
	if err := json.Unmarshal(fsys[evidence.FileResults].Data, &results); err != nil {
		t.Fatal(err)
	}
	if fs := results.Results.Results[0].Findings; len(fs) == 0 || fs[0].Target.Status.State != "not-satisfied" {
		t.Errorf("the late review is no finding: %+v", fs)
	}
}

// logKey verifies as go-securesystemslib wants it.
type logKey struct{ ed25519.PublicKey }

func (k logKey) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(k.PublicKey, data, sig) {
		return os.ErrPermission
	}
	return nil
}
func (k logKey) KeyID() (string, error)   { return "", nil }
func (k logKey) Public() crypto.PublicKey { return k.PublicKey }

// go-securesystemslib takes the provenance, and not when it was touched.
func TestAnotherLibraryVerifiesTheProvenance(t *testing.T) {
	if n := verifiedByAnotherLibrary(t, "provenance/"); n != 1 {
		t.Errorf("%d envelopes", n)
	}
}

// The same of what the server attests: a measurement, and a reproduction.
func TestAnotherLibraryVerifiesTheAttestations(t *testing.T) {
	if n := verifiedByAnotherLibrary(t, "attestations/"); n != 2 {
		t.Errorf("%d envelopes", n)
	}
}

// verifiedByAnotherLibrary checks the envelopes of a directory, and returns how many there are.
func verifiedByAnotherLibrary(t *testing.T, dir string) int {
	t.Helper()
	w := whole(t)
	fsys := w.export()
	_, key, err := ledger.PublicKey(w.vkey)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range files(fsys) {
		if !strings.HasPrefix(p, dir) {
			continue
		}
		n++
		var e dsse.Envelope
		if err := json.Unmarshal(fsys[p].Data, &e); err != nil {
			t.Fatal(err)
		}
		v, err := dsse.NewEnvelopeVerifier(logKey{key})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(t.Context(), &e); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		e.Payload = "e30="
		if _, err := v.Verify(t.Context(), &e); err == nil {
			t.Errorf("%s: another payload is taken", p)
		}
	}
	return n
}

// A client of x/mod alone checks the proofs and the growth, from the files and the key.
func TestATlogClientChecksTheProofs(t *testing.T) {
	w := whole(t)
	fsys := w.export(func(r *evidence.Request) { r.From.Index = 5 })
	verifier, err := note.NewVerifier(w.vkey)
	if err != nil {
		t.Fatal(err)
	}
	leaves := bytes.Split(bytes.TrimSuffix(fsys[evidence.FileEntries].Data, []byte("\n")), []byte("\n"))
	n := 0
	for _, p := range files(fsys) {
		if !strings.HasSuffix(p, ".tlog-proof") {
			continue
		}
		n++
		var proof formats.TLogProof
		if err := proof.Unmarshal(fsys[p].Data); err != nil {
			t.Fatal(err)
		}
		signed, err := note.Open(proof.Checkpoint, note.VerifierList(verifier))
		if err != nil {
			t.Fatal(err)
		}
		tree, err := tlog.ParseTree([]byte(strings.Replace(signed.Text, origin, "go.sum database tree", 1)))
		if err != nil {
			t.Fatal(err)
		}
		var hashes tlog.RecordProof
		for _, h := range proof.Hashes {
			hashes = append(hashes, h)
		}
		leaf := leaves[proof.Index]
		if err := tlog.CheckRecord(hashes, tree.N, tree.Hash, int64(proof.Index), tlog.RecordHash(leaf)); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		if tlog.CheckRecord(hashes, tree.N, tree.Hash, int64(proof.Index), tlog.RecordHash(leaf[1:])) == nil {
			t.Errorf("%s proves another leaf", p)
		}
	}
	if n < 10 {
		t.Errorf("%d proofs", n)
	}
}

// Who was taken away from the definition is no allowed signer any more, from then on.
func TestAllowedSignersHaveTheTimesOfTheirKeys(t *testing.T) {
	w := governed(t)
	d := rules()
	d.Principals = append(d.Principals[:1:1], d.Principals[2:]...)
	d.Groups[0].Members = []platform.PrincipalName{"alice", "carol"}
	d.Grants[1].Principals = []platform.PrincipalName{"alice", "carol", "dave", "erin"}
	w.define(person("root"), d)
	w.later(time.Hour)
	w.define(person("root"), rules())
	text := string(w.export()[evidence.FileSigners].Data)
	var bob []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "bob ") {
			bob = append(bob, line)
		}
	}
	if len(bob) != 2 || !strings.Contains(bob[0], "valid-before") || strings.Contains(bob[1], "valid-before") || !strings.Contains(text, "alice ") {
		t.Errorf("%s", text)
	}
}
