package state

import (
	"testing"
	"time"

	"github.com/invarhq/invar/platform"
)

func TestDefinitionNamesWhoAppliedProposedAndApprovedIt(t *testing.T) {
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	by := func(name platform.PrincipalName) Actor {
		return Actor{Kind: ActorSSH, Name: string(name), Principal: name}
	}
	s := New(nil)
	if got := s.DefinedBy(); got != "" {
		t.Errorf("without a definition: %q", got)
	}
	tx := s.db.Txn(true)
	env := Environment{}
	env.Name, env.Head.Number, env.Head.Release = platform.Env, 3, "sha256:aa"
	for _, o := range []object{
		{tableEnvironments, &env},
		{tableChanges, &Change{ChangeRequest: ChangeRequest{Change: 4}, Env: platform.Env, Author: by("root"), At: at,
			Approvals: []Approval{{By: by("alice")}, {By: by("carol")}}}},
		{tableGenerations, &Generation{Env: platform.Env, Number: 1, Kind: MovedByApply, Release: "sha256:aa", Actor: by("dave"), Of: 4}},
		{tableGenerations, &Generation{Env: platform.Env, Number: 2, Kind: MovedByApply, Release: "sha256:bb", Actor: by("bob")}},
		{tableGenerations, &Generation{Env: platform.Env, Number: 3, Kind: MovedByRollback, Release: "sha256:aa", Actor: by("eve"), To: 1}},
	} {
		must(tx.Insert(o.table, o.value))
	}
	tx.Commit()
	want := "dave, as proposed by root and approved by alice and carol: platform@1, release sha256:aa"
	if got := s.DefinedBy(); got != want {
		t.Errorf("after a rollback that brought it back:\n%s\nwant\n%s", got, want)
	}
}
