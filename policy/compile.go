package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/invarhq/invar/digest"
)

// rule is a set of messages that a bundle asks.
type rule struct {
	kind     Kind
	controls map[string][]string // by custom.id of the annotations; "" is of those without one
	places   []string            // where it is defined: "images.rego:7", sorted
}

// asked are the names of conftest: deny, violation, warn, each with an optional suffix.
var asked = regexp.MustCompile(`^(deny|violation|warn)(_[a-zA-Z0-9]+)*$`)

func kindOf(name string) Kind {
	kind, _, _ := strings.Cut(name, "_")
	return Kind(kind)
}

func compile(name string, files Files) (*Bundle, error) {
	files = files.WithoutTests()
	src, err := parseFiles(files)
	if err != nil {
		return nil, err
	}
	compiler, err := src.compile()
	if err != nil {
		return nil, err
	}
	b := &Bundle{Name: name, rules: rulesOf(compiler, src.modules), limits: DefaultLimits()}
	if len(b.rules) == 0 {
		return nil, errors.New("it has no rule deny, violation or warn, and would allow everything")
	}
	b.query = queryOf(b.Rules())
	if b.archive, err = archive(files); err != nil {
		return nil, err
	}
	b.digest = digest.Of(b.archive)
	if b.data, err = digest.OfValue(src.data); err != nil {
		return nil, err
	}
	b.ready, err = rego.New(rego.Query(b.query), rego.Compiler(compiler), rego.Store(inmem.NewFromObject(src.data)),
		rego.StrictBuiltinErrors(true), rego.Capabilities(capabilities())).PrepareForEval(context.Background())
	if err != nil {
		return nil, fmt.Errorf("preparing: %w", err)
	}
	return b, nil
}

// newCompiler makes a compiler that knows what the input has, so that a misspelt field is an error rather than a rule that
// never fires.
func newCompiler(data map[string]any) *ast.Compiler {
	schemas := ast.NewSchemaSet()
	schemas.Put(ast.SchemaRootRef, engineSchema())
	return ast.NewCompiler().WithCapabilities(capabilities()).WithSchemas(schemas).SetErrorLimit(0).
		WithPathConflictsCheck(func(p []string) (bool, error) { return holds(data, p), nil })
}

func holds(data any, p []string) bool {
	for _, key := range p {
		m, ok := data.(map[string]any)
		if !ok {
			return true
		}
		if data, ok = m[key]; !ok {
			return false
		}
	}
	return true
}

// sources are a policy's files once read, with what is wrong with them beside what the compiler finds.
type sources struct {
	modules  map[string]*ast.Module
	data     map[string]any
	problems problems
}

// compile compiles the modules. Where one is refused already, the compiler may know every function, so that it finds the rest.
func (s sources) compile() (*ast.Compiler, error) {
	compiler := newCompiler(s.data)
	if len(s.problems) > 0 {
		compiler = compiler.WithCapabilities(ast.CapabilitiesForThisVersion(ast.CapabilitiesRegoVersion(ast.RegoV1)))
	}
	p := s.problems
	if compiler.Compile(s.modules); compiler.Failed() {
		p = append(p, problemsOf(compiler.Errors)...)
	}
	return compiler, p.err()
}

// parseFiles reads the files. Its error means that there is nothing to compile.
func parseFiles(files Files) (sources, error) {
	p := files.check()
	s := sources{modules: map[string]*ast.Module{}, data: map[string]any{}}
	options := ast.ParserOptions{ProcessAnnotation: true, RegoVersion: ast.RegoV1, Capabilities: capabilities()}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if isData(name) {
			if err := s.insert(name, files[name]); err != nil {
				p.add(name, 0, err.Error())
			}
			continue
		}
		m, err := ast.ParseModuleWithOpts(name, string(files[name]), options)
		if err != nil {
			p = append(p, problemsOf(err)...)
			continue
		}
		if m == nil {
			p.add(name, 0, "it is empty")
			continue
		}
		s.modules[name] = m
		s.problems = append(s.problems, refusals(name, m)...)
		s.problems = append(s.problems, shapes(name, m)...)
	}
	if len(p) > 0 {
		return sources{}, append(p, s.problems...).err()
	}
	return s, nil
}

