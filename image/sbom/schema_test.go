package sbom_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/pb33f/jsonschema/v6"
)

// schema is CycloneDX's own, which its Go module carries (Apache-2.0).
var schema = sync.OnceValues(func() (*jsonschema.Schema, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/CycloneDX/cyclonedx-go").Output()
	if err != nil {
		return nil, err
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	const base = "http://cyclonedx.org/schema/"
	for url, file := range map[string]string{
		"bom-1.6.schema.json": "bom-1.6.schema.json", "spdx.schema.json": "spdx.schema.json", "jsf-0.82.schema.json": "jsf-0.82.schemax.json",
	} {
		raw, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "schema", file))
		if err != nil {
			return nil, err
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			return nil, err
		}
		if err := compiler.AddResource(base+url, doc); err != nil {
			return nil, err
		}
	}
	return compiler.Compile(base + "bom-1.6.schema.json")
})

// valid checks a document against the schema, and that every reference leads to a component. It returns the document.
func valid(t *testing.T, doc []byte) cdx.BOM {
	t.Helper()
	s, err := schema()
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(v); err != nil {
		t.Fatalf("the schema of CycloneDX 1.6 refuses it: %v\n%.2000s", err, doc)
	}
	var bom cdx.BOM
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&bom); err != nil {
		t.Fatal(err)
	}
	if bom.Components == nil {
		bom.Components = &[]cdx.Component{}
	}
	known := map[string]bool{bom.Metadata.Component.BOMRef: true}
	for _, c := range *bom.Components {
		if known[c.BOMRef] {
			t.Errorf("two components %s", c.BOMRef)
		}
		known[c.BOMRef] = true
	}
	refs := []string{}
	if bom.Dependencies == nil {
		bom.Dependencies = &[]cdx.Dependency{}
	}
	for _, d := range *bom.Dependencies {
		refs = append(refs, d.Ref)
		if d.Dependencies != nil {
			refs = append(refs, *d.Dependencies...)
		}
	}
	for _, c := range *bom.Compositions {
		for _, list := range []*[]cdx.BOMReference{c.Assemblies, c.Dependencies} {
			if list != nil {
				for _, r := range *list {
					refs = append(refs, string(r))
				}
			}
		}
	}
	for _, r := range refs {
		if !known[r] {
			t.Errorf("%s refers to nothing", r)
		}
	}
	return bom
}

func TestSchemaRefusesWhatIsNoBillOfMaterials(t *testing.T) {
	s, err := schema()
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(`{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"type":"library"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if s.Validate(v) == nil {
		t.Error("a component without a name is valid: the schema is not applied")
	}
}
