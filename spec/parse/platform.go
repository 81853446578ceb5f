package parse

import (
	"cmp"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"golang.org/x/crypto/ssh"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/ledger/witness"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
)

// Defaults of the platform's language.
const (
	defaultExpires = 72 * time.Hour
	defaultReview  = 72 * time.Hour
)

// maxPolicyFiles bounds the files of one policy.
const maxPolicyFiles = 1_000

// Definition evaluates the platform's definition, as Evaluate does an app. Problems of Load are among the diagnostics; the
// definition is only usable when none of them is an error.
func (m *Module) Definition() (platform.Definition, Diagnostics) {
	got := m.evaluate(platform.Env, nil)
	return got.definition, append(slices.Clone(m.found), got.diags...).sorted()
}

// definition builds the definition, and puts what it finds wrong with itself where that is written.
func (e *evaluator) definition() platform.Definition {
	b := &definitionBuilder{e: e, at: map[string]*node{}}
	d := &b.d
	b.each("principal", func(n *node, name string) { d.Principals = append(d.Principals, b.principal(n, name)) })
	b.each("group", func(n *node, name string) {
		g := platform.Group{Name: platform.GroupName(name)}
		g.Members, g.Groups = n.subjects("members")
		d.Groups = append(d.Groups, g)
	})
	b.each("role", func(n *node, name string) {
		d.Roles = append(d.Roles, platform.Role{Name: platform.RoleName(name), Permissions: n.permissions()})
	})
	b.grants()
	b.each("approval", func(n *node, name string) { d.Approvals = append(d.Approvals, n.approval(name)) })
	b.each("freeze", func(n *node, name string) { d.Freezes = append(d.Freezes, n.freeze(name)) })
	b.each("policy", func(n *node, name string) { d.Policies = append(d.Policies, b.policy(n, name)) })
	b.each("exception", func(n *node, name string) { d.Exceptions = append(d.Exceptions, n.exception(name)) })
	b.each("break_glass", func(n *node, name string) { d.BreakGlass = append(d.BreakGlass, n.breakGlass(name)) })
	b.each("retention", func(n *node, name string) {
		keep := parsed(n, "keep", 0, spec.ParsePeriod)
		d.Retentions = append(d.Retentions, platform.Retention{Name: name, Kinds: n.unique("kinds"), KeepMillis: keep.Milliseconds()})
	})
	b.each("verification", func(n *node, name string) {
		every := parsed(n, "every", platform.DefaultVerify, spec.ParsePeriod)
		d.Verifications = append(d.Verifications, platform.Verification{Name: name, Environments: n.patterns(), EveryMillis: every.Milliseconds()})
	})
	b.each("oidc", func(n *node, name string) {
		d.Issuers = append(d.Issuers, platform.Issuer{Name: name, URL: n.text("issuer"), ClientID: n.text("client_id"), Audience: n.unique("audience"), Scopes: n.unique("scopes")})
	})
	b.each("witness", func(n *node, name string) {
		d.Witnesses = append(d.Witnesses, n.witness(name))
	})
	root := e.node(e.m.root, e.full)
	b.at["witness "], d.Quorum, d.Auditors = root, root.int("witness_quorum", 0), root.recipients("auditors")
	b.notNull()
	d.Sort()
	b.check()
	return b.d
}

// definitionBuilder notes where everything is written.
type definitionBuilder struct {
	e  *evaluator
	d  platform.Definition
	at map[string]*node // by kind and name, as a platform.Problem names them
}

// each builds the blocks of a kind.
func (b *definitionBuilder) each(kind string, build func(n *node, name string)) {
	for _, c := range b.e.copies[kind] {
		n := b.e.node(c.item, c.in(b.e.full))
		b.at[kind+" "+c.name] = n
		build(n, c.name)
	}
}

// notNull makes empty lists of those that a release always spells out.
func (b *definitionBuilder) notNull() {
	d := &b.d
	d.Principals = append([]platform.Principal{}, d.Principals...)
	d.Roles = append([]platform.Role{}, d.Roles...)
	d.Grants = append([]platform.Grant{}, d.Grants...)
}

// consequences are problems that may only follow from a block that is wrong itself.
var consequences = []string{"Requirement that nobody can meet", "Unknown issuer", "Invalid count"}

