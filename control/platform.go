package control

import (
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
)

// errNoEnd is why the platform's environment can't be destroyed.
var errNoEnd = fault.WithHint(fault.Errorf(fault.Denied, "destroying environment %s would lock everyone out: without a definition, nobody may do anything", platform.Env),
	"change it instead: invar init --platform DIR, then invar -C DIR apply %s", platform.Env)

// lasting refuses a definition of the platform that nobody could ever change again.
func (s *Service) lasting(r release.Record) error {
	if r.Platform == nil {
		return nil
	}
	return r.Platform.Lockout(s.config.Now())
}
