package handler

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/state"
)

func TestNoticesTellWhatIsDueAndWhatBlocks(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	e := state.Environment{Environment: deploy.Environment{Name: "prod"}, ConfirmBy: now.Add(time.Hour), Reviews: []state.Review{
		{Generation: 3, By: state.Actor{Kind: state.ActorLocal, Name: "root", Principal: "root"}, DueAt: now.Add(-time.Minute)},
		{Generation: 4, By: state.Actor{Kind: state.ActorLocal, Name: "root", Principal: "root"}, DueAt: now.Add(time.Minute)},
	}}
	rules := platform.Definition{Freezes: []platform.Freeze{{Name: "year-end", Kind: platform.FreezeDeny, Environments: []platform.Pattern{"prod"},
		From: now.Add(-time.Hour), To: now.Add(time.Hour)}}}
	var got []string
	for _, n := range noticesOf(state.New(nil), e, rules, now) {
		got = append(got, n.Kind)
		if n.Text == "" || n.Until == nil {
			t.Errorf("%+v says too little", n)
		}
	}
	want := []string{api.NoticeConfirm, api.NoticeOverdue, api.NoticeReview, api.NoticeFrozen}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	e = state.Environment{Environment: deploy.Environment{Name: "prod", Head: deploy.Generation{Number: 1, Release: "sha256:aa"}}, Since: now.Add(-48*time.Hour - time.Second)}
	if late := noticesOf(state.New(nil), e, platform.Definition{}, now); len(late) != 1 || late[0].Kind != api.NoticeUnverified || !strings.Contains(late[0].Text, "invar verify prod") {
		t.Errorf("what was not measured for two days: %+v", late)
	}
	e.Measured = &state.Measured{WholeAt: now.Add(-time.Hour)}
	if late := noticesOf(state.New(nil), e, platform.Definition{}, now); late != nil {
		t.Errorf("what was measured an hour ago: %+v", late)
	}
	if quiet := noticesOf(state.New(nil), state.Environment{}, platform.Definition{}, now); quiet != nil {
		t.Errorf("an environment of which there is nothing to tell has %v", quiet)
	}
}
