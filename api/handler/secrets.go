package handler

import (
	"context"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/secret"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// secretInput names a secret in the path.
type secretInput struct {
	Env  string `path:"env" maxLength:"63" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?$" example:"staging" doc:"Name of the environment."`
	Name string `path:"name" maxLength:"63" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?$" example:"db-password" doc:"Name of the secret."`
}

func (in *secretInput) ref() secret.Ref { return secret.Ref{Env: spec.EnvName(in.Env), Name: in.Name} }

// setSecretInput is a secretInput with a value, which nothing may print.
type setSecretInput struct {
	Env  string `path:"env" maxLength:"63" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?$" example:"staging" doc:"Name of the environment."`
	Name string `path:"name" maxLength:"63" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?$" example:"db-password" doc:"Name of the secret."`
	Body api.SecretRequest
}

func secretOp(id, method, path, summary, description string, statuses ...int) huma.Operation {
	return huma.Operation{
		OperationID: id, Method: method, Path: path, Tags: []string{tagSecrets},
		Summary: summary, Description: description, Errors: statuses,
	}
}

func (h *Handler) registerSecrets() {
	register(h, secretOp("list-secrets", http.MethodGet, api.PathSecrets, "List the secrets of an environment",
		"Their names and newest versions, never a value. The environment need not exist yet."),
		func(_ context.Context, in *envInput) (*body[api.Secrets], error) {
			return answerWith(h.secrets(spec.EnvName(in.Env)), nil)
		})
	register(h, secretOp("get-secret", http.MethodGet, api.PathSecret, "List the versions of a secret",
		"Newest first, never a value.", http.StatusNotFound),
		func(_ context.Context, in *secretInput) (*body[api.SecretHistory], error) {
			return answerWith(h.secretHistory(in.ref()))
		})
	set := secretOp("set-secret", http.MethodPost, api.PathSecret, "Make a new version of a secret",
		"The value is encrypted at once, and never told again. No instance gets it before a release that pins it is applied.")
	set.DefaultStatus = http.StatusCreated
	register(h, set, func(ctx context.Context, in *setSecretInput) (*body[api.SecretVersion], error) {
		defer clear(in.Body.Value)
		made, err := h.config.Control.SetSecret(ctx, actorFrom(ctx), secret.Ref{Env: spec.EnvName(in.Env), Name: in.Name}, in.Body.Value, in.Body.Reason)
		return answerWith(secretVersionOf(made, nil), err)
	})
}

// head returns the record of an environment's head; the zero value when there is none.
func head(st state.State, env spec.EnvName) release.Record {
	e, err := st.Environment(env)
	if err != nil {
		return release.Record{}
	}
	return e.Head.Record
}

func (h *Handler) secrets(env spec.EnvName) api.Secrets {
	st := h.config.Control.State()
	record := head(st, env)
	pins := release.PinsOf(record)
	out := api.Secrets{Secrets: []api.Secret{}}
	count := 0
	for v := range st.Secrets(env) { // by name, oldest first
		if n := len(out.Secrets); n > 0 && out.Secrets[n-1].Name == v.Name {
			out.Secrets = out.Secrets[:n-1]
		} else {
			count = 0
		}
		count++
		out.Secrets = append(out.Secrets, api.Secret{
			Env: string(v.Env), Name: v.Name, Version: v.Version, Versions: count, By: v.Actor.String(), Reason: v.Reason, At: v.At,
			UsedBy: usersOf(record, v.Name), Head: pins[v.Name],
		})
	}
	return out
}

// usersOf lists the components that get a secret, in the order of the record.
func usersOf(r release.Record, name string) []string {
	out := []string{}
	for _, p := range r.Components {
		if slices.ContainsFunc(p.Component.Secrets, func(s release.Secret) bool { return s.Name == name }) {
			out = append(out, string(p.Component.Name))
		}
	}
	return out
}

func (h *Handler) secretHistory(r secret.Ref) (api.SecretHistory, error) {
	st := h.config.Control.State()
	pins := release.PinsOf(head(st, r.Env))
	out := api.SecretHistory{Versions: []api.SecretVersion{}}
	for v := range st.SecretVersions(r.Env, r.Name) {
		out.Versions = append(out.Versions, secretVersionOf(v, pins))
	}
	if len(out.Versions) == 0 {
		return out, fault.WithHint(fault.Errorf(fault.NotFound, "secret %s has no version", r), "invar secret set %s", r)
	}
	slices.Reverse(out.Versions)
	return out, nil
}

func secretVersionOf(v state.KnownSecret, pins release.Pins) api.SecretVersion {
	return api.SecretVersion{
		Env: string(v.Env), Name: v.Name, Version: v.Version, By: v.Actor.String(), Reason: v.Reason, At: v.At, Entry: uint64(v.Entry),
		Head: v.Version != "" && pins[v.Name] == v.Version,
	}
}