// check adds what package platform finds, but not about what has already failed; names are checked where they are read.
func (b *definitionBuilder) check() {
	e := b.e
	failed := len(e.list) > 0
	for _, p := range b.d.Check() {
		n := b.at[p.Kind+" "+p.Name]
		if n == nil || p.Summary == "Invalid name" || n.bad[p.Field] || p.Field == "" && len(n.bad) > 0 || failed && slices.Contains(consequences, p.Summary) {
			continue
		}
		d := Diagnostic{Severity: Error, Summary: p.Summary, Detail: sentence(p.Detail), Suggestion: capital(p.Suggestion), Range: n.rng()}
		if a := n.attrs[p.Field]; a != nil {
			d.Range = e.sources.rangeOf(a.Expr.Range())
		}
		if p.Unknown != "" {
			d.Suggestion = didYouMean(p.Unknown, b.names(strings.TrimPrefix(p.Summary, "Unknown ")))
		}
		e.put(d)
	}
}

// names are those of the blocks of a kind, with their copies.
func (b *definitionBuilder) names(kind string) []string {
	var out []string
	for _, c := range b.e.copies[kind] {
		out = append(out, c.name)
	}
	return out
}

func sentence(s string) string { return capital(strings.TrimSuffix(s, ".")) + "." }

func (b *definitionBuilder) principal(n *node, name string) platform.Principal {
	p := platform.Principal{Name: platform.PrincipalName(name), LocalUsers: n.unique("local_users"), Disabled: n.bool("disabled", false), Machine: n.bool("machine", false)}
	for i, k := range n.texts("ssh_keys") {
		key, err := sshKey(k)
		if err != nil {
			n.failAt("ssh_keys", i, "Invalid key", hintOf(err), "%v", err)
			continue
		}
		p.SSHKeys = append(p.SSHKeys, key)
	}
	p.SSHKeys = sorted(p.SSHKeys)
	for _, u := range p.LocalUsers {
		if u == "" || strings.ContainsAny(u, " :\t\n") {
			n.fail("local_users", "Invalid value", "", "%q is no name of a user.", u)
		}
	}
	p.OIDC = n.oidc()
	return p
}

// minRSABits is the least that is taken of a key whose strength its owner chose.
const minRSABits = 2048

// sshKey reads a line as of authorized_keys, and returns it in one spelling. Options are refused, since nothing here heeds them.
func sshKey(line string) (string, error) {
	const hint = "Write it as the file id_ed25519.pub has it: \"ssh-ed25519 AAAA… comment\"."
	invalid := func(format string, args ...any) (string, error) {
		return "", fault.WithHint(fault.Errorf(fault.Invalid, format, args...), hint)
	}
	key, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	switch {
	case err != nil:
		return invalid("This is no public SSH key.")
	case len(options) > 0:
		return invalid("The key has options, which mean nothing here.")
	case len(strings.TrimSpace(string(rest))) > 0:
		return invalid("There is more than one key in one text.")
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
	case ssh.KeyAlgoRSA:
		c, _ := key.(ssh.CryptoPublicKey)
		pub, ok := c.CryptoPublicKey().(*rsa.PublicKey)
		if !ok || pub.N.BitLen() < minRSABits {
			return invalid("An RSA key needs at least %d bits.", minRSABits)
		}
	default:
		return invalid("Keys of type %s are not accepted: use ed25519, ecdsa, rsa or a security key.", key.Type())
	}
	out := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	if comment != "" {
		out += " " + strings.Join(strings.Fields(comment), " ")
	}
	return out, nil
}

// oidc reads one rule, or a list of them.
func (n *node) oidc() []platform.OIDC {
	v, ok := n.vals["oidc"]
	if !ok {
		return nil
	}
	list := []cty.Value{v}
	if t := v.Type(); t.IsTupleType() || t.IsListType() || t.IsSetType() {
		list = v.AsValueSlice()
	}
	var out []platform.OIDC
	for _, x := range list {
		if o, ok := n.oidcRule(x); ok {
			out = append(out, o)
		}
	}
	return out
}

const oidcExample = `Write oidc = { issuer = "https://…", claims = { repository = "bank/shop" } }.`

