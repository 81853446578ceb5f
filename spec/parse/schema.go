package parse

import (
	"slices"

	"github.com/zclconf/go-cty/cty"
)

// attr is an attribute that a block may have. docs/configuration.md describes each; a test sees to it.
type attr struct {
	name     string
	typ      cty.Type // what values are converted to; DynamicPseudoType: checked by hand
	required bool
	raw      bool // not an ordinary expression: a type, or decoded in a phase of its own
}

// block is a kind of block: its labels, its attributes and its inner blocks.
type block struct {
	name    string
	labels  []string // what each label is
	attrs   []attr
	blocks  []*block
	single  bool              // at most one
	free    bool              // any attribute (locals)
	foreign map[string]string // what other tools have here, and why this one hasn't
}

func (b *block) attr(name string) *attr {
	if i := slices.IndexFunc(b.attrs, func(a attr) bool { return a.name == name }); i >= 0 {
		return &b.attrs[i]
	}
	return nil
}

func (b *block) block(name string) *block {
	if i := slices.IndexFunc(b.blocks, func(k *block) bool { return k.name == name }); i >= 0 {
		return b.blocks[i]
	}
	return nil
}

// names are those of the attributes and of the inner blocks.
func (b *block) names() []string {
	var out []string
	for _, a := range b.attrs {
		out = append(out, a.name)
	}
	for _, k := range b.blocks {
		out = append(out, k.name)
	}
	return out
}

var (
	text    = cty.String
	texts   = cty.List(cty.String)
	textMap = cty.Map(cty.String)
	portTyp = cty.Object(map[string]cty.Type{"component": cty.String, "port": cty.String, "number": cty.Number, "host": cty.String, "address": cty.String})
)

func str(name string) attr  { return attr{name: name, typ: text} }
func list(name string) attr { return attr{name: name, typ: texts} }
func strs(name string) attr { return attr{name: name, typ: textMap} }
func num(name string) attr  { return attr{name: name, typ: cty.Number} }
func flag(name string) attr { return attr{name: name, typ: cty.Bool} }
func ref(name string) attr  { return attr{name: name, typ: cty.DynamicPseudoType} }
func raw(name string) attr  { return attr{name: name, typ: cty.DynamicPseudoType, raw: true} }

func must(a attr) attr {
	a.required = true
	return a
}

// onlyReplaced is what one who looks for an in-place update is told.
const onlyReplaced = "invar never changes a running instance: every change starts new instances beside the old ones and retires those."

var inPlace = map[string]string{
	"change_mode": onlyReplaced, "change_signal": onlyReplaced, "restart": onlyReplaced, "restart_policy": onlyReplaced, "reload": onlyReplaced,
	"lifecycle": onlyReplaced, "update": onlyReplaced, "update_strategy": onlyReplaced, "ignore_changes": onlyReplaced, "provisioner": onlyReplaced,
	"restart_trigger": onlyReplaced, "template": "Configuration is a file block, with content = templatefile(…); a change of it is a new release.",
}

