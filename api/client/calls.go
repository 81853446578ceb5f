package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

// Server describes the server.
func (c *Client) Server(ctx context.Context) (api.Server, error) {
	return call[api.Server](ctx, c, http.MethodGet, api.PathServer, nil, nil)
}

// Environments lists the environments, sorted by name.
func (c *Client) Environments(ctx context.Context) ([]api.EnvironmentSummary, error) {
	out, err := call[api.Environments](ctx, c, http.MethodGet, api.PathEnvironments, nil, nil)
	return out.Environments, err
}

// Environment tells all of one environment.
func (c *Client) Environment(ctx context.Context, env string) (api.Environment, error) {
	return call[api.Environment](ctx, c, http.MethodGet, api.EnvironmentPath(api.PathEnvironment, env), nil, nil)
}

// History lists the heads that an environment had, newest first.
func (c *Client) History(ctx context.Context, env string) ([]api.Generation, error) {
	out, err := call[api.History](ctx, c, http.MethodGet, api.EnvironmentPath(api.PathHistory, env), nil, nil)
	return out.Generations, err
}

// Plan says what applying a release would do.
func (c *Client) Plan(ctx context.Context, env string, req api.PlanRequest) (api.Plan, error) {
	return call[api.Plan](ctx, c, http.MethodPost, api.EnvironmentPath(api.PathPlan, env), nil, req)
}

// Apply moves the head by a plan. fault.Conflict: the plan is stale.
func (c *Client) Apply(ctx context.Context, env string, req api.ApplyRequest) (api.Accepted, error) {
	return call[api.Accepted](ctx, c, http.MethodPost, api.EnvironmentPath(api.PathApply, env), nil, req)
}

// PlanRollback says what a rollback would do.
func (c *Client) PlanRollback(ctx context.Context, env string, req api.RollbackPlanRequest) (api.Plan, error) {
	return call[api.Plan](ctx, c, http.MethodPost, api.EnvironmentPath(api.PathRollbackPlan, env), nil, req)
}

// Volumes lists an environment's volumes.
func (c *Client) Volumes(ctx context.Context, env string) (api.Volumes, error) {
	return call[api.Volumes](ctx, c, http.MethodGet, api.EnvironmentPath(api.PathVolumes, env), nil, nil)
}

// DeleteVolume deletes a version or a snapshot of a volume for good.
func (c *Client) DeleteVolume(ctx context.Context, env string, req api.VolumeDeleteRequest) (api.Volumes, error) {
	return call[api.Volumes](ctx, c, http.MethodPost, api.EnvironmentPath(api.PathVolumeDelete, env), nil, req)
}

// Rollback moves the head back to the release of an earlier generation.
func (c *Client) Rollback(ctx context.Context, env string, req api.RollbackRequest) (api.Accepted, error) {
	return call[api.Accepted](ctx, c, http.MethodPost, api.EnvironmentPath(api.PathRollback, env), nil, req)
}

// Fork makes an environment that runs the release of another.
func (c *Client) Fork(ctx context.Context, env string, req api.ForkRequest) (api.Accepted, error) {
	return call[api.Accepted](ctx, c, http.MethodPost, api.EnvironmentPath(api.PathFork, env), nil, req)
}

// Promotion plans the bundle of another environment's head.
func (c *Client) Promotion(ctx context.Context, env string, req api.PromotionRequest) (api.Promotion, error) {
	return call[api.Promotion](ctx, c, http.MethodPost, api.EnvironmentPath(api.PathPromotion, env), nil, req)
}

// Measure reads again what every instance of an environment runs on, and compares it with the release.
func (c *Client) Measure(ctx context.Context, env string) (api.Measured, error) {
	return call[api.Measured](ctx, c, http.MethodPost, api.EnvironmentPath(api.PathMeasure, env), nil, nil)
}

