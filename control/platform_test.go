package control_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
)

// ruledBy is a definition of the platform with one administrator, who comes in as the local users.
func ruledBy(name platform.PrincipalName, users ...string) app {
	return app{Name: platform.App, Platform: &platform.Definition{
		Principals: []platform.Principal{{Name: name, LocalUsers: users}},
		Roles:      []platform.Role{{Name: "admin", Permissions: []platform.Permission{platform.Anything}}},
		Grants:     []platform.Grant{{Role: "admin", Principals: []platform.PrincipalName{name}, Environments: []platform.Pattern{"*"}}},
	}}
}

// administrator is who rules by the definition in force.
func (d *desk) administrator() platform.PrincipalName {
	d.t.Helper()
	def, ok := d.State().Platform()
	if !ok {
		d.t.Fatal("there is no definition of the platform")
	}
	return def.Principals[0].Name
}

func TestDefinitionIsInForceFromTheMomentTheHeadHasIt(t *testing.T) {
	d := newDesk(t)
	if _, ok := d.State().Platform(); ok {
		t.Error("a new ledger has a definition")
	}
	d.apply(platform.Env, ruledBy("alice", "alice"))
	if got := d.administrator(); got != "alice" {
		t.Errorf("ruled by %s", got)
	}
	d.complete(platform.Env)
	d.apply(platform.Env, ruledBy("bob", "bob"))
	if got := d.administrator(); got != "bob" {
		t.Errorf("ruled by %s, want bob before the rollout is over", got)
	}
	d.complete(platform.Env)
	if _, err := d.Rollback(t.Context(), alice, platform.Env, 0, "back", control.How{}); err != nil {
		t.Fatal(err)
	}
	if got := d.administrator(); got != "alice" {
		t.Errorf("rolled back: ruled by %s", got)
	}
	want, _ := d.State().Platform()
	d.crash() // the next start folds all of it again
	got, _ := d.State().Platform()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	d.audit()
}

func TestWhatLocksEveryoneOutIsRefused(t *testing.T) {
	d := newDesk(t)
	d.apply(platform.Env, ruledBy("alice", "alice"))
	size := d.State().Size()
	nobody := ruledBy("bob") // who has no way to come in
	if _, err := d.propose(platform.Env, nobody); !errors.Is(err, fault.Denied) || fault.Hint(err) == "" || !strings.Contains(err.Error(), "lock everyone out") {
		t.Errorf("plan: %v, want a refusal with a hint", err)
	}
	m, _ := d.propose(platform.Env, ruledBy("carol", "carol"))
	m.Bundle, m.Release, m.Plan = d.push(nobody), "", ""
	if _, err := d.Apply(t.Context(), alice, m); !errors.Is(err, fault.Denied) {
		t.Errorf("apply: %v, want a refusal", err)
	}
	if _, err := d.Destroy(t.Context(), alice, platform.Env, false, "", control.How{}); !errors.Is(err, fault.Denied) {
		t.Errorf("destroy: %v, want a refusal", err)
	}
	if got := d.State().Size(); got != size || d.administrator() != "alice" {
		t.Errorf("the ledger grew from %d to %d entries", size, got)
	}
}

func TestPlatformsEnvironmentTakesNothingElse(t *testing.T) {
	d := newDesk(t)
	if _, err := d.propose(platform.Env, shop("1")); !errors.Is(err, fault.Invalid) {
		t.Errorf("an app in the platform's environment: %v", err)
	}
	if _, err := d.propose("prod", ruledBy("alice", "alice")); !errors.Is(err, fault.Invalid) {
		t.Errorf("a definition in another environment: %v", err)
	}
	wrong := ruledBy("alice", "alice")
	wrong.Platform.Grants[0].Role = "gone"
	if _, err := d.propose(platform.Env, wrong); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "gone") {
		t.Errorf("a definition with a problem: %v", err)
	}
}