func (n *node) oidcRule(v cty.Value) (platform.OIDC, bool) {
	if t := v.Type(); v.IsNull() || !t.IsObjectType() && !t.IsMapType() {
		n.fail("oidc", "Wrong type", oidcExample, "A rule for tokens is %s.", kindOf(v))
		return platform.OIDC{}, false
	}
	fields := v.AsValueMap()
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if name != "issuer" && name != "claims" {
			n.fail("oidc", "Unknown attribute", didYouMean(name, []string{"issuer", "claims"}), "A rule for tokens has no %q.", name)
			return platform.OIDC{}, false
		}
	}
	issuer, err := convert.Convert(fields["issuer"], text)
	if fields["issuer"] == cty.NilVal || err != nil || issuer.IsNull() {
		n.fail("oidc", "Missing value", oidcExample, "A rule for tokens has no issuer.")
		return platform.OIDC{}, false
	}
	claims, ok := n.claims(fields["claims"])
	return platform.OIDC{Issuer: issuer.AsString(), Claims: claims}, ok
}

// claims reads an object whose values are a text each, or a list of texts.
func (n *node) claims(v cty.Value) (map[string][]string, bool) {
	if v == cty.NilVal || v.IsNull() || !v.Type().IsObjectType() && !v.Type().IsMapType() {
		n.fail("oidc", "Missing value", oidcExample, "A rule for tokens has no claims.")
		return nil, false
	}
	out := map[string][]string{}
	for name, x := range v.AsValueMap() {
		if x.Type().IsPrimitiveType() {
			x = cty.TupleVal([]cty.Value{x})
		}
		values, err := convert.Convert(x, texts)
		if err != nil || values.IsNull() || values.LengthInt() == 0 || !values.IsWhollyKnown() {
			n.fail("oidc", "Wrong type", oidcExample, "Claim %q has neither a text nor a list of texts.", name)
			return nil, false
		}
		for _, e := range values.AsValueSlice() {
			if e.IsNull() {
				n.fail("oidc", "Missing value", "", "A value of claim %q is null.", name)
				return nil, false
			}
			out[name] = append(out[name], e.AsString())
		}
		out[name] = sorted(out[name])
	}
	return out, true
}

// set1 is a list of texts in one order, each once; nil when there is none.
func (n *node) unique(name string) []string {
	if l := sorted(n.texts(name)); len(l) > 0 {
		return l
	}
	return nil
}

