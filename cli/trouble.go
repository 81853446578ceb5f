package cli

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/invarhq/invar/api/client"
)

// logsOf is the command that shows what the instance wrote because of which a rollout failed. Once the instance is gone, its log is to be had
// by its name only.
func (w *watch) logsOf(ctx context.Context) string {
	const suffix = len("-k3jq7x2mzd") // of an instance's name, after its component's
	id := w.lastTrouble(ctx)
	if len(id) <= suffix {
		return fmt.Sprintf("invar logs %s/COMPONENT", w.acc.Env)
	}
	return fmt.Sprintf("invar logs %s/%s --instance %s", w.acc.Env, id[:len(id)-suffix], id)
}

// lastTrouble is the instance that was last found failing, or ended by itself, since the head moved; "" when the ledger can't be read.
func (w *watch) lastTrouble(ctx context.Context) (id string) {
	q := client.EntriesQuery{Env: w.acc.Env, Kind: "instance.", From: w.acc.Entry}
	for {
		page, err := w.client.Entries(ctx, q)
		if err != nil {
			return id
		}
		for _, e := range page.Entries {
			var d stepData
			if (e.Kind == "instance.exit" || e.Kind == "instance.failing") && json.Unmarshal(e.Data, &d) == nil {
				id = d.ID
			}
		}
		if page.Next >= page.Size || page.Next <= q.From {
			return id
		}
		q.From = page.Next
	}
}
