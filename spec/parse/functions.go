package parse

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	yaml "github.com/zclconf/go-cty-yaml"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// pure are the functions that need nothing but their arguments.
var pure = map[string]function.Function{
	"abs": stdlib.AbsoluteFunc, "ceil": stdlib.CeilFunc, "floor": stdlib.FloorFunc, "log": stdlib.LogFunc, "max": stdlib.MaxFunc,
	"min": stdlib.MinFunc, "parseint": stdlib.ParseIntFunc, "pow": stdlib.PowFunc, "signum": stdlib.SignumFunc,

	"chomp": stdlib.ChompFunc, "format": stdlib.FormatFunc, "formatlist": stdlib.FormatListFunc, "indent": stdlib.IndentFunc,
	"join": stdlib.JoinFunc, "lower": stdlib.LowerFunc, "regex": stdlib.RegexFunc, "regexall": stdlib.RegexAllFunc,
	"regexreplace": stdlib.RegexReplaceFunc, "replace": stdlib.ReplaceFunc, "split": stdlib.SplitFunc, "strlen": stdlib.StrlenFunc,
	"strrev": stdlib.ReverseFunc, "substr": stdlib.SubstrFunc, "title": stdlib.TitleFunc, "trim": stdlib.TrimFunc,
	"trimprefix": stdlib.TrimPrefixFunc, "trimspace": stdlib.TrimSpaceFunc, "trimsuffix": stdlib.TrimSuffixFunc, "upper": stdlib.UpperFunc,
	"startswith": predicate(strings.HasPrefix), "endswith": predicate(strings.HasSuffix), "strcontains": predicate(strings.Contains),

	"chunklist": stdlib.ChunklistFunc, "coalesce": stdlib.CoalesceFunc, "coalescelist": stdlib.CoalesceListFunc, "compact": stdlib.CompactFunc,
	"concat": stdlib.ConcatFunc, "contains": stdlib.ContainsFunc, "distinct": stdlib.DistinctFunc, "element": stdlib.ElementFunc,
	"flatten": stdlib.FlattenFunc, "keys": stdlib.KeysFunc, "length": length, "lookup": stdlib.LookupFunc,
	"alltrue": allTrue, "anytrue": anyTrue, "one": one, "sum": sum,
	"merge": stdlib.MergeFunc, "range": stdlib.RangeFunc, "reverse": stdlib.ReverseListFunc, "setintersection": stdlib.SetIntersectionFunc,
	"setproduct": stdlib.SetProductFunc, "setsubtract": stdlib.SetSubtractFunc, "setunion": stdlib.SetUnionFunc, "slice": stdlib.SliceFunc,
	"sort": stdlib.SortFunc, "values": stdlib.ValuesFunc, "zipmap": stdlib.ZipmapFunc,

	"tobool": stdlib.MakeToFunc(cty.Bool), "tolist": stdlib.MakeToFunc(cty.List(cty.DynamicPseudoType)), "tomap": stdlib.MakeToFunc(cty.Map(cty.DynamicPseudoType)),
	"tonumber": stdlib.MakeToFunc(cty.Number), "toset": stdlib.MakeToFunc(cty.Set(cty.DynamicPseudoType)), "tostring": stdlib.MakeToFunc(cty.String),

	"jsonencode": stdlib.JSONEncodeFunc, "jsondecode": stdlib.JSONDecodeFunc, "csvdecode": stdlib.CSVDecodeFunc,
	"yamlencode": yaml.YAMLEncodeFunc, "yamldecode": yamlDecode,
	"base64encode": ofText(func(s string) (string, error) { return base64.StdEncoding.EncodeToString([]byte(s)), nil }),
	"base64decode": ofText(decodeBase64), "urlencode": ofText(func(s string) (string, error) { return url.QueryEscape(s), nil }),

	"md5":    ofText(func(s string) (string, error) { h := md5.Sum([]byte(s)); return hex.EncodeToString(h[:]), nil }),
	"sha1":   ofText(func(s string) (string, error) { h := sha1.Sum([]byte(s)); return hex.EncodeToString(h[:]), nil }),
	"sha256": ofText(func(s string) (string, error) { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]), nil }),
	"sha512": ofText(func(s string) (string, error) { h := sha512.Sum512([]byte(s)); return hex.EncodeToString(h[:]), nil }),

	"basename": ofText(func(s string) (string, error) { return path.Base(s), nil }),
	"dirname":  ofText(func(s string) (string, error) { return path.Dir(s), nil }),
	"cidrhost": cidrHost, "cidrnetmask": ofText(cidrNetmask),

	"try": tryfunc.TryFunc, "can": tryfunc.CanFunc,
}

// impureNames are functions of other tools that would make evaluation depend on when or where it runs.
var impureNames = map[string]string{
	"timestamp": "the clock", "plantimestamp": "the clock", "now": "the clock", "uuid": "chance", "uuidv4": "chance", "bcrypt": "chance", "random": "chance",
	"env": "the environment of the machine that evaluates", "getenv": "the environment of the machine that evaluates",
	"get_env": "the environment of the machine that evaluates", "pathexpand": "the user's home directory", "abspath": "the machine's directories",
	"run_cmd": "commands of the machine", "exec": "commands of the machine", "http": "the network",
}