// Drifts lists what differed in an environment, oldest first; for "" in all. open: only what is not resolved; since: only what was open
// then or later, unless it is zero.
func (c *Client) Drifts(ctx context.Context, env string, open bool, since time.Time) ([]api.Drift, error) {
	query := url.Values{"open": {strconv.FormatBool(open)}}
	if !since.IsZero() {
		query.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	path := api.PathDrifts
	if env != "" {
		path = api.EnvironmentPath(api.PathDrift, env)
	}
	out, err := call[api.Drifts](ctx, c, http.MethodGet, path, query, nil)
	return out.Drifts, err
}

// Destroy retires all that an environment runs.
func (c *Client) Destroy(ctx context.Context, env string, req api.DestroyRequest) (api.Accepted, error) {
	return call[api.Accepted](ctx, c, http.MethodPost, api.EnvironmentPath(api.PathDestroy, env), nil, req)
}

// Secrets lists the secrets of an environment: names and newest versions.
func (c *Client) Secrets(ctx context.Context, env string) ([]api.Secret, error) {
	out, err := call[api.Secrets](ctx, c, http.MethodGet, api.EnvironmentPath(api.PathSecrets, env), nil, nil)
	return out.Secrets, err
}

// SecretHistory lists the versions of a secret, newest first.
func (c *Client) SecretHistory(ctx context.Context, env, name string) ([]api.SecretVersion, error) {
	out, err := call[api.SecretHistory](ctx, c, http.MethodGet, api.SecretPath(env, name), nil, nil)
	return out.Versions, err
}

// SetSecret makes a new version of a secret.
func (c *Client) SetSecret(ctx context.Context, env, name string, req api.SecretRequest) (api.SecretVersion, error) {
	return call[api.SecretVersion](ctx, c, http.MethodPost, api.SecretPath(env, name), nil, req)
}

// Release tells of a release: by ENV, ENV@GENERATION or digest.
func (c *Client) Release(ctx context.Context, ref api.Ref) (api.Release, error) {
	return call[api.Release](ctx, c, http.MethodGet, api.ReleasePath(ref.String()), nil, nil)
}

// Diff says how two releases differ.
func (c *Client) Diff(ctx context.Context, a, b api.Ref) (api.Diff, error) {
	query := url.Values{"a": {a.String()}, "b": {b.String()}}
	return call[api.Diff](ctx, c, http.MethodGet, api.PathDiff, query, nil)
}

// LogsQuery says which part of a component's log is wanted.
type LogsQuery struct {
	Env, Component string
	Instance       string // "": all of the component
	Tail           int    // lines of each instance to begin with; negative: all
	Follow         bool   // go on as lines come, until ctx ends
}

// Logs writes a component's log to w.
func (c *Client) Logs(ctx context.Context, q LogsQuery, w io.Writer) error {
	query := url.Values{"tail": {strconv.Itoa(q.Tail)}, "follow": {strconv.FormatBool(q.Follow)}}
	if q.Instance != "" {
		query.Set("instance", q.Instance)
	}
	resp, err := c.send(ctx, http.MethodGet, api.LogsPath(q.Env, q.Component), query, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil && ctx.Err() == nil {
		return fmt.Errorf("reading the log of %s/%s: %w", q.Env, q.Component, err)
	}
	return ctx.Err()
}

// EntriesQuery says which part of the ledger is wanted.
type EntriesQuery struct {
	From  uint64
	To    uint64 // exclusive; 0: to the end
	Env   string // "": all
	Kind  string // "": all; "instance." takes every kind that begins so
	Limit int    // 0: the server's
}

// Entries reads a part of the ledger.
func (c *Client) Entries(ctx context.Context, q EntriesQuery) (api.Entries, error) {
	query := url.Values{"from": {strconv.FormatUint(q.From, 10)}}
	if q.To != 0 {
		query.Set("to", strconv.FormatUint(q.To, 10))
	}
	if q.Env != "" {
		query.Set("env", q.Env)
	}
	if q.Kind != "" {
		query.Set("kind", q.Kind)
	}
	if q.Limit != 0 {
		query.Set("limit", strconv.Itoa(q.Limit))
	}
	return call[api.Entries](ctx, c, http.MethodGet, api.PathEntries, query, nil)
}

// Entry reads one entry with the proof that the ledger holds it.
func (c *Client) Entry(ctx context.Context, index uint64) (api.Proof, error) {
	return call[api.Proof](ctx, c, http.MethodGet, api.EntryPath(index), nil, nil)
}

// Checkpoint reads the ledger's signed tree head.
func (c *Client) Checkpoint(ctx context.Context) (api.Checkpoint, error) {
	return call[api.Checkpoint](ctx, c, http.MethodGet, api.PathCheckpoint, nil, nil)
}

// Witnesses reads how the ledger stands with its witnesses.
func (c *Client) Witnesses(ctx context.Context) (api.Witnesses, error) {
	return call[api.Witnesses](ctx, c, http.MethodGet, api.PathWitnesses, nil, nil)
}

// Verify has the server check its whole ledger. To check without trusting the server, read the tiles.
func (c *Client) Verify(ctx context.Context) (api.Verification, error) {
	return call[api.Verification](ctx, c, http.MethodPost, api.PathVerify, nil, nil)
}

// Tokens lists the valid tokens, without their secrets.
func (c *Client) Tokens(ctx context.Context) ([]api.Token, error) {
	out, err := call[api.Tokens](ctx, c, http.MethodGet, api.PathTokens, nil, nil)
	return out.Tokens, err
}

// CreateToken makes a token.
func (c *Client) CreateToken(ctx context.Context, req api.TokenRequest) (api.NewToken, error) {
	return call[api.NewToken](ctx, c, http.MethodPost, api.PathTokens, nil, req)
}

// DeleteToken makes a token worthless.
func (c *Client) DeleteToken(ctx context.Context, id string) error {
	_, err := call[struct{}](ctx, c, http.MethodDelete, api.TokenPath(id), nil, nil)
	return err
}

// Healthy says whether the server can do its work.
func (c *Client) Healthy(ctx context.Context) (api.Health, error) {
	return call[api.Health](ctx, c, http.MethodGet, api.PathHealth, nil, nil)
}

// Changes lists changes, newest first: the open ones, or all of them. env "" is every environment.
func (c *Client) Changes(ctx context.Context, env string, all bool) ([]api.ChangeSummary, error) {
	query := url.Values{"all": {strconv.FormatBool(all)}}
	if env != "" {
		query.Set("env", env)
	}
	out, err := call[api.Changes](ctx, c, http.MethodGet, api.PathChanges, query, nil)
	return out.Changes, err
}

// Change shows a change with its plan.
func (c *Client) Change(ctx context.Context, n int) (api.ChangeDetail, error) {
	return call[api.ChangeDetail](ctx, c, http.MethodGet, api.ChangePath(api.PathChange, n), nil, nil)
}

// Approve approves a change by what was signed.
func (c *Client) Approve(ctx context.Context, n int, req api.SignedRequest) (api.ChangeDetail, error) {
	return call[api.ChangeDetail](ctx, c, http.MethodPost, api.ChangePath(api.PathApprove, n), nil, req)
}

// Reject rejects a change by what was signed.
func (c *Client) Reject(ctx context.Context, n int, req api.SignedRequest) (api.ChangeDetail, error) {
	return call[api.ChangeDetail](ctx, c, http.MethodPost, api.ChangePath(api.PathReject, n), nil, req)
}

// Withdraw takes a change back.
func (c *Client) Withdraw(ctx context.Context, n int, req api.WithdrawRequest) (api.ChangeDetail, error) {
	return call[api.ChangeDetail](ctx, c, http.MethodPost, api.ChangePath(api.PathWithdraw, n), nil, req)
}

// CarryOut carries an approved change out.
func (c *Client) CarryOut(ctx context.Context, n int, req api.CarryOutRequest) (api.Accepted, error) {
	return call[api.Accepted](ctx, c, http.MethodPost, api.ChangePath(api.PathCarryOut, n), nil, req)
}

// Confirm lets a head stay that was to be confirmed.
func (c *Client) Confirm(ctx context.Context, env string, req api.ConfirmRequest) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, api.EnvironmentPath(api.PathConfirm, env), nil, req)
	return err
}

