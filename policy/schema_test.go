package policy_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/policy"
)

var update = flag.Bool("update", false, "write generated files again")

// The published schema and the embedded one say what the types say.
func TestInputSchemaUpToDate(t *testing.T) {
	g := generator{comments: readComments(t, ".", "../change", "../release", "../platform"), defs: map[string]any{}}
	root := g.object(reflect.TypeFor[policy.Input]())
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "What an invar policy decides on (input)"
	root["$defs"] = g.defs
	raw, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want := append(raw, '\n')
	for _, file := range []string{"input.schema.json", "../docs/policy-input.schema.json"} {
		if *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is stale; run: go test ./policy -run UpToDate -update (%v)", file, err)
		}
	}
}

func compiledSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(policy.InputSchema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("input.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("input.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func validate(t *testing.T, s *jsonschema.Schema, b []byte) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(v)
}

func TestInputsSatisfyTheirSchema(t *testing.T) {
	s := compiledSchema(t)
	for name, in := range inputs() {
		if err := validate(t, s, encoded(t, in)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSchemaRefusesWhatAnInputCannotBe(t *testing.T) {
	s := compiledSchema(t)
	sound := string(encoded(t, sample()))
	for _, tc := range []struct{ name, old, new string }{
		{"an unknown field", `"phase":`, `"fase":1,"phase":`},
		{"an unknown phase", `"phase":"request"`, `"phase":"later"`},
		{"a number as text", `"replicas":2`, `"replicas":"2"`},
		{"a missing app", `"app":"shop","change"`, `"change"`},
		{"a digest that is none", `"manifest":"sha256:`, `"manifest":"md5:`},
	} {
		broken := strings.Replace(sound, tc.old, tc.new, 1)
		if broken == sound {
			t.Fatalf("%s: %s is not in %s", tc.name, tc.old, sound)
		}
		if validate(t, s, []byte(broken)) == nil {
			t.Errorf("%s is accepted", tc.name)
		}
	}
}

// generator makes a schema of Go types.
type generator struct {
	comments map[string]string // "policy.Input.Now": its comment
	defs     map[string]any
}

func (g generator) schema(t reflect.Type) map[string]any {
	values := map[reflect.Type][]any{
		reflect.TypeFor[policy.Phase]():      {policy.PhasePlan, policy.PhaseRequest, policy.PhaseApply},
		reflect.TypeFor[policy.ChangeKind](): {policy.Apply, policy.Rollback, policy.Destroy, policy.Fork},
		reflect.TypeFor[policy.ImageKind]():  {policy.KindRef, policy.KindGo, policy.KindLayers, policy.KindDebian},
		reflect.TypeFor[change.Action]():     {change.Add, change.Replace, change.Remove},
		reflect.TypeFor[change.How]():        {change.Beside, change.StopThenStart},
	}
	switch {
	case t == reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[digest.Digest]():
		return map[string]any{"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}
	case values[t] != nil:
		return map[string]any{"type": "string", "enum": values[t]}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return g.schema(t.Elem())
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Int, reflect.Int64, reflect.Uint32:
		return map[string]any{"type": "integer"}
	case reflect.Slice:
		return map[string]any{"type": "array", "items": g.schema(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": g.schema(t.Elem())}
	case reflect.Struct:
		if _, ok := g.defs[t.String()]; !ok {
			g.defs[t.String()] = nil // it may hold itself
			g.defs[t.String()] = g.object(t)
		}
		return map[string]any{"$ref": "#/$defs/" + t.String()}
	}
	panic("no schema for " + t.String())
}

func (g generator) object(t reflect.Type) map[string]any {
	properties, required := map[string]any{}, []string{}
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		p := g.schema(f.Type)
		if c := g.comments[t.String()+"."+f.Name]; c != "" {
			p["description"] = c
		}
		properties[name] = p
		if !strings.Contains(options, "omit") {
			required = append(required, name)
		}
	}
	out := map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false}
	if c := g.comments[t.String()]; c != "" {
		out["description"] = c
	}
	return out
}

// readComments reads the comments of types and of their fields: above a field, or behind it.
func readComments(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	out := map[string]string{}
	text := func(c ...*ast.CommentGroup) string {
		for _, g := range c {
			if s := strings.Join(strings.Fields(g.Text()), " "); s != "" {
				return s
			}
		}
		return ""
	}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				d, ok := n.(*ast.GenDecl)
				if !ok {
					return true
				}
				for _, s := range d.Specs {
					spec, ok := s.(*ast.TypeSpec)
					if !ok {
						continue
					}
					name := fmt.Sprintf("%s.%s", f.Name.Name, spec.Name.Name)
					out[name] = text(spec.Doc, d.Doc)
					if st, ok := spec.Type.(*ast.StructType); ok {
						for _, field := range st.Fields.List {
							for _, id := range field.Names {
								out[name+"."+id.Name] = text(field.Doc, field.Comment)
							}
						}
					}
				}
				return true
			})
		}
	}
	return out
}
