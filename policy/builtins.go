package policy

import (
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// refused are functions that answer differently at another time or place, though opa does not mark them so.
var refused = map[string]string{
	"crypto.x509.parse_and_verify_certificates":              "it reads the clock",
	"crypto.x509.parse_and_verify_certificates_with_options": "it may read the clock",
	"providers.aws.sign_req":                                 "it signs with a secret, and a decision is kept and shown",
	"http.send":                                              "it asks the network",
	"net.lookup_ip_addr":                                     "it asks the network",
	"opa.runtime":                                            "it reads the process's environment",
	"time.now_ns":                                            "it reads the clock; the time of the decision is input.now",
	"rand.intn":                                              "it is random",
	"uuid.rfc4122":                                           "it is random",
	"json.match_schema":                                      "a schema may be fetched from the network",
	"json.verify_schema":                                     "a schema may be fetched from the network",
}

// whyRefused says why a policy may not call the function, or "".
func whyRefused(name string) string {
	if why := refused[name]; why != "" {
		return why
	}
	if b := ast.BuiltinMap[name]; b != nil && b.Nondeterministic {
		return "its answer may differ the next time"
	}
	return ""
}

// capabilities are what this version of opa can do, without what is refused and without the network.
func capabilities() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion(ast.CapabilitiesRegoVersion(ast.RegoV1))
	c.Builtins = slices.DeleteFunc(slices.Clone(c.Builtins), func(b *ast.Builtin) bool { return whyRefused(b.Name) != "" })
	c.AllowNet = []string{}
	return c
}

// zoned are functions of time that may be given a time zone.
var zoned = []string{"time.clock", "time.date", "time.format", "time.weekday"}

// refusals finds calls, in any position, of functions that a decision could not be replayed with.
func refusals(file string, m *ast.Module) problems {
	var p problems
	ast.WalkRefs(m, func(r ast.Ref) bool {
		if why := whyRefused(r.String()); why != "" {
			p.add(file, lineOf(r[0].Location), r.String()+" is refused, since the decision could not be replayed: "+why)
		}
		return false
	})
	zone := func(operator string, args []*ast.Term, line int) {
		if slices.Contains(zoned, operator) && len(args) > 0 && otherZone(args[0]) {
			p.add(file, line, operator+` is refused with a time zone other than "UTC": what it says depends on the machine`)
		}
	}
	ast.WalkTerms(m, func(t *ast.Term) bool {
		if call, ok := t.Value.(ast.Call); ok && len(call) > 1 {
			zone(call[0].String(), call[1:], lineOf(t.Location))
		}
		return false
	})
	ast.WalkExprs(m, func(e *ast.Expr) bool {
		if e.IsCall() {
			zone(e.Operator().String(), e.Operands(), lineOf(e.Location))
		}
		return false
	})
	return p
}

// otherZone reports whether an argument is a list whose second element is not the constant "UTC".
func otherZone(arg *ast.Term) bool {
	list, ok := arg.Value.(*ast.Array)
	return ok && list.Len() > 1 && list.Elem(1).Value.Compare(ast.String("UTC")) != 0
}

func lineOf(l *ast.Location) int {
	if l == nil {
		return 0
	}
	return l.Row
}
