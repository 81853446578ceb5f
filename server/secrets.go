package server

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/secret"
	"github.com/invarhq/invar/secret/vault"
	"github.com/invarhq/invar/spec"
)

// openVault opens the secrets with the key that the configuration names.
func (s *Server) openVault(ctx context.Context) (*vault.Vault, error) {
	if err := noDumps(); err != nil {
		return nil, err
	}
	key := vault.KeyFile(s.data.path(secretsKey))
	if command := s.config.SecretsKeyCommand; command != "" {
		var err error
		if key, err = vault.KeyCommand(ctx, command); err != nil {
			return nil, err
		}
		if exists(s.data.path(secretsKey)) {
			s.log.Warn("a key of secrets lies in the data directory, and is not used: the command gives another", "file", s.data.path(secretsKey))
		}
	}
	return vault.Open(s.data.path(secretsDir), key)
}

// noDumps keeps what this process has in memory off the disk, should it crash; the processes that it starts can't dump either.
func noDumps() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core dumps: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbidding core dumps: %w", err)
	}
	return nil
}

// checkSecrets tries the newest version of each secret, and says which can't be delivered. The server starts all the same: what runs
// has its secrets, and all that needs none can be done.
func (s *Server) checkSecrets() {
	newest := map[secret.Ref]release.Secret{}
	for v := range s.control.State().AllSecrets() { // oldest first
		newest[secret.Ref{Env: v.Env, Name: v.Name}] = release.Secret{Name: v.Name, Version: v.Version}
	}
	for ref, v := range newest {
		value, err := s.vault.Open(ref, v.Version)
		clear(value)
		if err != nil {
			s.log.Error("a secret can't be delivered", "secret", ref.String(), "error", err, "hint", fault.Hint(err))
		}
	}
}

// secretOf is reconcile.Secrets. Its errors are lasting ones: a rollout ends with them as its cause, and what runs goes on.
func (s *Server) secretOf(_ context.Context, env spec.EnvName, v release.Secret) ([]byte, error) {
	return s.vault.Open(secret.Ref{Env: env, Name: v.Name}, v.Version)
}
