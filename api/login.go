package api

import "time"

// LoginWays tells how one may log in over TCP. Answer of PathLogin, which everybody may ask.
type LoginWays struct {
	SSH     bool          `json:"ssh" doc:"An SSH key of a principal lets in: ask for a challenge and sign it."`
	Issuers []LoginIssuer `json:"issuers" doc:"OpenID providers whose tokens are taken as bearer tokens."`
}

// LoginIssuer is an OpenID provider that people log in at.
type LoginIssuer struct {
	Name     string   `json:"name" doc:"Name in the platform's definition."`
	URL      string   `json:"url" doc:"The issuer, where discovery begins."`
	ClientID string   `json:"client_id" doc:"Client that invar's command line is there: a public one, with PKCE."`
	Scopes   []string `json:"scopes" doc:"Scopes to ask for beside openid."`
}

// LoginChallenge is what an SSH key has to sign. Answer of PathLoginSSH.
type LoginChallenge struct {
	Challenge string    `json:"challenge" doc:"Text to sign, as it is. A client checks first that its line server: names the server that it asked."`
	Namespace string    `json:"namespace" doc:"Namespace to sign for (SSHSIG)." example:"invar-login@v1"`
	ExpiresAt time.Time `json:"expires_at" doc:"Until when it is taken back."`
}

// LoginRequest gives a challenge back, signed.
type LoginRequest struct {
	Challenge string `json:"challenge" minLength:"1" maxLength:"1024" doc:"The text that was signed."`
	Signature string `json:"signature" minLength:"1" maxLength:"32768" doc:"The signature, as ssh-keygen -Y sign writes it."`
}

// Session is a login to this server. Answer of PathLoginSession, and the only time that its token is told.
type Session struct {
	ID        string    `json:"id" doc:"Name of the session's token for DELETE, which logs out."`
	Principal string    `json:"principal" doc:"Who logged in, by the name in the platform's definition."`
	Token     string    `json:"token" doc:"Bearer token. The server keeps only its digest."`
	ExpiresAt time.Time `json:"expires_at" doc:"When it ends."`
}
