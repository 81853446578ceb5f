package parse

import (
	"bytes"
	"cmp"
	"fmt"
	"strings"

	"github.com/invarhq/invar/spec"
)

// PrincipalOf is the name of the principal that FirstPlatform makes for a local user. A user without a name is a number.
func PrincipalOf(user string) string {
	return cmp.Or(spec.SuggestName(user), spec.SuggestName("user-"+user), "admin")
}

// FirstPlatform returns the sources of a new server's platform: the local users are its administrators. It says by comments
// how to go on. Equal arguments give equal sources.
func FirstPlatform(users []string) map[string][]byte {
	var principals, names bytes.Buffer
	taken := map[string]bool{}
	for _, u := range users {
		name := PrincipalOf(u)
		for i := 2; taken[name]; i++ {
			name = fmt.Sprintf("%s-%d", PrincipalOf(u), i)
		}
		taken[name] = true
		fmt.Fprintf(&principals, "principal %q { local_users = [%s] }\n", name, quote(u))
		fmt.Fprintf(&names, ", principal.%s", name)
	}
	src := strings.NewReplacer("PRINCIPALS\n", principals.String(), "NAMES", strings.TrimPrefix(names.String(), ", ")).Replace(firstPlatform)
	return map[string][]byte{PlatformFile: Format([]byte(src))}
}

const firstPlatform = `# The platform's own definition: who there is, who may do what, whose approval a change needs.
# It is released like an app, to the environment "platform":
#
#   invar plan platform      what would change
#   invar apply platform     put it in force
#   invar history platform   every definition that was in force, and who made it so
#
# docs/platform.md describes all blocks. A definition with which nobody could ever change it again is refused.

# A principal is a person or a machine. Any one of its credentials lets it in.
PRINCIPALS
# principal "alice" { ssh_keys = ["ssh-ed25519 AAAA… alice@example.com"] }
# principal "ci" {
#   machine = true
#   oidc    = { issuer = "https://ci.example.com", claims = { repository = "shop/web" } }
# }
# oidc "ci" {
#   issuer    = "https://ci.example.com"
#   client_id = "invar"
# }

role "admin" { permissions = ["*"] }
# role "deployer" { permissions = ["read", "logs", "plan", "apply", "rollback"] }

grant {
  role         = role.admin
  to           = [NAMES]
  environments = ["*"]
}

# A change of an environment that a rule matches waits for signed approvals. Author, approvers and whoever carries it
# out are different people.
# approval "prod" {
#   environments = ["prod-*"]
#   require      = "2 of group.release-managers and 1 of group.security"
# }

# freeze "weekend" {
#   environments = ["prod-*"]
#   cron         = "0 18 * * FRI"
#   duration     = "62h"
#   timezone     = "Europe/Berlin"
# }
`
