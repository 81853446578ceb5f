# Two commands do all set-up on a fresh Debian machine: make demo, make test.
# Go, git, gcc and make are there; what else building needs, "make deps" installs.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GO       := go
BIN      := bin/invar
LAUNCHER := runtime/local/launcher/bin/invar-launcher
SOURCES  := $(wildcard $(shell git ls-files -co --exclude-standard '*.go' 'go.mod' 'go.sum' '*.txtar' '*.tmpl' '*.html' '*.css' 2>/dev/null))

# What building needs beside Go and gcc: libseccomp to link the launcher with.
DEB_BUILD := libseccomp-dev pkg-config

# What tests need beside: public tools that check what we write.
DEB_TEST := jq openssh-client coreutils util-linux

.PHONY: help deps deps-test build launcher demo demo-stop test check fuzz bench generate clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps-test: DEB_BUILD := $(DEB_TEST)
deps deps-test:
	@missing=; for p in $(DEB_BUILD); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; \
	  (apt-get install -y -q $$missing || { apt-get update -q && apt-get install -y -q $$missing; }) >.deps.log 2>&1 || { cat .deps.log; rm -f .deps.log; exit 1; }; rm -f .deps.log; fi

build: $(BIN) ## build bin/invar, which carries the launcher inside

launcher: $(LAUNCHER)

# The launcher is small, static and linked with libseccomp; it alone is built with cgo.
$(LAUNCHER): $(SOURCES) | deps
	@mkdir -p $(@D)
	CGO_ENABLED=1 $(GO) build -trimpath -tags 'seccomp netgo osusergo' -ldflags '-s -w -extldflags "-static"' -o $@ ./cmd/invar-launcher

$(BIN): $(SOURCES) $(LAUNCHER)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/invar

demo: build ## deploy, change and roll back the sample app on real containers
	@$(BIN) demo

demo-stop: build ## stop what make demo left running, and remove it
	@$(BIN) demo --stop

test: build deps-test ## all tests, with the race detector (root; about 20 minutes)
	$(GO) test -race -timeout 30m ./...
	cd examples/shop && $(GO) vet ./...

check: build ## format, vet, staticcheck, generated files up to date
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "gofmt wants to change:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -run 'UpToDate|Layers' . ./cli/... ./api/...

fuzz: ## run each fuzz target for a minute
	@for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg 2>/dev/null | grep '^Fuzz'); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $${FUZZTIME:-60s} $$pkg || exit 1; done; done

bench: build ## measure against peers; installs the peers (root; BENCHFLAGS='-run REGEXP -n N -quick')
	cd bench && $(GO) run -mod=mod . $(BENCHFLAGS)

generate: build ## write the generated files again: CLI reference, OpenAPI document, the demo's app
	$(GO) test ./cli ./api/handler -run UpToDate -update

clean:
	rm -rf bin $(LAUNCHER)
