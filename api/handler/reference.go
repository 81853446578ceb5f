package handler

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

//go:embed reference.html.tmpl
var referenceTemplate string

//go:embed reference.css
var referenceStyle string

// reference renders the OpenAPI document for people: one page without scripts that works offline.
func reference(doc *huma.OpenAPI) (http.Handler, error) {
	tmpl, err := template.New("reference").Parse(referenceTemplate)
	if err != nil {
		return nil, fmt.Errorf("rendering the API reference: %w", err)
	}
	var page bytes.Buffer
	if err := tmpl.Execute(&page, pageOf(doc)); err != nil {
		return nil, fmt.Errorf("rendering the API reference: %w", err)
	}
	sum := sha256.Sum256([]byte(referenceStyle))
	policy := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; frame-ancestors 'none'"
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", policy)
		_, _ = w.Write(page.Bytes()) // the client has gone when this fails
	}), nil
}

// page is what the template shows.
type page struct {
	Title, Description string
	Style              template.CSS
	Groups             []group
	Schemas            []schema
}

type group struct {
	Name, Description string
	Operations        []operation
}

type operation struct {
	ID, Method, Path, Summary, Description string
	Params                                 []field
	Body                                   typeRef
	Answers                                []answer
}

type answer struct {
	Status, Description, Media string
	Type                       typeRef
}

type schema struct {
	Name, Description string
	Fields            []field
}

type field struct {
	Name, In, Doc, Limits string
	Required              bool
	Type                  typeRef
}

// typeRef is a type in words, with a link to its schema when it has a name.
type typeRef struct {
	Before, Name string // "list of ", "Instance"
	Linked       bool
}

func pageOf(doc *huma.OpenAPI) page {
	p := page{Title: doc.Info.Title, Description: doc.Info.Description, Style: template.CSS(referenceStyle)}
	for _, tag := range doc.Tags {
		p.Groups = append(p.Groups, group{Name: tag.Name, Description: tag.Description, Operations: operationsOf(doc, tag.Name)})
	}
	schemas := doc.Components.Schemas.Map()
	for _, name := range slices.Sorted(maps.Keys(schemas)) {
		s := schemas[name]
		p.Schemas = append(p.Schemas, schema{Name: name, Description: s.Description, Fields: fieldsOf(s)})
	}
	return p
}

func operationsOf(doc *huma.OpenAPI, tag string) []operation {
	var ops []operation
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		item := doc.Paths[path]
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Delete} {
			if op != nil && slices.Contains(op.Tags, tag) {
				ops = append(ops, operationOf(op))
			}
		}
	}
	return ops
}

func operationOf(op *huma.Operation) operation {
	out := operation{ID: op.OperationID, Method: op.Method, Path: op.Path, Summary: op.Summary, Description: op.Description}
	for _, p := range op.Parameters {
		out.Params = append(out.Params, field{
			Name: p.Name, In: p.In, Doc: p.Description, Required: p.Required, Type: typeOf(p.Schema), Limits: limitsOf(p.Schema),
		})
	}
	if op.RequestBody != nil {
		for _, media := range op.RequestBody.Content {
			out.Body = typeOf(media.Schema)
		}
	}
	for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
		out.Answers = append(out.Answers, answerOf(status, op.Responses[status]))
	}
	return out
}

func answerOf(status string, r *huma.Response) answer {
	a := answer{Status: status, Description: r.Description}
	for media, content := range r.Content {
		a.Media, a.Type = media, typeOf(content.Schema)
	}
	return a
}

func fieldsOf(s *huma.Schema) []field {
	var fields []field
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		p := s.Properties[name]
		fields = append(fields, field{
			Name: name, Doc: p.Description, Required: slices.Contains(s.Required, name), Type: typeOf(p), Limits: limitsOf(p),
		})
	}
	return fields
}

func typeOf(s *huma.Schema) typeRef {
	switch {
	case s == nil:
		return typeRef{}
	case s.Ref != "":
		return typeRef{Name: s.Ref[strings.LastIndexByte(s.Ref, '/')+1:], Linked: true}
	case s.Type == huma.TypeArray:
		t := typeOf(s.Items)
		t.Before = "list of " + t.Before
		return t
	case s.Format != "":
		return typeRef{Name: s.Type + " (" + s.Format + ")"}
	case s.ContentEncoding != "":
		return typeRef{Name: s.Type + " (" + s.ContentEncoding + ")"}
	case s.Type == "":
		return typeRef{Name: "any"}
	}
	return typeRef{Name: s.Type}
}

// limitsOf tells in words what values a schema takes, and an example.
func limitsOf(s *huma.Schema) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if len(s.Enum) > 0 {
		var values []string
		for _, v := range s.Enum {
			values = append(values, fmt.Sprint(v))
		}
		add("one of %s", strings.Join(values, ", "))
	}
	if s.Minimum != nil {
		add("at least %s", number(*s.Minimum))
	}
	if s.Maximum != nil {
		add("at most %s", number(*s.Maximum))
	}
	if s.MaxLength != nil {
		add("at most %d characters", *s.MaxLength)
	}
	if s.Pattern != "" {
		add("matches %s", s.Pattern)
	}
	if s.Default != nil {
		add("default %v", s.Default)
	}
	if len(s.Examples) > 0 {
		add("for example %v", s.Examples[0])
	}
	return strings.Join(parts, "; ")
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
