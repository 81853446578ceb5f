package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/invarhq/invar/identity/oidc/oidctest"
)

// What the scripts of logins need beside the commands of main_test.go.
var logins = map[string]command{
	"provider": cmdProvider,
	"workload": cmdWorkload,
	"person":   cmdPerson,
	"agent":    cmdAgent,
}

// loginWithin is how long a login of a test may take.
const loginWithin = time.Minute

// providerKey is where a script keeps its OpenID provider.
type providerKey struct{}

func providerOf(ts *testscript.TestScript) **oidctest.Provider {
	return ts.Value(providerKey{}).(**oidctest.Provider)
}

// provider starts an OpenID provider until the script ends, and sets ISSUER. "provider down" and "provider up" are what they say.
func cmdProvider(ts *testscript.TestScript, neg bool, args []string) {
	p := providerOf(ts)
	if len(args) > 0 {
		(*p).SetDown(args[0] == "down")
		return
	}
	started, err := oidctest.Start()
	ts.Check(err)
	ts.Defer(started.Close)
	ts.Setenv("ISSUER", started.URL)
	*p = started
}

// workload FILE AUDIENCE [CLAIM=VALUE]... writes the token that the provider gives to a build.
func cmdWorkload(ts *testscript.TestScript, neg bool, args []string) {
	claims := map[string]any{}
	for _, a := range args[2:] {
		name, value, _ := strings.Cut(a, "=")
		claims[name] = value
	}
	token, err := (*providerOf(ts)).Workload(context.Background(), args[1], claims)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(token+"\n"), 0o600))
}

// person USER FLAG... runs "invar login" with the flags as a person does who reads what it says: follows the address with a
// browser and enters the password, or approves the code.
func cmdPerson(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), loginWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append([]string{"login"}, args[1:]...)...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "INVAR_SERVER=" + ts.Getenv("INVAR_SERVER"), "XDG_CONFIG_HOME=" + ts.Getenv("XDG_CONFIG_HOME")}
	cmd.Stdout = ts.Stdout()
	said, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	acted := actOn(ctx, *providerOf(ts), args[0], slices.Contains(args, "--device"), io.TeeReader(said, ts.Stderr()))
	err = cmd.Wait()
	ts.Check(acted)
	if (err != nil) != neg {
		ts.Fatalf("%v", err)
	}
}

// actOn does what the login asks for.
func actOn(ctx context.Context, p *oidctest.Provider, user string, device bool, said io.Reader) error {
	var failed error
	lines := bufio.NewScanner(said)
	for lines.Scan() {
		line := lines.Text()
		address, isAddress := strings.CutPrefix(line, "  http")
		code, isCode := strings.CutPrefix(line, "and enter the code ")
		switch {
		case isAddress && !device:
			page, err := p.LogIn(ctx, "http"+address, user)
			if err == nil && !strings.Contains(page, "go back to the terminal") {
				err = fmt.Errorf("the browser shows %s", page)
			}
			failed = err
		case isCode && device:
			failed = p.Approve(ctx, code, user)
		}
	}
	return failed
}

// agent starts an ssh-agent until the script ends, and sets SSH_AUTH_SOCK.
func cmdAgent(ts *testscript.TestScript, neg bool, args []string) {
	dir, err := os.MkdirTemp("", "agent-") // the name of a socket must be short
	ts.Check(err)
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("ssh-agent", "-D", "-a", socket)
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(dir)
	})
	_, err = out.Read(make([]byte, 1)) // it speaks when it listens
	ts.Check(err)
	ts.Setenv("SSH_AUTH_SOCK", socket)
}
