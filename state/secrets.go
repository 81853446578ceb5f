package state

import (
	"fmt"
	"iter"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// KnownSecret is a version of a secret. It is there for good: no entry changes or removes it.
type KnownSecret struct {
	Env     spec.EnvName  `json:"env"`
	Name    string        `json:"name"`
	Version digest.Digest `json:"version"`
	Entry   int64         `json:"entry"` // a later version has a higher one
	Actor   Actor         `json:"actor"`
	Reason  string        `json:"reason,omitempty"`
	At      time.Time     `json:"at"`
}

// secretKey orders the versions of an environment by name, then age.
func secretKey(env spec.EnvName, name string, entry int64) string {
	return fmt.Sprintf("%s/%s/%019d", env, name, entry)
}

func (f *fold) secretVersion(e Entry, d SecretVersion) error {
	if get[KnownSecret](f.tx, tableSecrets, indexVersion, string(d.Version)) != nil {
		return fault.Errorf(fault.Conflict, "version %s of a secret is known already", d.Version)
	}
	f.put(tableSecrets, &KnownSecret{e.Env, d.Name, d.Version, f.log.Size, e.Actor, e.Reason, e.Time})
	return nil
}

// Secrets yields every version of every secret of an environment, by name and then oldest first. The environment need not
// have had a head yet.
func (s State) Secrets(env spec.EnvName) iter.Seq[KnownSecret] {
	return all[KnownSecret](s.db.Txn(false), tableSecrets, string(env)+"/")
}

// SecretVersions yields the versions of one secret, oldest first.
func (s State) SecretVersions(env spec.EnvName, name string) iter.Seq[KnownSecret] {
	return all[KnownSecret](s.db.Txn(false), tableSecrets, string(env)+"/"+name+"/")
}

// AllSecrets yields every version of every secret, by environment and name.
func (s State) AllSecrets() iter.Seq[KnownSecret] {
	return all[KnownSecret](s.db.Txn(false), tableSecrets, "")
}

// Pins returns the newest version of each secret of an environment: what a release that is planned now gets.
func (s State) Pins(env spec.EnvName) release.Pins {
	pins := release.Pins{}
	for v := range s.Secrets(env) {
		pins[v.Name] = v.Version // oldest first
	}
	return pins
}
