package platform

import (
	"fmt"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// The kinds of freezes.
const (
	FreezeDeny  = "deny"
	FreezeAllow = "allow"
)

// Frozen says why a head of the environment may not move at that time.
type Frozen struct {
	Freeze string    // name of the window
	Until  time.Time // when it ends; zero: not known, as of an allow window that has not been found to open again
	Reason string    // a sentence for people
}

// Frozen reports whether a freeze forbids to move the environment's head now. A rollback is not held up by windows
// that let rollbacks pass.
func (d Definition) Frozen(env spec.EnvName, now time.Time, rollback bool) (Frozen, bool) {
	allow, open := "", false
	for _, f := range d.Freezes {
		if !MatchesAny(f.Environments, env) || f.Rollbacks && rollback {
			continue
		}
		end, in := f.window(now)
		switch {
		case f.Kind == FreezeDeny && in:
			return Frozen{f.Name, end, fmt.Sprintf("freeze %s is in force until %s", f.Name, end.Format(time.RFC3339))}, true
		case f.Kind == FreezeAllow:
			allow, open = f.Name, open || in
		}
	}
	if allow == "" || open {
		return Frozen{}, false
	}
	next := d.opens(env, now)
	reason := fmt.Sprintf("changes are allowed only in windows such as %s, and none is open", allow)
	if !next.IsZero() {
		reason += "; the next opens at " + next.Format(time.RFC3339)
	}
	return Frozen{allow, next, reason}, true
}

// opens returns when the next allow window of the environment begins.
func (d Definition) opens(env spec.EnvName, now time.Time) time.Time {
	var next time.Time
	for _, f := range d.Freezes {
		if f.Kind != FreezeAllow || !MatchesAny(f.Environments, env) {
			continue
		}
		if at := f.next(now); !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// next returns when a window begins after now; zero: never again.
func (f Freeze) next(now time.Time) time.Time {
	if f.Cron == "" {
		if f.From.After(now) {
			return f.From
		}
		return time.Time{}
	}
	s, loc, err := f.schedule()
	if err != nil {
		return time.Time{}
	}
	return s.Next(now.In(loc))
}

// window reports whether now lies in one of the windows, and when that ends. Windows that overlap are one.
func (f Freeze) window(now time.Time) (end time.Time, in bool) {
	if f.Cron == "" {
		return f.To, !now.Before(f.From) && now.Before(f.To)
	}
	s, loc, err := f.schedule()
	if err != nil { // Check refuses it: what can't be read must not open anything
		return time.Time{}, f.Kind == FreezeDeny
	}
	length := time.Duration(f.DurationMillis) * time.Millisecond
	// A window is open if one begins after now-length and not after now. Next is exclusive.
	begin := s.Next(now.Add(-length).In(loc))
	for !begin.IsZero() && !begin.After(now) {
		in, end = true, begin.Add(length)
		begin = s.Next(begin)
	}
	return end, in
}

// cronFields are the five of crontab(5), and its @daily and the like.
var cronFields = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

func (f Freeze) schedule() (cron.Schedule, *time.Location, error) {
	loc, err := time.LoadLocation(f.Timezone)
	if err != nil {
		return nil, nil, fault.WithHint(fault.Errorf(fault.Invalid, "time zone %q is not known", f.Timezone), `write it as in the IANA database: "Europe/Berlin"`)
	}
	s, err := cronFields.Parse(f.Cron)
	if err != nil {
		return nil, nil, fault.WithHint(fault.Errorf(fault.Invalid, "cron %q: %w", f.Cron, err), `five fields: minute, hour, day of month, month, day of week: "0 18 * * FRI"`)
	}
	return s, loc, nil
}
