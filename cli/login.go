package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/cli/credential"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/identity/challenge"
	"github.com/invarhq/invar/identity/oidc"
	"github.com/invarhq/invar/identity/sshkey/signer"
)

// Times of logins.
const (
	loginWithin = 10 * time.Minute // how long a person may take
	renewBefore = time.Minute      // a token ends
)

// cachedLogin is the login to a.server, once it was needed.
type cachedLogin struct {
	mu    sync.Mutex
	login credential.Login
}

// bearer returns the token that a request shows to the server: what the command line or the environment says, else that of the
// last login, renewed when it is about to end. "" is none: over the unix socket the kernel says who asks.
func (a *app) bearer(ctx context.Context) (string, error) {
	if token, err := a.givenToken(); token != "" || err != nil {
		return token, err
	}
	if strings.HasPrefix(a.server, "unix://") || a.logins().Dir == "" {
		return "", nil
	}
	a.login.mu.Lock()
	defer a.login.mu.Unlock()
	if l := a.login.login; l.Token != "" && !stale(l) {
		return l.Token, nil
	}
	l, err := a.logins().Load(a.address())
	if fault.KindOf(err) == fault.NotFound {
		return "", nil // the server says what to do
	}
	if err == nil && stale(l) {
		l, err = a.logins().Renew(a.address(), stale, func(l credential.Login) (credential.Login, error) { return renew(ctx, l) })
	}
	if err != nil {
		return "", err
	}
	a.login.login = l
	return l.Token, nil
}

// givenToken returns the token that the command line or the environment says; "" is none.
func (a *app) givenToken() (string, error) {
	if a.tokenFile != "" {
		return readToken(a.tokenFile)
	}
	return cmp.Or(a.Getenv("INVAR_TOKEN"), a.Getenv("INVAR_ID_TOKEN")), nil
}

// readToken reads a file that somebody else renews, such as a projected service account token.
func readToken(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fault.As(fault.NotFound, fmt.Errorf("reading the token: %w", err))
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return "", fault.Errorf(fault.Invalid, "reading the token: %s does not hold one token", file)
	}
	return token, nil
}

func stale(l credential.Login) bool { return time.Until(l.ExpiresAt) < renewBefore }

// renew gets the next token of a login that is about to end.
func renew(ctx context.Context, l credential.Login) (credential.Login, error) {
	if l.Refresh == "" {
		if time.Now().Before(l.ExpiresAt) {
			return l, nil
		}
		return credential.Login{}, fault.WithHint(fault.Errorf(fault.Denied, "the login to %s ended at %s", l.Server, l.ExpiresAt.Local().Format(time.DateTime)),
			"log in again: invar login --server %s", l.Server)
	}
	t, err := oidc.Client{Issuer: l.Issuer, ClientID: l.ClientID, Scopes: l.Scopes}.Refresh(ctx, l.Refresh)
	if err != nil {
		return credential.Login{}, fmt.Errorf("renewing the login to %s: %w", l.Server, err)
	}
	l.Token, l.ExpiresAt = t.ID, t.ExpiresAt
	if t.Refresh != "" {
		l.Refresh = t.Refresh
	}
	return l, nil
}

// logins is where this person's logins are; its Dir is "" when he has no home.
func (a *app) logins() credential.Store {
	config := a.Getenv("XDG_CONFIG_HOME")
	if config == "" {
		home := a.Getenv("HOME")
		if home == "" {
			return credential.Store{}
		}
		config = filepath.Join(home, ".config")
	}
	return credential.Store{Dir: filepath.Join(config, "invar", "logins")}
}

// address is the server's in one spelling.
func (a *app) address() string { return strings.ToLower(strings.TrimRight(a.server, "/")) }

// loginFlags are those of "invar login".
type loginFlags struct {
	oidc, device, ssh bool
	issuer, key       string
}

func (a *app) loginCommand() *cobra.Command {
	var f loginFlags
	c := &cobra.Command{
		Use:   "login",
		Short: "Log in to a server over TCP",
		Long: `Login proves to a server who you are, and keeps what it gets for it: commands use it until it ends, and renew it
where they can. The server's platform definition says who you are there and what you may do ("invar whoami").

With --oidc a browser goes to an OpenID provider and comes back to this machine (authorization code with PKCE); with --device
you enter a code in a browser on any other machine. With --ssh one of your SSH keys signs a challenge, from ssh-agent or
from a file. Without any of these, the first way that the server offers is taken.

Programs don't log in: they show a token of the server (INVAR_TOKEN), or one of an OpenID provider (INVAR_ID_TOKEN,
--token-file). On the server's own machine its unix socket knows who you are.`,
		Example: `  invar login --server https://invar.example.com:7373
  invar login --ssh --key ~/.ssh/id_ed25519_sk.pub`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.logIn(c.Context(), f) },
	}
	c.Flags().BoolVar(&f.oidc, "oidc", false, "at an OpenID provider")
	c.Flags().BoolVar(&f.device, "device", false, "at an OpenID provider, with a browser on another machine")
	c.Flags().StringVar(&f.issuer, "issuer", "", "`NAME` of the provider, when there are several")
	c.Flags().BoolVar(&f.ssh, "ssh", false, "with an SSH key")
	c.Flags().StringVar(&f.key, "key", "", "the SSH `KEY`: its file, or its fingerprint or comment in ssh-agent; the agent's only key when unset")
	c.MarkFlagsMutuallyExclusive("ssh", "oidc")
	c.MarkFlagsMutuallyExclusive("ssh", "device")
	return c
}