func foreign(extra map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range []map[string]string{inPlace, extra} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

func processAttrs(attrs ...attr) []attr {
	return append(attrs, strs("env"), str("user"), str("workdir"), list("entrypoint"), list("command"))
}

var (
	goBlock     = &block{name: "go", single: true, attrs: []attr{must(str("package")), list("tags"), str("ldflags"), strs("env")}}
	layersBlock = &block{name: "layers", single: true, attrs: processAttrs(ref("base"), strs("copy"))}
	debianBlock = &block{name: "debian", single: true, attrs: processAttrs(must(str("suite")), must(list("packages")))}

	imageBlock = &block{
		name: "image", labels: []string{"name"},
		attrs:  []attr{str("ref"), raw("for_each")},
		blocks: []*block{goBlock, layersBlock, debianBlock},
		foreign: map[string]string{
			"dockerfile": "Images from a Dockerfile are not supported yet: build it elsewhere and give its ref.",
			"tag":        "The tag is part of ref; the lock pins it to a digest.",
		},
	}

	checkTimes  = []attr{str("interval"), str("timeout"), num("failures")}
	healthBlock = &block{
		name: "health", single: true, attrs: checkTimes,
		blocks: []*block{
			{name: "http", single: true, attrs: []attr{must(str("port")), str("path")}},
			{name: "tcp", single: true, attrs: []attr{must(str("port"))}},
			{name: "exec", single: true, attrs: []attr{must(list("command"))}},
		},
	}

	componentBlock = &block{
		name: "component", labels: []string{"name"},
		attrs: processAttrs(must(ref("image")), num("replicas"), ref("uses"), list("egress"), str("isolation"), flag("dynamic_ports"),
			str("stop_signal"), str("stop_timeout"), raw("for_each")),
		blocks: []*block{
			{name: "file", labels: []string{"path"}, attrs: []attr{str("content"), str("content_base64"), str("source"), str("mode"), str("user")}},
			{name: "secret", labels: []string{"path"}, attrs: []attr{must(str("name")), str("mode"), str("user")}},
			{name: "port", labels: []string{"name"}, attrs: []attr{{name: "number", typ: cty.Number, required: true, raw: true}}},
			healthBlock,
			{name: "scratch", labels: []string{"path"}, attrs: []attr{str("size"), str("mode")}},
			{name: "volume", labels: []string{"name"}, attrs: []attr{must(str("path")), str("snapshot")}},
			{name: "resources", single: true, attrs: []attr{num("cpu"), str("memory"), num("pids")}},
		},
		foreign: foreign(map[string]string{
			"count":       "Equal copies are replicas = N; different ones are for_each.",
			"depends_on":  "What a component needs is its uses: it gives the order to start in, and the connections.",
			"environment": "The process's environment is env = { NAME = value }.",
			"ports":       `Each port is a block: port "http" { number = 8080 }.`,
			"volumes":     `Each volume is a block: volume "data" { path = "/data" }.`,
			"files":       `Each file is a block: file "/etc/app.yaml" { content = … }.`,
			"privileged":  "Instances have no capabilities and no way to get one.",
			"network":     "An instance's network holds what it uses and its egress, nothing else.",
		}),
	}

	routeBlock = &block{
		name: "route", labels: []string{"name"},
		attrs: []attr{str("host"), str("path"), str("tls"), str("tcp"), must(ref("to")), raw("for_each")},
	}

	rolloutBlock = &block{
		name: "rollout", single: true,
		attrs: []attr{num("max_parallel"), {name: "canary", typ: cty.List(cty.Number)}, str("min_healthy_time"), str("healthy_deadline"),
			str("progress_deadline"), flag("auto_revert"), str("keep_warm"), str("drain")},
		foreign: foreign(map[string]string{
			"stagger":      "Instances start as soon as max_parallel allows; min_healthy_time is the pause.",
			"auto_promote": "A canary goes on by itself when it is healthy; approvals belong to the platform's definition.",
		}),
	}

	environmentBlock = &block{
		name: "environment", labels: []string{"name"},
		attrs:   []attr{raw("variables"), {name: "replicas", typ: cty.Map(cty.Number)}, str("promote_from"), str("on_drift")},
		blocks:  []*block{rolloutBlock},
		foreign: foreign(nil),
	}

	variableBlock = &block{
		name: "variable", labels: []string{"name"},
		attrs:  []attr{raw("type"), raw("default"), str("description")},
		blocks: []*block{{name: "validation", attrs: []attr{must(raw("condition")), must(raw("error_message"))}}},
		foreign: map[string]string{
			"sensitive": "A secret is no variable: name it in a secret block, and its value never enters the configuration.",
		},
	}

	localsBlock = &block{name: "locals", free: true}

	fileBlock = &block{
		name:   "the file",
		attrs:  []attr{must(str("app"))},
		blocks: []*block{variableBlock, localsBlock, imageBlock, componentBlock, routeBlock, environmentBlock},
		foreign: map[string]string{
			"resource": "invar runs components: write component \"NAME\" { image = … }.",
			"provider": "There are no providers: components, images and routes are all there is.",
			"module":   "One directory is one app; what repeats is for_each.",
			"job":      "What Nomad calls a job is an app here: app = \"NAME\", with component blocks.",
			"service":  "What others call a service is a component here.",
			"output":   "There are no outputs; invar show prints a release.",
			"data":     "Evaluation reads nothing but the files of this directory.",
			"secret":   "A secret block belongs into the component that gets it.",
		},
	}
)
