package policy

import (
	_ "embed"
	"encoding/json"
	"slices"
)

// schema describes Input in JSON Schema, draft 2020-12. It is made from the types and their comments (see schema_test.go).
//
//go:embed input.schema.json
var schema []byte

// InputSchema returns the JSON Schema (draft 2020-12) of an Input.
func InputSchema() []byte { return slices.Clone(schema) }

// engineSchema is the schema for opa's type checker, which knows older drafts only; we use what they have in common.
func engineSchema() any {
	var s map[string]any
	if err := json.Unmarshal(schema, &s); err != nil {
		panic("policy: its embedded schema is not JSON: " + err.Error()) // the program text is wrong
	}
	delete(s, "$schema")
	delete(s, "$id")
	return s
}