// Review records a review of what was done in an emergency.
func (c *Client) Review(ctx context.Context, env string, req api.ReviewRequest) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, api.EnvironmentPath(api.PathReview, env), nil, req)
	return err
}

// Revoke blocks a release for good.
func (c *Client) Revoke(ctx context.Context, ref api.Ref, req api.RevokeRequest) (api.Revoked, error) {
	return call[api.Revoked](ctx, c, http.MethodPost, api.RevokePath(ref.String()), nil, req)
}

// Attest has the server record that a release was made again, and what came of it.
func (c *Client) Attest(ctx context.Context, ref api.Ref, req api.Reproduction) (api.Attested, error) {
	return call[api.Attested](ctx, c, http.MethodPost, api.AttestPath(ref.String()), nil, req)
}

// WhoAmI tells who the caller is, and what he may do in an environment, or with "" on the server as a whole.
func (c *Client) WhoAmI(ctx context.Context, env string) (api.WhoAmI, error) {
	query := url.Values{}
	if env != "" {
		query.Set("env", env)
	}
	return call[api.WhoAmI](ctx, c, http.MethodGet, api.PathWhoAmI, query, nil)
}

// CheckpointAt reads the oldest signed tree head of at least size entries.
func (c *Client) CheckpointAt(ctx context.Context, size int64) (api.Checkpoint, error) {
	return call[api.Checkpoint](ctx, c, http.MethodGet, api.EvidenceCheckpointPath(size), nil, nil)
}