func (a *app) logIn(ctx context.Context, f loginFlags) error {
	host, err := a.loginHost()
	if err != nil {
		return err
	}
	cl, err := client.New(a.server, client.Options{Version: a.Version})
	if err != nil {
		return err
	}
	defer cl.Close()
	ways, err := cl.LoginWays(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, loginWithin)
	defer cancel()
	l := credential.Login{Server: a.address()}
	if f.ssh || f.key != "" || !f.oidc && !f.device && f.issuer == "" && len(ways.Issuers) == 0 {
		err = a.logInSSH(ctx, cl, ways, host, f, &l)
	} else {
		err = a.logInOIDC(ctx, ways, f, &l)
	}
	if err != nil {
		return err
	}
	return a.keepLogin(ctx, l)
}

// loginHost returns the server's host, as the client sends it. It refuses servers that one does not log in to, and ways on
// which others could read the token.
func (a *app) loginHost() (string, error) {
	u, err := url.Parse(a.address())
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fault.WithHint(fault.Errorf(fault.Invalid, "logging in to %s: over the unix socket the kernel says who you are", a.server),
			"name a server: invar login --server https://HOST:PORT")
	}
	if u.Scheme == "http" && !isLoopback(u.Hostname()) {
		return "", fault.WithHint(fault.Errorf(fault.Denied, "logging in to %s: it is not encrypted, and others could read the token", a.server),
			"use https://, or a tunnel to a port of this machine")
	}
	return u.Host, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// keepLogin keeps a login that the server takes.
func (a *app) keepLogin(ctx context.Context, l credential.Login) error {
	cl, err := client.New(a.server, client.Options{Token: l.Token, Version: a.Version})
	if err != nil {
		return err
	}
	defer cl.Close()
	who, err := cl.WhoAmI(ctx, "")
	if err != nil {
		return fmt.Errorf("the server does not take the login: %w", err)
	}
	store := a.logins()
	if store.Dir == "" {
		return fault.WithHint(fault.Errorf(fault.Invalid, "there is no place to keep the login"), "set HOME or XDG_CONFIG_HOME")
	}
	if err := store.Save(l); err != nil {
		return err
	}
	if a.output == "json" {
		return a.json(who)
	}
	fmt.Fprintf(a.Stderr, "logged in to %s as %s, until %s\n", l.Server, a.style().bold(who.Principal), l.ExpiresAt.Local().Format(time.DateTime))
	return nil
}

// logInOIDC gets a token of an OpenID provider.
func (a *app) logInOIDC(ctx context.Context, ways api.LoginWays, f loginFlags, l *credential.Login) error {
	issuer, err := chooseIssuer(ways.Issuers, f.issuer)
	if err != nil {
		return err
	}
	c := oidc.Client{Issuer: issuer.URL, ClientID: issuer.ClientID, Scopes: issuer.Scopes}
	var t oidc.Tokens
	if f.device {
		t, err = c.Device(ctx, func(d oidc.DeviceCode) error {
			fmt.Fprintf(a.Stderr, "In a browser on any machine, open\n\n  %s\n\nand enter the code %s\n", d.URL, a.style().bold(d.Code))
			return nil
		})
	} else {
		t, err = c.Browser(ctx, func(address string) error {
			fmt.Fprintf(a.Stderr, "Log in at %s in a browser on this machine:\n\n  %s\n\n", issuer.Name, address)
			a.openBrowser(ctx, address)
			return nil
		})
	}
	l.Method, l.Issuer, l.ClientID, l.Scopes = identity.OIDC, issuer.URL, issuer.ClientID, issuer.Scopes
	l.Token, l.Refresh, l.ExpiresAt = t.ID, t.Refresh, t.ExpiresAt
	return err
}

func chooseIssuer(all []api.LoginIssuer, name string) (api.LoginIssuer, error) {
	var names []string
	for _, i := range all {
		if i.Name == name || name == "" && len(all) == 1 {
			return i, nil
		}
		names = append(names, i.Name)
	}
	if len(all) == 0 {
		return api.LoginIssuer{}, fault.WithHint(fault.Errorf(fault.NotFound, "the server knows no OpenID provider to log in at"), "invar login --ssh")
	}
	if name == "" {
		return api.LoginIssuer{}, fault.WithHint(fault.Errorf(fault.Invalid, "the server knows several OpenID providers"), "choose one with --issuer: %s", strings.Join(names, ", "))
	}
	return api.LoginIssuer{}, fault.WithHint(fault.Errorf(fault.NotFound, "the server knows no OpenID provider %q", name), "it knows: %s", strings.Join(names, ", "))
}