// functionNames are all functions that there are, for suggestions.
func functionNames() []string {
	return append(slices.Sorted(maps.Keys(pure)), "file", "filebase64", "fileexists", "filesha256", "templatefile")
}

// unknownFunction names the function that was called and does not exist. The library's own suggestion is not
// used: it is another one each time.
func unknownFunction(d *hcl.Diagnostic) (string, bool) {
	extra, ok := hcl.DiagnosticExtra[hclsyntax.FunctionCallUnknownDiagExtra](d)
	if !ok {
		return "", false
	}
	return extra.CalledFunctionName(), true
}

// functions are the pure ones, and those that read files of the app's directory.
func (m *Module) functions() map[string]function.Function {
	out := maps.Clone(pure)
	out["file"] = ofPath(m.readText)
	out["filebase64"] = ofPath(func(name string) (string, error) {
		b, err := m.openArgument(name)
		return base64.StdEncoding.EncodeToString(b), err
	})
	out["filesha256"] = ofPath(func(name string) (string, error) {
		b, err := m.openArgument(name)
		h := sha256.Sum256(b)
		return hex.EncodeToString(h[:]), err
	})
	out["fileexists"] = function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}},
		Type:   function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			_, err := m.open(args[0].AsString())
			return cty.BoolVal(err == nil), nil
		},
	})
	inner := maps.Clone(out) // a template includes no other: that could go in circles
	out["templatefile"] = m.templateFile(inner)
	return out
}

func (m *Module) openArgument(name string) ([]byte, error) {
	b, err := m.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no file %q in the app's directory", name)
	}
	return b, err
}

func (m *Module) readText(name string) (string, error) {
	b, err := m.openArgument(name)
	if err == nil && !utf8.Valid(b) {
		return "", fmt.Errorf("%q is not UTF-8 text; use filebase64, or source of a file block", name)
	}
	return string(b), err
}

// templateError carries what is wrong inside a template to the call of templatefile.
type templateError struct{ diags Diagnostics }

func (t templateError) Error() string { return t.diags.Error() }

func templateErrors(d *hcl.Diagnostic) (Diagnostics, bool) {
	extra, ok := hcl.DiagnosticExtra[hclsyntax.FunctionCallDiagExtra](d)
	if !ok || extra.FunctionCallError() == nil {
		return nil, false
	}
	t, ok := errors.AsType[templateError](extra.FunctionCallError())
	return t.diags, ok
}

func (m *Module) templateFile(funcs map[string]function.Function) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}, {Name: "vars", Type: cty.DynamicPseudoType}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			vars := args[1]
			if ty := vars.Type(); !ty.IsObjectType() && !ty.IsMapType() {
				return cty.NilVal, function.NewArgErrorf(1, "the variables of a template are { name = value }")
			}
			return m.render(args[0].AsString(), vars.AsValueMap(), funcs)
		},
	})
}

// render evaluates a template of the app's directory.
func (m *Module) render(name string, vars map[string]cty.Value, funcs map[string]function.Function) (cty.Value, error) {
	src, err := m.readText(name)
	if err != nil {
		return cty.NilVal, function.NewArgError(0, err)
	}
	s := &sink{sources: sources{name: []byte(src)}}
	if len(src) > maxSourceBytes || deepTemplate([]byte(src)) {
		return cty.NilVal, function.NewArgErrorf(0, "%s is too large, or nested too deeply, for a template", name)
	}
	expr, diags := hclsyntax.ParseTemplate([]byte(src), name, hcl.InitialPos)
	if diags.HasErrors() {
		s.hcl(diags)
		return cty.NilVal, templateError{s.list}
	}
	if s.templateVars(expr, vars); len(s.list) > 0 {
		return cty.NilVal, templateError{s.list}
	}
	v, diags := expr.Value(&hcl.EvalContext{Variables: vars, Functions: funcs})
	if diags.HasErrors() {
		s.hcl(diags)
		return cty.NilVal, templateError{s.list}
	}
	if v.IsNull() {
		return cty.NilVal, function.NewArgErrorf(0, "the template's value is null")
	}
	return convert.Convert(v, cty.String)
}

// templateVars checks that a template refers to nothing but what it was given.
func (s *sink) templateVars(expr hcl.Expression, vars map[string]cty.Value) {
	var names []string
	for n := range vars {
		names = append(names, n)
	}
	for _, t := range expr.Variables() {
		if _, ok := vars[t.RootName()]; !ok {
			s.errorf(t.SourceRange(), "Unknown template variable", didYouMean(t.RootName(), names), "The call of templatefile gives no %q.", t.RootName())
		}
	}
}

func ofText(f func(string) (string, error)) function.Function { return textFunction("text", f) }
func ofPath(f func(string) (string, error)) function.Function { return textFunction("path", f) }

func textFunction(param string, f func(string) (string, error)) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: param, Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			out, err := f(args[0].AsString())
			if err != nil {
				return cty.NilVal, function.NewArgError(0, err)
			}
			return cty.StringVal(out), nil
		},
	})
}