// Attached lists what is attached to an image.
func (c *Client) Attached(ctx context.Context, manifest digest.Digest) ([]api.Attachment, error) {
	out, err := call[api.Attachments](ctx, c, http.MethodGet, api.EvidencePath(api.PathEvidenceImage, manifest), nil, nil)
	return out.Attachments, err
}

// RecordExport has the ledger know what was exported.
func (c *Client) RecordExport(ctx context.Context, req api.ExportRequest) (api.ExportReceipt, error) {
	return call[api.ExportReceipt](ctx, c, http.MethodPost, api.PathEvidenceExports, nil, req)
}

// Content reads content that an entry names.
func (c *Client) Content(ctx context.Context, d digest.Digest) ([]byte, error) {
	return c.raw(ctx, api.EvidencePath(api.PathEvidenceBlob, d))
}

// Tile reads a resource of the tiled log (https://c2sp.org/tlog-tiles), by its path below the log's prefix.
func (c *Client) Tile(ctx context.Context, path string) ([]byte, error) {
	return c.raw(ctx, api.PathTiles+path)
}

// raw reads an answer that is no JSON.
func (c *Client) raw(ctx context.Context, path string) ([]byte, error) {
	resp, err := c.send(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return nil, fault.As(fault.Unavailable, fmt.Errorf("reading %s: %w", path, err))
	case len(b) > maxAnswerBytes:
		return nil, fault.Errorf(fault.Invalid, "the answer of %s is larger than %d bytes", path, maxAnswerBytes)
	}
	return b, nil
}

// Erasures lists requests to erase, newest first; all: also those that are closed.
func (c *Client) Erasures(ctx context.Context, all bool) ([]api.Erasure, error) {
	query := url.Values{"all": {strconv.FormatBool(all)}}
	out, err := call[api.Erasures](ctx, c, http.MethodGet, api.PathErasures, query, nil)
	return out.Erasures, err
}

// RequestErasure asks to erase content.
func (c *Client) RequestErasure(ctx context.Context, req api.ErasureRequest) (api.Erasure, error) {
	return call[api.Erasure](ctx, c, http.MethodPost, api.PathErasures, nil, req)
}

// Erasure returns a request to erase.
func (c *Client) Erasure(ctx context.Context, n int) (api.Erasure, error) {
	return call[api.Erasure](ctx, c, http.MethodGet, api.ErasurePath(api.PathErasure, n), nil, nil)
}

// ApproveErasure agrees to an erasure by what was signed.
func (c *Client) ApproveErasure(ctx context.Context, n int, req api.SignedRequest) (api.Erasure, error) {
	return call[api.Erasure](ctx, c, http.MethodPost, api.ErasurePath(api.PathErasureApprove, n), nil, req)
}
