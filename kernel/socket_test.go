package kernel

import (
	"encoding/hex"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWaitingSocketsAreReadFromProc(t *testing.T) {
	for line, want := range map[string]string{
		// As Linux 6.1 wrote them.
		"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 23456 1 0000000000000000 100 0 0 10 0":                                              "127.0.0.1:8080 1000 23456",
		"   1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0000000000000000 100 0 0 10 0": "[::1]:80 0 99",
		"   2: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0000000000000000 100 0 0 10 0": "127.0.0.1:80 0 99",
		"   3: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 23456 1 0000000000000000 100 0 0 10 0":                                              "",
		"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode":                                                                              "",
		"   4: 0100007:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 1":                                                                                          "",
		"": "",
	} {
		w, ok := parseWaiting(line, "0A")
		got := ""
		if ok {
			got = w.At.String() + " " + strconv.Itoa(int(w.UID)) + " " + strconv.Itoa(int(w.Inode))
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
}

func TestWaitingSocketIsReadFromADiagMessage(t *testing.T) {
	m, err := hex.DecodeString("0a0a0000" + "1f90" + "0000" + "0000000000000000" + "0000ffff7f000001" + "00000000000000000000000000000000" +
		"00000000" + "0700000000000000" + "00000000" + "00000000" + "80000000" + "e8030000" + "a05b0000")
	if err != nil || len(m) != diagMessage {
		t.Fatal(len(m), err)
	}
	got := parseDiag(m)
	if got.At.String() != "127.0.0.1:8080" || got.UID != 1000 || got.Inode != 23456 || got.Cookie != 7 {
		t.Errorf("got %+v", got)
	}
}

// Both ways of asking tell the sockets that wait, and no others.
func TestSocketsOfThisNetworkThatWait(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("entering a network needs root: CI runs this test as root")
	}
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	client, err := net.Dial("udp6", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	d, err := OpenDiag("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	asked, err := d.Waiting()
	if err == unix.ENOENT {
		t.Skip("this kernel has no sock_diag")
	}
	if err != nil {
		t.Fatal(err)
	}
	for how, list := range map[string][]Waiting{"sock_diag": asked, "/proc": WaitingIn("self")} {
		has := func(network string, at net.Addr) bool {
			return slices.ContainsFunc(list, func(w Waiting) bool { return w.Network == network && w.At.String() == at.String() })
		}
		if !has("tcp", tcp.Addr()) || !has("udp", udp.LocalAddr()) || has("udp", client.LocalAddr()) {
			t.Errorf("%s: tcp %v, udp %v, not %v; got %v", how, tcp.Addr(), udp.LocalAddr(), client.LocalAddr(), list)
		}
	}
}