// openBrowser opens a browser where one is likely to be there. The person has the address, so that it may fail.
func (a *app) openBrowser(ctx context.Context, address string) {
	browser := a.Getenv("BROWSER")
	if browser == "" && isTerminal(a.Stderr) && (a.Getenv("DISPLAY") != "" || a.Getenv("WAYLAND_DISPLAY") != "") {
		browser = "xdg-open"
	}
	if browser == "" {
		return
	}
	cmd := exec.CommandContext(ctx, browser, address)
	if cmd.Start() == nil {
		go func() { _ = cmd.Wait() }() // ends with ctx at the latest
	}
}

// logInSSH gets a session of the server with an SSH key.
func (a *app) logInSSH(ctx context.Context, cl *client.Client, ways api.LoginWays, host string, f loginFlags, l *credential.Login) error {
	if !ways.SSH {
		return fault.WithHint(fault.Errorf(fault.NotFound, "the server has no platform definition, and so knows no SSH keys"),
			"on the server's machine: invar init --platform")
	}
	s, err := signer.Open(ctx, signer.Config{Key: f.key, AgentSocket: a.Getenv("SSH_AUTH_SOCK"), Passphrase: a.passphrase})
	if err != nil {
		return err
	}
	defer s.Close()
	asked, err := cl.LoginChallenge(ctx)
	if err != nil {
		return err
	}
	c, err := challenge.Parse(asked.Challenge)
	if err != nil {
		return err
	}
	if err := c.For(host); err != nil {
		return err
	}
	if s.Key().SecurityKey() {
		fmt.Fprintln(a.Stderr, "touch your security key")
	}
	sig, err := s.Sign(ctx, challenge.Namespace, []byte(asked.Challenge))
	if err != nil {
		return err
	}
	got, err := cl.LogIn(ctx, api.LoginRequest{Challenge: asked.Challenge, Signature: sig.String()})
	if err != nil {
		return err
	}
	l.Method, l.Token, l.Session, l.ExpiresAt = identity.SSH, got.Token, got.ID, got.ExpiresAt
	return nil
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "Log out of a server",
		Long: `Logout ends the login to a server: the session at the server or the refresh token at the OpenID provider is revoked,
and what was kept of it is removed. An ID token that was already given out counts until it expires, an hour or so.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.logOut(c.Context()) },
	}
}

func (a *app) logOut(ctx context.Context) error {
	store := a.logins()
	l, err := store.Load(a.address())
	if fault.KindOf(err) == fault.NotFound {
		fmt.Fprintf(a.Stderr, "not logged in to %s\n", a.server)
		return nil
	}
	revoked := err // a file that can't be read is removed all the same
	if err == nil {
		revoked = a.revoke(ctx, l)
	}
	if err := store.Delete(a.address()); err != nil {
		return errors.Join(revoked, err)
	}
	if revoked != nil {
		return fmt.Errorf("the login is forgotten here, and may count elsewhere until it ends: %w", revoked)
	}
	fmt.Fprintf(a.Stderr, "logged out of %s\n", l.Server)
	return nil
}

// revoke ends a login where it came from.
func (a *app) revoke(ctx context.Context, l credential.Login) error {
	if l.Refresh != "" {
		return oidc.Client{Issuer: l.Issuer, ClientID: l.ClientID}.Revoke(ctx, l.Refresh)
	}
	if l.Session == "" || time.Now().After(l.ExpiresAt) {
		return nil
	}
	cl, err := client.New(a.server, client.Options{Token: l.Token, Version: a.Version})
	if err != nil {
		return err
	}
	defer cl.Close()
	return cl.DeleteToken(ctx, l.Session)
}

func (a *app) whoamiCommand() *cobra.Command {
	var env string
	c := &cobra.Command{
		Use:   "whoami",
		Short: "Show who you are to the server, and what you may do",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			who, err := cl.WhoAmI(c.Context(), env)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(who)
			}
			return table(a.Stdout, "", whoRows(who))
		},
	}
	c.Flags().StringVar(&env, "env", "", "`ENV`ironment to show the permissions of; those of the whole server when unset")
	return c
}

func whoRows(who api.WhoAmI) [][]string {
	list := func(names []string) string {
		if len(names) == 0 {
			return "none"
		}
		return strings.Join(names, ", ")
	}
	where := "permissions"
	if who.Environment != "" {
		where += " in " + who.Environment
	}
	rows := [][]string{{"principal", who.Principal}, {"known by", who.Method + " " + who.Name}, {"groups", list(who.Groups)}, {where, list(who.Permissions)}}
	if who.ExpiresAt != nil {
		rows = append(rows, []string{"until", who.ExpiresAt.Local().Format(time.DateTime)})
	}
	return rows
}
