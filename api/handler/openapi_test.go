package handler_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pb33f/jsonschema/v6"
	"github.com/pb33f/libopenapi/datamodel"

	"github.com/invarhq/invar/api"
)

var update = flag.Bool("update", false, "rewrite docs/openapi.json")

const documentFile = "../../docs/openapi.json"

func TestDocumentInRepositoryIsUpToDate(t *testing.T) {
	got, err := build(t).handler.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(documentFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(documentFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
		t.Errorf("docs/openapi.json is stale: go test ./api/handler -update (-file +served):\n%s", diff)
	}
}

// The document is what the OpenAPI 3.1 schema says that one is, and every reference in it leads somewhere.
func TestDocumentIsOpenAPI31(t *testing.T) {
	raw, err := build(t).handler.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	rules, err := jsonschema.UnmarshalJSON(strings.NewReader(datamodel.OpenAPI31SchemaData))
	if err != nil {
		t.Fatal(err)
	}
	const name = "https://spec.openapis.org/oas/3.1/schema"
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource(name, rules); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile(name)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(doc); err != nil {
		t.Errorf("%#v", err)
	}
	for _, ref := range regexp.MustCompile(`"\$ref": "([^"]*)"`).FindAllStringSubmatch(string(raw), -1) {
		target, ok := strings.CutPrefix(ref[1], "#/components/schemas/")
		if schemas := doc.(map[string]any)["components"].(map[string]any)["schemas"].(map[string]any); !ok || schemas[target] == nil {
			t.Errorf("reference %s leads nowhere", ref[1])
		}
	}
}

// document is the part of an OpenAPI document that the tests below look at.
type document struct {
	Paths map[string]map[string]struct {
		OperationID, Summary, Description string
		Tags                              []string
		Parameters                        []struct {
			Name, In, Description string
			Required              bool
		}
		Responses map[string]struct{ Description string }
	}
	Components struct {
		Schemas map[string]struct {
			Properties map[string]struct {
				Ref         string `json:"$ref"`
				Description string
			}
		}
	}
	Tags []struct{ Name string }
}

func readDocument(t *testing.T) document {
	t.Helper()
	raw, err := build(t).handler.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var d document
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// Every operation, parameter and field says what it is.
func TestEverythingIsDocumented(t *testing.T) {
	d := readDocument(t)
	if len(d.Paths) < 15 {
		t.Fatalf("only %d paths", len(d.Paths))
	}
	for path, item := range d.Paths {
		for method, op := range item {
			if op.OperationID == "" || op.Summary == "" || op.Description == "" || len(op.Tags) != 1 {
				t.Errorf("%s %s lacks words: %+v", method, path, op)
			}
			for _, p := range op.Parameters {
				if p.Description == "" {
					t.Errorf("%s %s: parameter %s has no description", method, path, p.Name)
				}
			}
			for status, r := range op.Responses {
				if r.Description == "" {
					t.Errorf("%s %s: answer %s has no description", method, path, status)
				}
			}
			if _, ok := op.Responses["422"]; ok {
				t.Errorf("%s %s: 422 is never answered", method, path)
			}
		}
	}
	for name, s := range d.Components.Schemas {
		for field, p := range s.Properties {
			if p.Description == "" && p.Ref == "" {
				t.Errorf("%s.%s has no description", name, field)
			}
		}
	}
}

// The paths that package api names are those that the document has.
func TestPathsOfDocumentAreThoseOfPackageAPI(t *testing.T) {
	var got []string
	for path := range readDocument(t).Paths {
		got = append(got, path)
	}
	slices.Sort(got)
	want := []string{
		api.PathHealth, api.PathDiff, api.PathEnvironments, api.PathEnvironment, api.PathApply, api.PathDestroy, api.PathHistory, api.PathLogs, api.PathMeasure, api.PathDrift, api.PathDrifts,
		api.PathPlan, api.PathRollback, api.PathRollbackPlan, api.PathVolumes, api.PathVolumeDelete, api.PathEvents, api.PathCheckpoint, api.PathEntries, api.PathEntry, api.PathVerify, api.PathWitnesses, api.PathRelease,
		api.PathLogin, api.PathLoginSSH, api.PathLoginSession, api.PathServer, api.PathTokens, api.PathToken, api.PathWhoAmI, api.PathConfirm, api.PathFork, api.PathPromotion, api.PathReview, api.PathRevoke, api.PathAttest,
		api.PathSecrets, api.PathSecret, api.PathEvidenceBlob, api.PathEvidenceCheckpoint, api.PathEvidenceExports, api.PathEvidenceImage,
		api.PathErasures, api.PathErasure, api.PathErasureApprove,
		api.PathChanges, api.PathChange, api.PathApprove, api.PathReject, api.PathWithdraw, api.PathCarryOut,
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The reference is one page that needs nothing else: no script, no other host; and it has every operation and type.
func TestReferenceStandsAlone(t *testing.T) {
	w := build(t)
	rec := httptest.NewRecorder()
	req := httptest.NewRequest("GET", api.PathDocs, nil)
	req.Host = "127.0.0.1"
	w.handler.ServeHTTP(rec, req)
	page := rec.Body.String()
	if rec.Code != http.StatusOK || !strings.HasPrefix(rec.Header().Get("Content-Type"), "text/html") {
		t.Fatalf("got %d, %s", rec.Code, rec.Header().Get("Content-Type"))
	}
	for _, never := range []string{"<script", "src=", "@import", "url(", "ZgotmplZ"} {
		if strings.Contains(page, never) {
			t.Errorf("the page has %s", never)
		}
	}
	for _, link := range regexp.MustCompile(`href="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		target, inPage := strings.CutPrefix(link[1], "#")
		if inPage && !strings.Contains(page, `id="`+target+`"`) || !inPage && link[1] != api.PathOpenAPI {
			t.Errorf("link %s leads nowhere", link[1])
		}
	}
	d := readDocument(t)
	for path, item := range d.Paths {
		for _, op := range item {
			if !strings.Contains(page, `<h3 id="`+op.OperationID+`">`) || !bytes.Contains(rec.Body.Bytes(), []byte(path)) {
				t.Errorf("%s is missing", path)
			}
		}
	}
	for name := range d.Components.Schemas {
		if !strings.Contains(page, `id="schema-`+name+`"`) {
			t.Errorf("type %s is missing", name)
		}
	}
	if csp := rec.Header().Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("policy %q lets the page load things", csp)
	}
}
