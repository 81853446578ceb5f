package handler

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// need is what an operation needs: a permission, and where.
type need struct {
	permission platform.Permission
	where      func(h *Handler, r huma.Context) ([]spec.EnvName, error) // every one of them; nil: of no environment
}

// needs is the one table of who may do what over the API: New refuses an operation that it lacks. An operation that needs
// platform.None shows or changes only what its caller may see or owns, which it says itself with sees.
var needs = map[string]need{
	"get-health":    {platform.None, nil}, // public: the guard lets everybody pass
	"get-login":     {platform.None, nil}, // public, as the next two
	"ask-challenge": {platform.None, nil},
	"log-in":        {platform.None, nil},
	"get-server":    {platform.None, nil},
	"whoami":        {platform.None, nil},

	"list-environments": {platform.None, nil},
	"get-environment":   {platform.Read, named},
	"get-history":       {platform.Read, named},
	"get-logs":          {platform.Logs, named},
	"plan":              {platform.Plan, named},
	"apply":             {platform.Apply, named},
	"rollback":          {platform.Rollback, named},
	"plan-rollback":     {platform.Rollback, named},
	"list-volumes":      {platform.Read, named},
	"delete-volume":     {platform.Destroy, named},
	"destroy":           {platform.Destroy, named},
	"confirm":           {platform.Apply, named},
	"fork":              {platform.Apply, named}, // and read on what is forked
	"plan-promotion":    {platform.Plan, named},  // and read on where it comes from
	"verify":            {platform.Verify, named},
	"get-drift":         {platform.Read, named},
	"list-drift":        {platform.None, nil},

	"list-changes":    {platform.None, nil},
	"get-change":      {platform.Read, ofChange},
	"approve-change":  {platform.Approve, ofChange},
	"reject-change":   {platform.Approve, ofChange},
	"withdraw-change": {platform.Apply, ofChange},
	"apply-change":    {platform.Apply, ofChange},
	"review-change":   {platform.Approve, named},

	"get-release":    {platform.Read, ofRelease},
	"revoke-release": {platform.Revoke, ofRelease},
	"attest-release": {platform.Verify, ofRelease},
	"diff-releases":  {platform.Read, ofReleases},

	"get-events":     {platform.None, nil},
	"list-entries":   {platform.LedgerRead, nil},
	"get-entry":      {platform.LedgerRead, nil},
	"get-checkpoint": {platform.LedgerRead, nil},
	"verify-ledger":  {platform.LedgerRead, nil},
	"get-witnesses":  {platform.LedgerRead, nil},

	"list-secrets":            {platform.SecretRead, named},
	"get-secret":              {platform.SecretRead, named},
	"set-secret":              {platform.SecretWrite, named},
	"get-evidence-checkpoint": {platform.Evidence, nil},
	"get-evidence-blob":       {platform.Evidence, nil},
	"list-attachments":        {platform.Evidence, nil},
	"record-export":           {platform.Evidence, nil},

	"list-erasures":   {platform.Erase, nil},
	"request-erasure": {platform.Erase, nil},
	"get-erasure":     {platform.Erase, nil},
	"approve-erasure": {platform.Erase, nil},

	"list-tokens":  {platform.None, nil},
	"create-token": {platform.None, nil},
	"delete-token": {platform.None, nil},
}

// named is the environment in the path.
func named(_ *Handler, r huma.Context) ([]spec.EnvName, error) {
	return []spec.EnvName{spec.EnvName(r.Param("env"))}, nil
}

// ofRelease is the environment of the release in the path.
func ofRelease(h *Handler, r huma.Context) ([]spec.EnvName, error) { return h.envOf(r.Param("ref")) }

// ofReleases are the environments of both releases that are compared.
func ofReleases(h *Handler, r huma.Context) ([]spec.EnvName, error) {
	a, err := h.envOf(r.Query("a"))
	if err != nil {
		return nil, err
	}
	b, err := h.envOf(r.Query("b"))
	return append(a, b...), err
}

// ofChange is the environment of the change in the path.
func ofChange(h *Handler, r huma.Context) ([]spec.EnvName, error) {
	n, err := changeNumber(r.Param("change"))
	if err != nil {
		return nil, err
	}
	c, err := h.config.Control.State().Change(n)
	return []spec.EnvName{c.Env}, err
}

