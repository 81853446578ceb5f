package parse

// platformCopies are the blocks that may have for_each.
var platformCopies = []string{"principal", "group", "role", "approval", "freeze", "policy", "exception", "break_glass", "retention", "verification", "oidc", "witness"}

// named is a block of the platform's language that has a name.
func named(name string, foreign map[string]string, attrs ...attr) *block {
	return &block{name: name, labels: []string{"name"}, attrs: append(attrs, raw("for_each")), foreign: foreign}
}

// platformBlock is what platform.hcl may hold. docs/platform.md describes each attribute; a test sees to it.
var platformBlock = &block{
	name:  "the file",
	attrs: []attr{num("witness_quorum"), list("auditors")},
	blocks: []*block{
		variableBlock, localsBlock,
		named("principal", map[string]string{
			"password":    "There are no passwords: a principal proves itself by a local user, an SSH key or a token of an OpenID provider.",
			"groups":      "A group names its members: group \"NAME\" { members = [principal.NAME] }.",
			"roles":       "What a principal may is a grant: grant { role = …, to = […], environments = […] }.",
			"permissions": "Permissions belong to a role, and a grant gives it.",
		}, list("ssh_keys"), list("local_users"), ref("oidc"), flag("disabled"), flag("machine")),
		named("group", nil, must(ref("members"))),
		named("role", map[string]string{"environments": "A role says what; a grant says where, and to whom."}, must(list("permissions"))),
		{name: "grant", attrs: []attr{must(ref("role")), must(ref("to")), must(list("environments")), str("until")}},
		named("approval", map[string]string{"approvers": `Whose approvals it takes is require = "2 of group.NAME".`},
			must(list("environments")), must(str("require")), str("expires"), flag("self_approval"), flag("self_apply"), flag("automatic"), flag("free_rollbacks")),
		named("freeze", nil, must(list("environments")), str("kind"), str("cron"), str("duration"), str("timezone"), str("from"), str("to"), flag("rollbacks")),
		named("policy", nil, must(str("dir")), list("environments")),
		named("exception", nil, must(ref("policy")), must(str("rule")), must(list("environments")), must(str("ticket")), must(str("reason")), must(str("expires"))),
		named("break_glass", nil, must(list("environments")), str("review_within"), ref("reviewers"), str("session")),
		named("retention", nil, must(list("kinds")), must(str("keep"))),
		named("verification", nil, must(list("environments")), must(str("every"))),
		named("oidc", map[string]string{"client_secret": "invar is a public client (PKCE): it has no secret to keep."},
			must(str("issuer")), must(str("client_id")), list("audience"), list("scopes")),
		named("witness", nil, must(str("url")), must(str("key"))),
	},
	foreign: map[string]string{
		"app":         "This is the platform's own definition; an app is written in invar.hcl, in a directory of its own.",
		"component":   "Components belong to an app, in invar.hcl.",
		"environment": "Environments belong to an app, in invar.hcl; here they are matched by name.",
		"user":        "A person or a machine is a principal here.",
		"team":        "What others call a team is a group here.",
		"rule":        "An approval rule is approval \"NAME\" { environments = […], require = \"2 of group.NAME\" }.",
	},
}
