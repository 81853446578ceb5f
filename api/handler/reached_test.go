package handler

import (
	"net"
	"testing"

	"github.com/invarhq/invar/fault"
)

// What anybody could name a server of his own (an address, localhost) is ours only where the connection ends.
func TestChallengesNameTheServerOnlyAsItIsReached(t *testing.T) {
	tcp := func(text string) net.Addr {
		a, err := net.ResolveTCPAddr("tcp", text)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	names := []string{"invar.bank.example"}
	for _, c := range []struct {
		host  string
		local net.Addr
		want  fault.Kind
	}{
		{"127.0.0.1:7373", tcp("127.0.0.1:7373"), ""},
		{"localhost:7373", tcp("127.0.0.1:7373"), ""},
		{"localhost:7373", tcp("[::1]:7373"), ""},
		{"[::1]:7373", tcp("[::1]:7373"), ""},
		{"10.0.0.5:7373", tcp("[::ffff:10.0.0.5]:7373"), ""},
		{"10.0.0.5", tcp("10.0.0.5:80"), ""},
		{"invar.bank.example", tcp("10.0.0.5:7373"), ""}, // behind a proxy, on another port
		{"invar.bank.example.:443", tcp("10.0.0.5:7373"), ""},
		{"192.0.2.1:7373", tcp("10.0.0.5:7373"), fault.Denied}, // passed on by a server at 192.0.2.1
		{"10.0.0.5:9999", tcp("10.0.0.5:7373"), fault.Denied},
		{"10.0.0.5", tcp("10.0.0.5:7373"), fault.Denied},
		{"localhost:7373", tcp("10.0.0.5:7373"), fault.Denied},
		{"localhost:9999", tcp("127.0.0.1:7373"), fault.Denied},
		{"evil.example:7373", tcp("10.0.0.5:7373"), fault.Denied},
		{"", tcp("10.0.0.5:80"), fault.Denied},
		{"localhost", &net.UnixAddr{Name: "/x"}, fault.Invalid},
		{"localhost", nil, fault.Invalid},
	} {
		r := &reached{host: c.host, local: c.local}
		if _, err := r.name(names); fault.KindOf(err) != c.want {
			t.Errorf("%s at %v: got %v, want %q", c.host, c.local, err, c.want)
		}
	}
}
