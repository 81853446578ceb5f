// Package handler serves invar's HTTP API: package api says what goes over the wire, package control does
// what is asked.
//
// One handler serves both ways in. Over the unix socket the kernel says who asks (SO_PEERCRED). Over TCP everything but
// /healthz, /openapi.json and /docs needs a token, of the server's own or of an OpenID provider; requests that a web page
// elsewhere may have caused are refused. Whoever that is must be a principal of the platform's definition, and every operation
// passes one gate (gate.go), which asks the definition for the one permission that the operation needs.
//
// The API is described by an OpenAPI 3.1 document that follows from the Go types (huma); /docs renders
// it without any other file or network. docs/openapi.json in the repository is a copy that a test keeps in step.
package handler

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"golang.org/x/mod/sumdb/note"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/identity/challenge"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/spec"
)

// Limits of requests.
const (
	maxRequestBytes   = 1 << 20 // of a JSON body; images go to the registry, which has limits of its own
	bodyReadTimeout   = 30 * time.Second
	headerReadTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
)

// Config is what a Handler is made of. Every field is required but those that say otherwise.
type Config struct {
	Control  *control.Service
	Host     Host
	Source   ledger.Source                        // what the ledger is kept in, for a whole verification
	Verifier note.Verifier                        // of the ledger's checkpoints
	VKey     string                               // Verifier as text
	Copies   func(spec.EnvName) []deploy.Progress // of volumes, that are under way; nil: it is not told how far they are
	Log      *slog.Logger

	Version    string    // of the program
	DataFormat int       // of the data directory
	StartedAt  time.Time // of the server
	Machine    api.Host  // what GET /v1/server tells of the machine

	// Gateway asks the gateway how it does. An error means that it does not answer, which is no failure of ours.
	Gateway func(context.Context) (gateway.Status, error)
	// Healthy says why the server can't do its work, or nil.
	Healthy func(context.Context) error

	// Cosigned returns a checkpoint of the ledger with the cosignatures that it has so far; nil: none has any.
	Cosigned func(checkpoint []byte) []byte
	// Witnesses tells how the ledger stands with its witnesses; nil: it has none.
	Witnesses func() api.Witnesses
	// Attached lists what is attached to an image; nil: nothing ever is.
	Attached func(manifest digest.Digest) ([]api.Attachment, error)
	// OIDC checks a token of an OpenID provider: nil when none is taken.
	OIDC func(ctx context.Context, token string) (identity.Identity, error)

	// Recordings opens the recording of a session. nil: there are none.
	Recordings func(digest.Digest) (io.ReadCloser, error)

	Names    []string     // by which we are reached over TCP, beside addresses and localhost; may be nil
	Registry http.Handler // the OCI registry under /v2/; nil: none
	Metrics  http.Handler // what is scraped at /metrics; nil: none
}

// Host is what the handler needs of a host that runs instances. runtime.Host has it, and its words apply.
type Host interface {
	List(ctx context.Context) ([]instance.Observation, error)
	Changed() <-chan struct{}
	Measure(ctx context.Context, id instance.ID) (runtime.Measurement, error)
	Exec(ctx context.Context, id instance.ID, s runtime.Session) (int, error)
	Logs(ctx context.Context, id instance.ID, w io.Writer, tail int, follow bool) error
}

// Handler is the API. Its methods may be called by any number of goroutines.
type Handler struct {
	config  Config
	log     *slog.Logger
	api     huma.API
	entry   http.Handler
	desk    *challenge.Desk
	closing chan struct{} // closed when streams have to end
	close   sync.Once
}

// New returns the API.
func New(config Config) (*Handler, error) {
	useProblems()
	if config.Cosigned == nil {
		config.Cosigned = func(checkpoint []byte) []byte { return checkpoint }
	}
	if config.Attached == nil {
		config.Attached = func(digest.Digest) ([]api.Attachment, error) { return nil, nil }
	}
	if config.Witnesses == nil {
		config.Witnesses = func() api.Witnesses {
			return api.Witnesses{Policy: "quorum none\n", Size: uint64(config.Control.Ledger().Size()), Witnesses: []api.Witness{}, Alarms: []api.WitnessAlarm{}}
		}
	}
	desk, err := challenge.NewDesk(rand.Reader)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	h := &Handler{config: config, log: config.Log, api: humago.New(mux, describe()), desk: desk, closing: make(chan struct{})}
	h.api.UseMiddleware(h.gate)
	h.registerServer()
	h.registerEnvironments()
	h.registerReleases()
	h.registerLedger()
	h.registerEvents()
	h.registerSecrets()
	h.registerAttest()
	h.registerTokens()
	h.registerLogin()
	h.registerChanges()
	h.registerEvidence()
	h.registerErasures()
	openAnswers(h.api.OpenAPI())
	if err := h.mount(mux); err != nil {
		return nil, err
	}
	h.entry = &guard{
		version: config.Version,
		names:   config.Names,
		door:    config.Control,
		oidc:    config.OIDC,
		next:    unmatched(mux),
		cross:   http.NewCrossOriginProtection(),
	}
	return h, nil
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.entry.ServeHTTP(w, r) }