func (n *node) patterns() []platform.Pattern {
	var out []platform.Pattern
	for i, p := range n.texts("environments") {
		if strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789-*") != "" || p == "" {
			n.failAt("environments", i, "Invalid pattern", `Write names, or patterns as "prod-*".`, "%q matches no environment: their names have a to z, 0 to 9 and hyphens.", p)
			continue
		}
		out = append(out, platform.Pattern(p))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// permissions reads a role's permissions. A role may have none.
func (n *node) permissions() []platform.Permission {
	known := []string{string(platform.Anything)}
	for _, p := range platform.Permissions() {
		known = append(known, string(p))
	}
	out := []platform.Permission{}
	for i, p := range n.texts("permissions") {
		if !slices.Contains(known, p) {
			n.failAt("permissions", i, "Unknown permission", cmp.Or(didYouMean(p, known), "docs/platform.md lists the permissions."), "There is no permission %q.", p)
			continue
		}
		out = append(out, platform.Permission(p))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// failAt is fail at an element of a list, where it is written as one.
func (n *node) failAt(name string, i int, summary, suggestion, format string, args ...any) {
	n.bad[name] = true
	r := n.head
	if a := n.attrs[name]; a != nil {
		r = elementRange(a.Expr, i)
	}
	n.e.errorf(r, summary, suggestion, format, args...)
}

func elementRange(expr hclsyntax.Expression, i int) hcl.Range {
	if t, ok := expr.(*hclsyntax.TupleConsExpr); ok && i < len(t.Exprs) {
		return t.Exprs[i].Range()
	}
	return expr.Range()
}

// reference reads a value that KIND.NAME made.
func reference(v cty.Value) (kind, name string, ok bool) {
	t := v.Type()
	if v.IsNull() || !t.IsObjectType() || len(t.AttributeTypes()) != 2 || !t.HasAttribute("kind") || !t.HasAttribute("name") ||
		t.AttributeType("kind") != text || t.AttributeType("name") != text {
		return "", "", false
	}
	return v.GetAttr("kind").AsString(), v.GetAttr("name").AsString(), true
}

// referTo reads an attribute that refers to a block of one kind; "" when it does not, which is reported.
func (n *node) referTo(name, kind string) string {
	v, ok := n.vals[name]
	if !ok {
		return ""
	}
	got, target, ok := reference(v)
	if !ok || got != kind {
		n.fail(name, "Not a "+kind, n.meant(v, kind), "%q is %s, not a %s.", name, refKind(v), kind)
		return ""
	}
	return target
}

func refKind(v cty.Value) string {
	if kind, name, ok := reference(v); ok {
		return kind + "." + name
	}
	return kindOf(v)
}

// meant suggests the reference that a text stands for.
func (n *node) meant(v cty.Value, kinds ...string) string {
	for _, kind := range kinds {
		if !v.IsNull() && v.Type() == text && slices.Contains(n.e.m.labels(kind), v.AsString()) {
			return fmt.Sprintf("Did you mean %s.%s?", kind, v.AsString())
		}
	}
	return fmt.Sprintf("Write it as %s.NAME; with for_each, choose one: %s.NAME[\"KEY\"].", strings.Join(kinds, ".NAME or "), kinds[0])
}

// subjects reads a list of principals and groups.
func (n *node) subjects(name string) (principals []platform.PrincipalName, groups []platform.GroupName) {
	v, ok := n.vals[name]
	if !ok {
		return nil, nil
	}
	if t := v.Type(); !t.IsTupleType() && !t.IsListType() && !t.IsSetType() {
		n.fail(name, "Wrong type", "Write "+name+" = [principal.NAME, group.NAME].", "%q is %s.", name, kindOf(v))
		return nil, nil
	}
	for i, x := range v.AsValueSlice() {
		switch kind, target, _ := reference(x); kind {
		case "principal":
			principals = append(principals, platform.PrincipalName(target))
		case "group":
			groups = append(groups, platform.GroupName(target))
		default:
			n.failAt(name, i, "Not a principal or group", n.meant(x, "principal", "group"), "An element of %q is %s.", name, refKind(x))
		}
	}
	slices.Sort(principals)
	slices.Sort(groups)
	return slices.Compact(principals), slices.Compact(groups)
}

// grants builds the grants, in an order of their own: that of the file means nothing.
func (b *definitionBuilder) grants() {
	type written struct {
		platform.Grant
		n   *node
		key string
	}
	var all []written
	for _, it := range b.e.m.root.kids["grant"] {
		n := b.e.node(it, b.e.full)
		g := platform.Grant{Role: platform.RoleName(n.referTo("role", "role")), Environments: n.patterns(), Until: n.time("until")}
		g.Principals, g.Groups = n.subjects("to")
		key, err := json.Marshal(g)
		if err != nil {
			panic(err) // there is nothing in it that has no JSON
		}
		all = append(all, written{g, n, string(key)})
	}
	slices.SortStableFunc(all, func(a, b written) int { return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.key, b.key)) })
	for i, g := range all {
		b.d.Grants = append(b.d.Grants, g.Grant)
		b.at[fmt.Sprintf("grant %d of %s", i+1, g.Role)] = g.n
	}
}

// time reads a time as RFC 3339 spells it; zero when it is not set.
func (n *node) time(name string) time.Time {
	return parsed(n, name, time.Time{}, func(s string) (time.Time, error) {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return time.Time{}, fault.WithHint(fault.Errorf(fault.Invalid, "time %q: want date, time and zone", s), `Write it as "2027-01-01T00:00:00Z".`)
		}
		if t = t.UTC(); t.Nanosecond() != 0 || t.Year() < 1970 || t.Year() > 9999 {
			return time.Time{}, fault.Errorf(fault.Invalid, "time %q: want whole seconds, of a year from 1970 to 9999", s)
		}
		return t, nil
	})
}

func (n *node) period(name string, unset time.Duration) int64 {
	return parsed(n, name, unset, spec.ParsePeriod).Milliseconds()
}

func (n *node) approval(name string) platform.Approval {
	return platform.Approval{
		Name: name, Environments: n.patterns(), Require: n.text("require"), ExpiresMillis: n.period("expires", defaultExpires),
		SelfApproval: n.bool("self_approval", false), SelfApply: n.bool("self_apply", false),
		Automatic: n.bool("automatic", false), Rollbacks: n.bool("free_rollbacks", false),
	}
}

