package spec

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/invarhq/invar/fault"
)

// Limits. They keep a mistake in a loop from becoming a release.
const (
	MaxName        = 63
	MaxComponents  = 10_000
	MaxReplicas    = 1_000
	MaxFileBytes   = 4 << 20
	MaxEnvBytes    = 128 << 10 // of one variable: the kernel's limit
	MaxSizeBytes   = int64(1) << 50
	MaxDuration    = 30 * 24 * time.Hour
	MinMemoryBytes = 4 << 20
)

// CheckName says what is wrong with s as a name: it must be a DNS label that begins with a letter.
// Its errors are of kind fault.Invalid.
func CheckName(s string) error {
	switch {
	case s == "":
		return fault.Errorf(fault.Invalid, "a name is empty")
	case len(s) > MaxName:
		return fault.Errorf(fault.Invalid, "name %q has %d characters; %d are allowed", s, len(s), MaxName)
	}
	for i, c := range []byte(s) {
		letter, digit := 'a' <= c && c <= 'z', '0' <= c && c <= '9'
		inside := i > 0 && i < len(s)-1
		if !letter && !(digit && i > 0) && !(c == '-' && inside) {
			return fault.Errorf(fault.Invalid, "name %q: want a to z, 0 to 9 and inner hyphens, beginning with a letter", s)
		}
	}
	return nil
}

// SuggestName turns s into a name, or "" when nothing of it can be used.
func SuggestName(s string) string {
	out := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		case r == '_' || r == '.' || r == ' ' || r == '-' || r == '/':
			return '-'
		}
		return -1
	}, strings.ToLower(s))
	out = strings.TrimLeft(out, "-0123456789")
	return strings.TrimRight(out[:min(len(out), MaxName)], "-")
}

var sizeUnits = []struct {
	suffix string
	shift  uint
}{{"Ti", 40}, {"Gi", 30}, {"Mi", 20}, {"Ki", 10}}

// ParseSize reads a size: a whole number and Ki, Mi, Gi or Ti, or bytes without a unit.
// Its errors are of kind fault.Invalid.
func ParseSize(s string) (int64, error) {
	digits, shift := s, uint(0)
	for _, u := range sizeUnits {
		if d, ok := strings.CutSuffix(s, u.suffix); ok {
			digits, shift = d, u.shift
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || digits[0] == '+' || (digits[0] == '0' && len(digits) > 1) {
		return 0, fault.WithHint(fault.Errorf(fault.Invalid, "size %q: want a whole number and Ki, Mi, Gi or Ti", s), "%s", suggestSize(s))
	}
	if n > uint64(MaxSizeBytes)>>shift {
		return 0, fault.Errorf(fault.Invalid, "size %q is more than %s", s, FormatSize(MaxSizeBytes))
	}
	return int64(n << shift), nil
}

// suggestSize knows the spellings of other tools.
func suggestSize(s string) string {
	digits := strings.TrimRight(s, "KkMmGgTtIiBb ")
	unit := strings.ToUpper(strings.TrimSpace(s[len(digits):]))
	if _, err := strconv.ParseUint(digits, 10, 53); err != nil || unit == "" || unit == "B" {
		return `Write a size as "64Mi".`
	}
	return fmt.Sprintf("Did you mean %q?", digits+unit[:1]+"i")
}

// FormatSize writes n as ParseSize reads it, with the largest unit that loses nothing.
func FormatSize(n int64) string {
	for _, u := range sizeUnits {
		if n != 0 && n&(1<<u.shift-1) == 0 {
			return strconv.FormatInt(n>>u.shift, 10) + u.suffix
		}
	}
	return strconv.FormatInt(n, 10)
}

// ParseDuration reads a duration as Go writes it ("1m30s"): whole milliseconds, from zero to MaxDuration.
// Its errors are of kind fault.Invalid.
func ParseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		err = fault.Errorf(fault.Invalid, "duration %q: want a number and ms, s, m or h", s)
		if _, e := strconv.Atoi(s); e == nil {
			return 0, fault.WithHint(err, "Did you mean %q?", s+"s")
		}
		return 0, fault.WithHint(err, `Write a duration as "10s" or "1m30s".`)
	case d < 0:
		return 0, fault.Errorf(fault.Invalid, "duration %q is negative", s)
	case d > MaxDuration:
		return 0, fault.Errorf(fault.Invalid, "duration %q is more than %s", s, MaxDuration)
	case d%time.Millisecond != 0:
		return 0, fault.Errorf(fault.Invalid, "duration %q is not whole milliseconds", s)
	}
	return d, nil
}

// MaxPeriod is the longest period.
const MaxPeriod = 100 * year

const (
	day  = 24 * time.Hour
	year = 365 * day
)

// ParsePeriod reads a duration as ParseDuration does, or a longer one: a whole number and d, w or y, of 365 days; up to MaxPeriod.
// Its errors are of kind fault.Invalid.
func ParsePeriod(s string) (time.Duration, error) {
	d, ok := days(s)
	if !ok {
		var err error
		if d, err = time.ParseDuration(s); err != nil {
			return 0, fault.WithHint(fault.Errorf(fault.Invalid, "duration %q: want a number and s, m or h, or a whole number and d, w or y", s),
				`Write it as "72h", "90d" or "7y".`)
		}
	}
	switch {
	case d < 0:
		return 0, fault.Errorf(fault.Invalid, "duration %q is negative", s)
	case d > MaxPeriod:
		return 0, fault.Errorf(fault.Invalid, "duration %q is more than 100 years", s)
	case d%time.Millisecond != 0:
		return 0, fault.Errorf(fault.Invalid, "duration %q is not whole milliseconds", s)
	}
	return d, nil
}

// days reads a whole number and d, w or y. What is more than MaxPeriod is just that.
func days(s string) (time.Duration, bool) {
	unit := map[byte]time.Duration{'d': day, 'w': 7 * day, 'y': year}
	if s == "" || unit[s[len(s)-1]] == 0 {
		return 0, false
	}
	digits, one := s[:len(s)-1], unit[s[len(s)-1]]
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil || digits != strconv.FormatUint(n, 10) {
		return 0, false
	}
	return time.Duration(min(int64(n), int64(MaxPeriod/one)+1)) * one, true
}

// ParseCPU turns cores into thousandths of a core. Its errors are of kind fault.Invalid.
func ParseCPU(cores float64) (int64, error) {
	millis := math.Round(cores * 1000)
	if millis < 1 || millis > 1_000_000 || math.Abs(millis-cores*1000) > 1e-6 {
		return 0, fault.Errorf(fault.Invalid, "cpu %v: want thousandths of a core, from 0.001 to 1000", cores)
	}
	return int64(millis), nil
}