// Server returns an HTTP server for the handler, with its limits and with ConnContext. Streams of events
// have no end, so there is no limit on the time of an answer: each write has one. Its Shutdown ends them.
func (h *Handler) Server() *http.Server {
	srv := &http.Server{
		Handler:           h,
		ConnContext:       ConnContext,
		ReadHeaderTimeout: headerReadTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(h.log.Handler(), slog.LevelWarn),
	}
	srv.RegisterOnShutdown(h.endStreams)
	return srv
}

// endStreams ends all streams. Clients take them up again, with the next server if it must be.
func (h *Handler) endStreams() { h.close.Do(func() { close(h.closing) }) }

// untilClosed returns a context that also ends when streams have to.
func (h *Handler) untilClosed(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends with the context, which the caller ends
		select {
		case <-h.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// mount adds what is no operation of the API.
func (h *Handler) mount(mux *http.ServeMux) error {
	document, err := h.OpenAPI()
	if err != nil {
		return err
	}
	docs, err := reference(h.api.OpenAPI())
	if err != nil {
		return err
	}
	mux.HandleFunc("GET "+api.PathOpenAPI, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oai.openapi+json;version=3.1")
		_, _ = w.Write(document) // the client has gone when this fails
	})
	mux.Handle("GET "+api.PathDocs, docs)
	mux.Handle("GET "+api.PathTiles+"{path...}", h.guarded("tiles", always(platform.LedgerRead), http.HandlerFunc(h.tile)))
	mux.HandleFunc("GET "+api.PathExec, h.exec)
	mux.Handle("GET "+api.PathRecording, h.guarded("recording", always(platform.Evidence), http.HandlerFunc(h.recording)))
	if h.config.Registry != nil {
		mux.Handle(api.PathRegistry, h.guarded("registry", pullOrPush, h.config.Registry))
	}
	if h.config.Metrics != nil {
		mux.Handle("GET "+api.PathMetrics, h.guarded("metrics", always(platform.ServerRead), h.config.Metrics))
	}
	return nil
}

// OpenAPI returns the document that describes the API. It does not depend on the program's version.
func (h *Handler) OpenAPI() ([]byte, error) {
	b, err := json.MarshalIndent(h.api.OpenAPI(), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the OpenAPI document: %w", err)
	}
	return append(b, '\n'), nil
}

// openAnswers lets the types of answers have more fields than are described, so that programs made from the
// document do not break when a server tells more. What is asked stays closed: the server refuses what it doesn't know.
func openAnswers(doc *huma.OpenAPI) {
	asked := map[string]bool{}
	for _, item := range doc.Paths {
		if item.Post == nil || item.Post.RequestBody == nil {
			continue
		}
		for _, media := range item.Post.RequestBody.Content {
			asked[typeOf(media.Schema).Name] = true
		}
	}
	for name, s := range doc.Components.Schemas.Map() {
		if !asked[name] && s.AdditionalProperties == false {
			s.AdditionalProperties = nil
		}
	}
}

// Tags group the operations.
const (
	tagServer       = "Server"
	tagEnvironments = "Environments"
	tagReleases     = "Releases"
	tagLedger       = "Ledger"
	tagEvents       = "Events"
	tagSecrets      = "Secrets"
	tagTokens       = "Tokens"
	tagLogin        = "Login"
	tagChanges      = "Changes"
	tagErasures     = "Erasures"
)

// describe is what the document says beside the operations.
func describe() huma.Config {
	c := huma.DefaultConfig("invar API", "1")
	c.CreateHooks = nil // no $schema fields in answers
	c.OpenAPIPath, c.DocsPath, c.SchemasPath = "", "", ""
	c.RejectUnknownQueryParameters = true
	c.Info.Description = `Immutable infrastructure: environments, releases, and the ledger of all that happened.

On the server's machine the API is on a unix socket, DIR/invar.sock, for root and the server's own user. Over TCP it needs a token: "Authorization: Bearer TOKEN".
Errors are problem details (RFC 9457); "type" is the kind of failure, "hint" what to do next.
Fields that the server doesn't know are refused; clients ignore those that they don't know. Header Invar-Api carries the API level (1) both ways, Invar-Version the program's version.
The ledger is also served as tlog-tiles (https://c2sp.org/tlog-tiles) under /ledger/, and images, bundles and releases as OCI artifacts under /v2/.`
	c.Info.License = &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}
	c.Servers = []*huma.Server{{URL: "http://127.0.0.1:7373", Description: "The default address"}}
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", Description: "A token made with POST /v1/tokens. Not needed on the unix socket."},
	}
	c.Security = []map[string][]string{{"token": {}}}
	c.Tags = []*huma.Tag{
		{Name: tagServer, Description: "The server itself."},
		{Name: tagEnvironments, Description: "Named places that run one release at a time: look, plan, apply, go back, destroy."},
		{Name: tagErasures, Description: "Content that is erased for good, while the ledger says so and verifies as before."},
		{Name: tagChanges, Description: "Proposals to move a head that wait for approvals."},
		{Name: tagReleases, Description: "Content-addressed records of what an environment runs."},
		{Name: tagLedger, Description: "The append-only Merkle log of everything that happened."},
		{Name: tagEvents, Description: "Changes as they happen."},
		{Name: tagSecrets, Description: "Values that only instances get: names and versions here, never a value."},
		{Name: tagTokens, Description: "Access over TCP."},
		{Name: tagLogin, Description: "How people come by a token: with an SSH key, or at an OpenID provider."},
	}
	return c
}
