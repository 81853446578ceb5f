package gateway

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/invarhq/invar/fault"
)

// Routes finds the route of a request. It is made of a table's HTTP routes and never changes.
type Routes struct {
	hosts map[string][]int // indexes, longest path first
	list  []Route
}

// NewRoutes returns the routes of a table in canonical order.
func NewRoutes(list []Route) Routes {
	r := Routes{hosts: make(map[string][]int, len(list)), list: list}
	for i, route := range list {
		r.hosts[route.Host] = append(r.hosts[route.Host], i)
	}
	return r
}

// Match returns the index in the list of the route for a request's host, as CleanHost makes it, and path; -1 when there is none.
// The host matches as a whole; of its routes the one with the longest path does that is a prefix in whole segments.
func (r Routes) Match(host, path string) int {
	for _, i := range r.hosts[host] {
		if hasPrefix(path, r.list[i].Path) {
			return i
		}
	}
	return -1
}

// Host returns the routes of a host.
func (r Routes) Host(host string) []int { return r.hosts[host] }

func hasPrefix(path, prefix string) bool {
	if prefix == "/" {
		return true
	}
	return strings.HasPrefix(path, prefix) && (len(path) == len(prefix) || path[len(prefix)] == '/')
}

// CleanHost returns the host of a Host header as routes have it: lower case, without port and trailing dot.
func CleanHost(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// cleanPath returns a route's path with a leading slash and without a trailing one.
func cleanPath(p string) string { return "/" + strings.Trim(p, "/") }

// Spread returns which pool the n-th connection goes to, -1 when there is none. The weights are kept exactly in every
// hundred connections in a row, and evenly within them: 61 steps through all of 0..99 and is near the golden ratio of 100.
func Spread(n uint64, count int, weight func(pool int) int) int {
	slot := int(n % 100 * 61 % 100)
	for i := range count {
		if slot -= weight(i); slot < 0 {
			return i
		}
	}
	return -1
}

// Least returns which of count instances has the least load, -1 when there is none. An instance with a negative load is
// left out. Of equals, n says which, so that counting up takes turns.
func Least(n uint64, count int, load func(i int) int64) int {
	best, least := -1, int64(0)
	for k := range count {
		i := int((n + uint64(k)) % uint64(count))
		l := load(i)
		if l >= 0 && (best < 0 || l < least) {
			best, least = i, l
		}
	}
	return best
}

// Allow is an entry of an egress allow-list.
type Allow struct {
	Host string     // lower case; without the "*." of a wildcard
	Sub  bool       // every name below Host, not Host itself
	Addr netip.Addr // valid when Host is an IP address
	Port uint16
}

// ParseAllow reads "host:port" or "*.host:port".
func ParseAllow(s string) (Allow, error) {
	host, port, ok := cutPort(s)
	n, err := strconv.ParseUint(port, 10, 16)
	if !ok || err != nil || n == 0 {
		return Allow{}, fault.Errorf(fault.Invalid, "%q is not host:port", s)
	}
	a := Allow{Port: uint16(n)}
	a.Host, a.Sub = strings.CutPrefix(strings.ToLower(strings.TrimSuffix(host, ".")), "*.")
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		a.Addr, a.Host = addr.Unmap(), addr.Unmap().String()
	}
	if !a.Addr.IsValid() && !isHostname(a.Host) {
		return Allow{}, fault.Errorf(fault.Invalid, "%q: %q is not a host name", s, host)
	}
	return a, nil
}

// Permits tells whether the entry allows a connection to host, a name or an IP address without brackets, and port.
func (a Allow) Permits(host string, port uint16) bool {
	if port != a.Port {
		return false
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if addr, err := netip.ParseAddr(host); err == nil {
		return a.Addr.IsValid() && a.Addr == addr.Unmap()
	}
	if a.Sub {
		return len(host) > len(a.Host)+1 && strings.HasSuffix(host, a.Host) && host[len(host)-len(a.Host)-1] == '.'
	}
	return !a.Addr.IsValid() && host == a.Host
}

func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.IndexByte(s[:i], ':') >= 0 && !strings.HasPrefix(s, "[") {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

func isHostname(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for _, label := range strings.Split(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}