func predicate(f func(s, part string) bool) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "text", Type: cty.String}, {Name: "part", Type: cty.String}},
		Type:   function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			return cty.BoolVal(f(args[0].AsString(), args[1].AsString())), nil
		},
	})
}

// length is that of a collection, or the number of characters of a text.
var length = function.New(&function.Spec{
	Params: []function.Parameter{{Name: "value", Type: cty.DynamicPseudoType}},
	Type:   function.StaticReturnType(cty.Number),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		switch ty := args[0].Type(); {
		case ty == cty.String:
			return stdlib.Strlen(args[0])
		case ty.IsObjectType():
			return cty.NumberIntVal(int64(len(ty.AttributeTypes()))), nil
		}
		return stdlib.Length(args[0])
	},
})

// fold is a function of all elements of a list.
func fold(elem, result cty.Type, f func([]cty.Value) (cty.Value, error)) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "list", Type: cty.List(elem)}},
		Type:   function.StaticReturnType(result),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			for it := args[0].ElementIterator(); it.Next(); {
				if _, v := it.Element(); v.IsNull() {
					return cty.NilVal, function.NewArgErrorf(0, "an element is null")
				}
			}
			return f(args[0].AsValueSlice())
		},
	})
}

var (
	allTrue = fold(cty.Bool, cty.Bool, func(vs []cty.Value) (cty.Value, error) {
		return cty.BoolVal(!slices.ContainsFunc(vs, cty.Value.False)), nil
	})
	anyTrue = fold(cty.Bool, cty.Bool, func(vs []cty.Value) (cty.Value, error) {
		return cty.BoolVal(slices.ContainsFunc(vs, cty.Value.True)), nil
	})
	sum = fold(cty.Number, cty.Number, func(vs []cty.Value) (cty.Value, error) {
		total := cty.Zero
		for _, v := range vs {
			total = total.Add(v)
		}
		return total, nil
	})
)

// one is the only element of a list, or null when it is empty.
var one = function.New(&function.Spec{
	Params: []function.Parameter{{Name: "list", Type: cty.List(cty.DynamicPseudoType)}},
	Type:   func(args []cty.Value) (cty.Type, error) { return args[0].Type().ElementType(), nil },
	Impl: func(args []cty.Value, want cty.Type) (cty.Value, error) {
		switch args[0].LengthInt() {
		case 0:
			return cty.NullVal(want), nil
		case 1:
			return args[0].Index(cty.Zero), nil
		}
		return cty.NilVal, function.NewArgErrorf(0, "want one element or none, not %d", args[0].LengthInt())
	},
})

// yamlAlias is where YAML repeats what it has named. The decoder expands each, and they can double each other.
var yamlAlias = regexp.MustCompile(`(?m)(?:^|[\s\[{,:?-])\*[^\s,\[\]{}]`)

const maxAliases = 20

// yamlDecode refuses documents with more aliases than people write.
var yamlDecode = function.New(&function.Spec{
	Params: []function.Parameter{{Name: "text", Type: cty.String}},
	Type: func(args []cty.Value) (cty.Type, error) {
		if !args[0].IsKnown() {
			return cty.DynamicPseudoType, nil
		}
		v, err := decodeYAML(args[0])
		return v.Type(), err
	},
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) { return decodeYAML(args[0]) },
})

func decodeYAML(src cty.Value) (cty.Value, error) {
	if n := len(yamlAlias.FindAllStringIndex(src.AsString(), maxAliases+1)); n > maxAliases {
		return cty.DynamicVal, function.NewArgErrorf(0, "the document has more than %d aliases", maxAliases)
	}
	v, err := yaml.YAMLDecodeFunc.Call([]cty.Value{src})
	if err != nil {
		return cty.DynamicVal, err
	}
	return v, nil
}

func decodeBase64(s string) (string, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err == nil && !utf8.Valid(b) {
		err = errors.New("what it decodes to is not UTF-8 text; use content_base64 of a file block")
	}
	return string(b), err
}

// cidrHost is the n-th address of a prefix.
var cidrHost = function.New(&function.Spec{
	Params: []function.Parameter{{Name: "prefix", Type: cty.String}, {Name: "n", Type: cty.Number}},
	Type:   function.StaticReturnType(cty.String),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		p, err := netip.ParsePrefix(args[0].AsString())
		if err != nil {
			return cty.NilVal, function.NewArgError(0, err)
		}
		n, err := wholeNumber(args[1])
		if err != nil || n < 0 || n > 1<<16 {
			return cty.NilVal, function.NewArgErrorf(1, "want a whole number from 0 to 65536")
		}
		a := p.Masked().Addr()
		for range n {
			a = a.Next()
		}
		if !p.Contains(a) {
			return cty.NilVal, function.NewArgErrorf(1, "%s has no address %d", p, n)
		}
		return cty.StringVal(a.String()), nil
	},
})

func cidrNetmask(s string) (string, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return "", err
	}
	if !p.Addr().Is4() {
		return "", errors.New("only an IPv4 prefix has a netmask")
	}
	mask := [4]byte{}
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(mask).String(), nil
}