func (n *node) freeze(name string) platform.Freeze {
	n.choice("kind", platform.FreezeDeny, platform.FreezeAllow)
	f := platform.Freeze{
		Name: name, Environments: n.patterns(), Kind: cmp.Or(n.text("kind"), platform.FreezeDeny), Cron: n.text("cron"),
		DurationMillis: n.period("duration", 0), Timezone: n.text("timezone"), From: n.time("from"), To: n.time("to"), Rollbacks: n.bool("rollbacks", false),
	}
	if n.set("cron") && (n.set("from") || n.set("to")) {
		n.fail("cron", "Conflicting attributes", "Make two freezes of it.", "A window has either cron and duration, or from and to.")
	}
	return f
}

func (n *node) exception(name string) platform.Exception {
	return platform.Exception{
		Name: name, Policy: n.referTo("policy", "policy"), Rule: n.text("rule"), Environments: n.patterns(),
		Ticket: n.text("ticket"), Reason: n.text("reason"), Expires: n.time("expires"),
	}
}

func (n *node) breakGlass(name string) platform.BreakGlass {
	return platform.BreakGlass{
		Name: name, Environments: n.patterns(), ReviewMillis: n.period("review_within", defaultReview),
		Reviewers: platform.GroupName(n.referTo("reviewers", "group")), SessionMillis: n.period("session", platform.DefaultSession),
	}
}

func (n *node) witness(name string) platform.Witness {
	out := platform.Witness{Name: name, URL: n.text("url")}
	if u, err := url.Parse(out.URL); n.has("url") && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		n.fail("url", "Invalid value", `Write it as "https://witness.example.com".`, "%q is not where a witness can be asked.", out.URL)
	}
	out.VKey = parsed(n, "key", "", func(s string) (string, error) {
		v, err := witness.ParseVerifier(s)
		if err != nil {
			return "", err
		}
		return v.String(), nil
	})
	return out
}

// recipient is one of age (https://age-encryption.org/v1): Bech32 of an X25519 key.
var recipient = regexp.MustCompile(`^age1[02-9ac-hj-np-z]{58}$`)

// recipients reads a list of age recipients.
func (n *node) recipients(name string) []string {
	for i, r := range n.texts(name) {
		if !recipient.MatchString(r) {
			n.failAt(name, i, "Invalid key", "age-keygen prints it after \"Public key:\".", "%q is no recipient of age.", r)
		}
	}
	return n.unique(name)
}

func (b *definitionBuilder) policy(n *node, name string) platform.Policy {
	p := platform.Policy{Name: name, Environments: []platform.Pattern{"*"}}
	if n.set("environments") {
		p.Environments = n.patterns()
	}
	if !n.has("dir") {
		return p
	}
	files, err := b.e.m.policyFiles(n.text("dir"))
	if err != nil {
		n.fail("dir", "Policy not readable", hintOf(err), "Reading %q: %v.", n.text("dir"), err)
	}
	p.Files = files
	return p
}

// policyFiles reads the *.rego and *.json below dir, which so become sources of the bundle.
func (m *Module) policyFiles(dir string) (map[string]string, error) {
	clean := path.Clean(dir)
	if !fs.ValidPath(clean) {
		return nil, fault.Errorf(fault.Invalid, "it does not lie in the directory of %s", PlatformFile)
	}
	out := map[string]string{}
	err := fs.WalkDir(m.fsys, clean, func(name string, d fs.DirEntry, err error) error {
		ext := path.Ext(name)
		if err != nil || d.IsDir() || ext != ".rego" && ext != ".json" {
			return err
		}
		if len(out) == maxPolicyFiles {
			return fmt.Errorf("it has more than %d files", maxPolicyFiles)
		}
		src, err := m.open(name)
		if err != nil {
			return err
		}
		if !utf8.Valid(src) {
			return fmt.Errorf("%s is not text in UTF-8", name)
		}
		out[strings.TrimPrefix(name, clean+"/")] = string(src)
		return nil
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.WithHint(fault.Errorf(fault.NotFound, "there is no such directory"), "A policy is a directory with *.rego files.")
	case err == nil && len(out) == 0:
		err = fault.WithHint(fault.Errorf(fault.NotFound, "there is no *.rego file in it"), "A policy is a directory with *.rego files.")
	}
	return out, err
}
