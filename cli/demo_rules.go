package cli

import (
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
)

// demoRules is the platform's definition of the demo, with a place for the key of each person.
const demoRules = `# Who may do what on this server. It is released to the environment "platform", through the same gate as
# any app: "invar plan platform", "invar apply platform", "invar rollback platform".

principal "root" { local_users = ["root"] }
principal "alice" { ssh_keys = ["%s"] }
principal "bob" { ssh_keys = ["%s"] }

group "reviewers" { members = [principal.alice] }
group "operators" { members = [principal.bob] }

role "admin" { permissions = ["*"] }
role "reviewer" { permissions = ["read", "approve", "ledger.read"] }
role "operator" { permissions = ["read", "plan", "apply", "rollback"] }

grant {
  role         = role.admin
  to           = [principal.root]
  environments = ["*"]
}
grant {
  role         = role.reviewer
  to           = [group.reviewers]
  environments = ["*"]
}
grant {
  role         = role.operator
  to           = [group.operators]
  environments = ["staging", "prod"]
}

# Author, approvers and whoever carries a change out are kept apart, unless a rule says otherwise.
approval "prod" {
  environments = ["prod"]
  require      = "1 of group.reviewers"
  expires      = "24h"
}
`

const demoGoverned = "prod"

// person is somebody who uses the demo's server over TCP, with an SSH key.
type person struct {
	*demo
	name string
}

func (p person) home() string { return filepath.Join(p.dir, p.name) }
func (p person) key() string  { return filepath.Join(p.home(), "id_ed25519") }

// publicKey makes the person's key, unless an earlier demo did, and returns the public one.
func (p person) publicKey() (string, error) {
	if b, err := os.ReadFile(p.key() + ".pub"); err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return "", err
	}
	block, err := ssh.MarshalPrivateKey(private, p.name)
	if err != nil {
		return "", err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return "", err
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " " + p.name
	return line, errors.Join(os.MkdirAll(p.home(), 0o700), os.WriteFile(p.key(), pem.EncodeToMemory(block), 0o600),
		os.WriteFile(p.key()+".pub", []byte(line+"\n"), 0o644))
}

// invar runs a command line as the person: with his own logins, over TCP.
func (p person) invar(ctx context.Context, args ...string) error {
	p.command(args...)
	env := p.Env
	env.Getenv = func(name string) string {
		switch name {
		case "XDG_CONFIG_HOME":
			return p.home()
		case "INVAR_TOKEN", "INVAR_ID_TOKEN", "INVAR_TOKEN_FILE", "SSH_AUTH_SOCK":
			return ""
		}
		return p.Env.Getenv(name)
	}
	return p.runs(ctx, env, []int{ExitDone}, append([]string{"--server", "http://" + p.listen}, args...))
}

// rule puts an environment under rules, and shows a change of it on its way.
func (d *demo) rule(ctx context.Context) error {
	alice, bob := person{d, "alice"}, person{d, "bob"}
	if err := d.writeRules(alice, bob); err != nil {
		return err
	}
	d.say("Put production under rules: a change there waits for the signature of somebody else.")
	fmt.Fprintf(d.Stderr, "$ cat %s | tail -6\n%s\n", d.rel(d.rules()), tailLines(demoRules, 5))
	if err := d.invarIn(ctx, filepath.Dir(d.rules()), "apply", "platform", "--yes", "--reason", "rules for production"); err != nil {
		return err
	}
	d.say("Propose to take the shop to production. It is not carried out: it becomes a change that waits.")
	number, err := d.propose(ctx)
	if err != nil {
		return err
	}
	if number == "" {
		fmt.Fprintln(d.Stderr, "(an earlier run of the demo took it there already)")
		return nil
	}
	d.say("Alice had no part in it. She logs in with her SSH key, looks at the plan, and signs it.")
	if err := alice.invar(ctx, "login", "--ssh", "--key", d.rel(alice.key())); err != nil {
		return err
	}
	if err := alice.invar(ctx, "change", "approve", number, "--yes", "--key", d.rel(alice.key()), "--reason", "read the plan"); err != nil {
		return err
	}
	d.say("Bob neither proposed nor approved it: he may carry it out.")
	if err := bob.invar(ctx, "login", "--ssh", "--key", d.rel(bob.key())); err != nil {
		return err
	}
	return bob.invar(ctx, "change", "apply", number)
}

func (d *demo) rules() string { return filepath.Join(d.dir, "platform", "platform.hcl") }

func (d *demo) writeRules(people ...person) error {
	var keys []any
	for _, p := range people {
		key, err := p.publicKey()
		if err != nil {
			return fmt.Errorf("making the key of %s: %w", p.name, err)
		}
		keys = append(keys, key)
	}
	if err := os.MkdirAll(filepath.Dir(d.rules()), 0o755); err != nil {
		return fmt.Errorf("writing the rules: %w", err)
	}
	return os.WriteFile(d.rules(), fmt.Appendf(nil, demoRules, keys...), 0o644)
}

// propose applies to the governed environment, and returns the number of the change that waits; "" when an earlier demo
// took the shop there already.
func (d *demo) propose(ctx context.Context) (string, error) {
	args := []string{"apply", demoGoverned, "--yes", "--reason", "the shop opens"}
	d.command(args...)
	err := d.runs(ctx, d.Env, []int{ExitDone, ExitWaits}, append([]string{"-C", d.source(), "--server", d.app.server}, args...))
	if err != nil {
		return "", err
	}
	cl, err := d.client()
	if err != nil {
		return "", err
	}
	defer cl.Close()
	changes, err := cl.Changes(ctx, demoGoverned, false)
	if err != nil {
		return "", err
	}
	if len(changes) == 0 {
		return "", nil
	}
	return strconv.Itoa(changes[0].Number), nil
}