func (h *Handler) envOf(text string) ([]spec.EnvName, error) {
	if text == "" { // the operation says what is missing
		return []spec.EnvName{""}, nil
	}
	ref, err := api.ParseRef(text)
	if err != nil || ref.Digest == "" {
		return []spec.EnvName{spec.EnvName(ref.Env)}, err
	}
	known, err := h.config.Control.State().Release(ref.Digest)
	return []spec.EnvName{known.Env}, err
}

// gate lets an operation's request pass, or refuses it. Every operation of the API goes through here.
func (h *Handler) gate(r huma.Context, next func(huma.Context)) {
	op := r.Operation()
	if public(op.Path) {
		next(r)
		return
	}
	n, known := needs[op.OperationID]
	if !known { // register refuses such an operation: this one came another way
		h.answerProblem(r, fault.Errorf(fault.Denied, "nobody may use operation %s", op.OperationID))
		return
	}
	var envs []spec.EnvName
	if n.where == nil {
		envs = []spec.EnvName{""}
	} else {
		var err error
		if envs, err = n.where(h, r); err != nil {
			h.answerProblem(r, err)
			return
		}
	}
	for _, env := range envs {
		if err := h.authorize(r.Context(), op.OperationID, n.permission, env); err != nil {
			h.answerProblem(r, err)
			return
		}
	}
	next(r)
}

func (h *Handler) answerProblem(r huma.Context, err error) {
	_, w := humago.Unwrap(r)
	writeProblem(w, h.problem(r.Context(), r.Operation().OperationID, err).(*api.Problem))
}

// authorize refuses whoever lacks the permission in the environment, "" for what belongs to none, and has the ledger
// know. It is the one place that decides.
func (h *Handler) authorize(ctx context.Context, operation string, p platform.Permission, env spec.EnvName) error {
	c := callerFrom(ctx)
	if h.config.Control.Allows(c.Caller, p, env) {
		return nil
	}
	where := "environment " + string(env)
	if env == "" {
		where = "all environments"
	}
	cause := fmt.Sprintf("%s lacks the permission %s in %s", c.Actor.Who(), p, where)
	h.config.Control.Refused(ctx, c.Actor, env, state.AccessDenied{Operation: operation, Permission: string(p), Source: c.source, Cause: cause})
	return fault.WithHint(fault.Errorf(fault.Denied, "%s", cause), "the platform's definition grants it: invar show platform; ask one of its administrators")
}

// sees reports whether the caller may read what belongs to the environment, "" for what belongs to none.
func (h *Handler) sees(ctx context.Context, env spec.EnvName) bool {
	p := platform.Read
	if env == "" {
		p = platform.LedgerRead
	}
	return h.config.Control.Allows(callerFrom(ctx).Caller, p, env)
}

// lookAgain is how often a stream asks the gate again beside at every change: grants and credentials end by themselves.
const lookAgain = 5 * time.Second

// whileAllowed returns a context that ends when the caller may not do that any more. What
// lasts is refused by the same decision as what begins.
func (h *Handler) whileAllowed(ctx context.Context, operation string, p platform.Permission, env spec.EnvName) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends with the context, which the caller ends
		ticker := time.NewTicker(lookAgain)
		defer ticker.Stop()
		for {
			changed := h.config.Control.State().Changed()
			if h.authorize(ctx, operation, p, env) != nil {
				cancel()
				return
			}
			select {
			case <-changed:
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
			if !pause(ctx, eventSpacing) {
				return
			}
		}
	}()
	return ctx, cancel
}

// guarded lets requests that are no operations of the API pass by the same gate.
func (h *Handler) guarded(name string, permission func(*http.Request) platform.Permission, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h.authorize(r.Context(), name, permission(r), ""); err != nil {
			writeProblem(w, h.problem(r.Context(), name, err).(*api.Problem))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func always(p platform.Permission) func(*http.Request) platform.Permission {
	return func(*http.Request) platform.Permission { return p }
}

// pullOrPush is what a request of a registry client needs.
func pullOrPush(r *http.Request) platform.Permission {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return platform.Pull
	}
	return platform.Push
}

// caller is who asks, and from where.
type caller struct {
	control.Caller
	source string // "local", or the address
}

type callerKey struct{}

// callerFrom returns who asks. The guard put it there before anything else runs.
func callerFrom(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// actorFrom returns who asks, as the ledger names it.
func actorFrom(ctx context.Context) state.Actor { return callerFrom(ctx).Actor }

// looksLikeJWT reports whether a bearer token is of an OpenID provider, and none of the server's own.
func looksLikeJWT(secret string) bool { return strings.Count(secret, ".") == 2 }
