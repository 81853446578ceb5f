package change_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
)

func definition(t *testing.T, users ...string) release.Record {
	t.Helper()
	r, err := release.EvaluatePlatform(platform.Definition{
		Principals: []platform.Principal{{Name: "alice", LocalUsers: users}},
		Roles:      []platform.Role{{Name: "admin", Permissions: []platform.Permission{platform.Anything}}},
		Grants:     []platform.Grant{{Role: "admin", Principals: []platform.PrincipalName{"alice"}, Environments: []platform.Pattern{"*"}}},
	}, digest.Of([]byte("bundle")))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPlanOfThePlatformHasItsBlocks(t *testing.T) {
	p := change.MakePlan(current(t, 3, definition(t, "alice")), proposed(t, definition(t, "alice", "root")))
	want := []change.PlatformItem{{Action: change.Replace, Kind: "principal", Name: "alice", Causes: []release.Cause{{Field: "local_users", New: new(`"root"`)}}}}
	if diff := cmp.Diff(want, p.Platform); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	if adds, replaces, removes := p.Count(); p.Empty() || adds != 0 || replaces != 1 || removes != 0 {
		t.Errorf("+%d +/-%d -%d, empty %t", adds, replaces, removes, p.Empty())
	}
	saved, err := change.Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	again, err := change.Decode(saved)
	if diff := cmp.Diff(p, again); err != nil || diff != "" {
		t.Errorf("saved and read: %v\n%s", err, diff)
	}
	if p := change.MakePlan(current(t, 3, definition(t, "alice")), proposed(t, definition(t, "alice"))); !p.Empty() {
		t.Errorf("equal definitions: %+v", p)
	}
}