// insert puts a file's data where opa puts it: at its directory.
func (s sources) insert(name string, content []byte) error {
	var value any
	if err := util.UnmarshalJSON(content, &value); err != nil {
		return err
	}
	object, ok := value.(map[string]any)
	if !ok {
		return errors.New("data is a JSON object")
	}
	at := s.data
	if dir := path.Dir(name); dir != "." {
		for key := range strings.SplitSeq(dir, "/") {
			next, ok := at[key].(map[string]any)
			if _, taken := at[key]; taken && !ok {
				return fmt.Errorf("another data.json has a value at %s", dir)
			}
			if next == nil {
				next = map[string]any{}
				at[key] = next
			}
			at = next
		}
	}
	for key, v := range object {
		if _, taken := at[key]; taken {
			return fmt.Errorf("another data.json has %q, too", key)
		}
		at[key] = v
	}
	return nil
}

// shapes finds rules with an asked name that are no set of messages: they would never refuse anything.
func shapes(file string, m *ast.Module) problems {
	var p problems
	for _, r := range m.Rules {
		ref := r.Head.Ref()
		i := slices.IndexFunc(ref, func(t *ast.Term) bool {
			s, ok := t.Value.(ast.String)
			v, isVar := t.Value.(ast.Var)
			return ok && asked.MatchString(string(s)) || isVar && asked.MatchString(string(v))
		})
		if i < 0 {
			continue
		}
		if len(ref) > 1 || r.Head.RuleKind() != ast.MultiValue || len(r.Head.Args) > 0 || r.Default {
			p.add(file, lineOf(r.Head.Location), fmt.Sprintf("rule %s is not a set of messages: write %s contains msg if { … }", ref, ref[0]))
		}
	}
	return p
}

// rulesOf finds the rules to ask, with the controls that their annotations name.
func rulesOf(c *ast.Compiler, modules map[string]*ast.Module) map[string]rule {
	out := map[string]rule{}
	for _, m := range modules {
		for _, r := range m.Rules {
			name := r.Head.Ref()[0].Value.String()
			if v, ok := r.Head.Ref()[0].Value.(ast.Var); ok {
				name = string(v)
			}
			if !asked.MatchString(name) {
				continue
			}
			full := strings.TrimPrefix(m.Package.Path.Append(ast.StringTerm(name)).String(), "data.")
			one, ok := out[full]
			if !ok {
				one = rule{kind: kindOf(name), controls: map[string][]string{}}
			}
			id, controls := annotated(c.GetAnnotationSet().Chain(r))
			one.controls[id] = sortedSet(append(one.controls[id], controls...))
			one.places = sortedSet(append(one.places, fmt.Sprintf("%s:%d", r.Head.Location.File, r.Head.Location.Row)))
			out[full] = one
		}
	}
	return out
}

// annotated reads what a rule's annotations, and those of what it lies in, say: custom.id, of the rule alone, and
// custom.controls, of all of them.
func annotated(chain ast.AnnotationsRefSet) (id string, controls []string) {
	for _, a := range chain {
		if a.Annotations == nil {
			continue
		}
		if s, ok := a.Annotations.Custom["id"].(string); ok && a.Annotations.Scope == "rule" {
			id = s
		}
		list, _ := a.Annotations.Custom["controls"].([]any)
		for _, c := range list {
			if s, ok := c.(string); ok {
				controls = append(controls, s)
			}
		}
	}
	return id, controls
}

func sortedSet(in []string) []string { return slices.Compact(slices.Sorted(slices.Values(in))) }

// queryOf asks every rule in one query, whose one value is an object of sets by rule.
func queryOf(rules []string) string {
	parts := make([]string, len(rules))
	for i, r := range rules {
		parts[i] = ast.String(r).String() + ": data." + r
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// problemsOf are opa's errors, file and line first.
func problemsOf(err error) problems {
	var all ast.Errors
	if one, ok := errors.AsType[*ast.Error](err); ok {
		all = ast.Errors{one}
	}
	if list, ok := errors.AsType[ast.Errors](err); ok {
		all = list
	}
	if len(all) == 0 {
		return problems{{cause: err.Error()}}
	}
	var p problems
	for _, e := range all {
		cause := e.Message
		if e.Details != nil {
			cause += " (" + strings.Join(e.Details.Lines(), "; ") + ")"
		}
		if e.Location == nil {
			p.add("", 0, cause)
			continue
		}
		p.add(e.Location.File, e.Location.Row, cause)
	}
	return p
}
