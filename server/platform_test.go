package server

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
)

// opened opens a server's ledger, and with found gives it its first definition of the platform.
func opened(t *testing.T, dir string, log io.Writer, found bool) *Server {
	t.Helper()
	s := &Server{config: Config{Data: dir, Version: "test"}, log: slog.New(slog.NewTextHandler(log, nil))}
	err := s.openLedger(t.Context())
	if err == nil && found {
		err = s.foundPlatform(t.Context())
	}
	if err != nil {
		s.close()
		t.Fatal(err)
	}
	return s
}

func (s *Server) closed(t *testing.T) {
	t.Helper()
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}

func TestFirstStartMakesAnAdministratorAndSaysSo(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	s := opened(t, dir, &log, true)
	def, ok := s.control.State().Platform()
	if !ok {
		t.Fatal("there is no definition of the platform")
	}
	for _, user := range founders() {
		if !admits(def, user) {
			t.Errorf("local user %s is no administrator of %+v", user, def)
		}
	}
	if !strings.Contains(log.String(), "local user "+founders()[0]+" is this server's administrator") {
		t.Errorf("the log says\n%s", &log)
	}
	g, err := s.control.State().Generation(platform.Env, 1)
	if err != nil || g.Actor != founder || g.Reason == "" {
		t.Errorf("generation 1: %+v, %v", g, err)
	}
	bundle, err := s.control.State().Bundle(g.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	source, err := s.content.Bytes(bundle.Source)
	if err != nil {
		t.Fatal(err)
	}
	files, err := release.ReadSource(source)
	if err != nil || !strings.Contains(string(files["platform.hcl"]), "# approval") {
		t.Errorf("its sources: %v, %v", files, err)
	}
	s.closed(t)

	log.Reset()
	again := opened(t, dir, &log, true)
	defer again.closed(t)
	if e, err := again.control.State().Environment(platform.Env); err != nil || e.Head.Number != 1 || strings.Contains(log.String(), "first start") {
		t.Errorf("after a restart: %+v, %v\n%s", e.Head, err, &log)
	}
}

func admits(def platform.Definition, user string) bool {
	for _, p := range def.Principals {
		if len(p.LocalUsers) == 1 && p.LocalUsers[0] == user {
			return def.Allows(p.Name, platform.Erase, "", time.Time{}) && def.Allows(p.Name, platform.Apply, platform.Env, time.Time{})
		}
	}
	return false
}

// A ledger from before there were definitions gets its first at the next start, after all that it has.
func TestLedgerWithoutAPlatformGetsOneAtItsNextStart(t *testing.T) {
	dir := t.TempDir()
	old := opened(t, dir, io.Discard, false)
	size := old.control.State().Size()
	old.closed(t)
	s := opened(t, dir, io.Discard, true)
	defer s.closed(t)
	e, err := s.control.State().Environment(platform.Env)
	if err != nil || e.Head.Number != 1 || e.HeadEntry <= size {
		t.Errorf("environment %+v, %v; the ledger had %d entries", e, err, size)
	}
}

// What a first start that died has left is of no harm: only the ledger says what is in force.
func TestFirstDefinitionIsMadeAgainAfterACrash(t *testing.T) {
	dir := t.TempDir()
	s := opened(t, dir, io.Discard, false)
	left, err := keepPlatform(t.Context(), s.content, map[string][]byte{"platform.hcl": []byte("# cut off")})
	if err != nil {
		t.Fatal(err)
	}
	s.closed(t)
	s = opened(t, dir, io.Discard, true)
	defer s.closed(t)
	if _, err := s.control.State().Bundle(left); err == nil {
		t.Error("what was left is taken for a definition")
	}
	if _, ok := s.control.State().Platform(); !ok {
		t.Error("there is no definition")
	}
}
