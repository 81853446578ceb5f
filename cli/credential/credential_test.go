package credential

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
)

const server = "https://invar.bank.example:7373"

func login() Login {
	return Login{Server: server, Method: identity.OIDC, Token: "t", ExpiresAt: time.Date(2026, 11, 25, 13, 0, 0, 0, time.UTC),
		Issuer: "https://id.bank.example", ClientID: "invar", Scopes: []string{"email"}, Refresh: "r"}
}

func TestALoginIsKeptForItsServerAndItsOwnerOnly(t *testing.T) {
	s := Store{filepath.Join(t.TempDir(), "invar", "logins")}
	if _, err := s.Load(server); fault.KindOf(err) != fault.NotFound {
		t.Errorf("before: got %v", err)
	}
	must(t, s.Save(login()))
	got, err := s.Load(server)
	must(t, err)
	if d := cmp.Diff(login(), got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if _, err := s.Load(server + "/"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("another server: got %v", err)
	}
	for path, want := range map[string]os.FileMode{s.Dir: 0o700, s.file(server): 0o600} {
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", path, info.Mode().Perm(), want)
		}
	}
	if dir := filepath.Dir(s.file("https://x/../../../etc/passwd")); dir != s.Dir {
		t.Errorf("a server's name leads to %s", dir)
	}
	must(t, s.Delete(server))
	must(t, s.Delete(server))
	if _, err := s.Load(server); fault.KindOf(err) != fault.NotFound {
		t.Errorf("afterwards: got %v", err)
	}
}

func TestAFileThatOthersMayReadOrThatIsNotOursIsRefused(t *testing.T) {
	s := Store{t.TempDir()}
	must(t, s.Save(login()))
	must(t, os.Chmod(s.file(server), 0o640))
	if _, err := s.Load(server); fault.KindOf(err) != fault.Denied {
		t.Errorf("readable by others: got %v", err)
	}
	must(t, os.Chmod(s.file(server), 0o600))
	for _, text := range []string{"", "{}", `{"server":"https://other"}`, "nonsense"} {
		must(t, os.WriteFile(s.file(server), []byte(text), 0o600))
		if _, err := s.Load(server); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

func TestALoginIsRenewedOnceByManyAtOnce(t *testing.T) {
	s := Store{t.TempDir()}
	must(t, s.Save(login()))
	var spent atomic.Int32
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			got, err := s.Renew(server, func(l Login) bool { return l.Refresh == "r" }, func(l Login) (Login, error) {
				l.Refresh = fmt.Sprint("r", spent.Add(1))
				return l, nil
			})
			if err != nil || got.Refresh != "r1" {
				t.Errorf("got %q, %v", got.Refresh, err)
			}
		})
	}
	all.Wait()
	if spent.Load() != 1 {
		t.Errorf("the refresh token was spent %d times", spent.Load())
	}
}

func FuzzDecode(f *testing.F) {
	text, err := encode(login())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := decode(text)
		if err != nil {
			return
		}
		if again, err := encode(l); err != nil || string(again) != string(text) {
			t.Errorf("%q encodes as %q, %v", text, again, err)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
