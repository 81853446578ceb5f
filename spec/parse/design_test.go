package parse_test

import (
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/spec/parse"
)

// design is the example of the design's section on configuration, whole.
const design = `app = "shop"

variable "log_level" {
  type    = string
  default = "info"
}

image "web" {
  go { package = "./cmd/web" }              # static, reproducible, as ko does it
}
image "db" {
  debian {                                  # packages pinned to exact versions and hashes in the lock
    suite    = "bookworm"
    packages = ["postgresql-15"]
  }
}
image "cache" { ref = "registry.example.com/cache:7" }       # tag pinned to a digest in the lock
image "site" {
  layers {
    base = image.web
    copy = { "./public" = "/srv/public" }
  }
}

component "web" {
  image    = image.web
  replicas = 2
  env      = { LOG_LEVEL = var.log_level, DATABASE = "postgres://app@db:5432/app" }
  uses     = [component.db.port.sql]        # the only connections that it can open

  file "/etc/web/config.yaml" {
    content = templatefile("web.yaml.tftpl", { level = var.log_level })
  }
  secret "/run/secrets/db-password" { name = "db-password" } # a pinned version, never the value
  port "http" { number = 8080 }
  health {
    http {
      port = "http"
      path = "/healthz"
    }
  }
  scratch "/tmp" { size = "64Mi" }          # memory-backed, noexec, gone with the instance
  resources {
    cpu    = 0.5
    memory = "128Mi"
  }
}

component "db" {
  image = image.db
  port "sql" { number = 5432 }
  volume "data" { path = "/var/lib/postgresql" }   # the one place where data outlives an instance
}

route "shop" {
  host = "shop.localhost"
  to   = component.web.port.http
}

environment "staging" {}

environment "prod" {
  variables    = { log_level = "warn" }
  replicas     = { web = 4 }
  promote_from = "staging"                  # takes only bundles that ran healthy there
  rollout {                                 # names and defaults that Nomad's users know
    max_parallel      = 2
    canary            = [10, 50]            # percent of traffic, step by step; empty: blue/green
    min_healthy_time  = "10s"
    healthy_deadline  = "5m"
    progress_deadline = "10m"
    auto_revert       = true
    keep_warm         = "15m"
  }
}
`

func designFS() fstest.MapFS {
	return fstest.MapFS{
		"invar.hcl":      {Data: []byte(design)},
		"web.yaml.tftpl": {Data: []byte("level: ${level}\n")},
		"unread.txt":     {Data: []byte("not part of the app")},
	}
}

func TestDesignExampleEvaluatesForStagingAndProd(t *testing.T) {
	m, diags := parse.Load(designFS())
	if err := diags.Err(); err != nil {
		t.Fatal(err)
	}
	for _, env := range []spec.EnvName{"staging", "prod"} {
		app, diags := m.Evaluate(env, nil)
		if err := diags.Err(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(designApp(env), app, cmp.Comparer(func(a, b spec.Range) bool { return true })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", env, diff)
		}
	}
	if diff := cmp.Diff([]string{"invar.hcl", "web.yaml.tftpl"}, m.Reads()); diff != "" {
		t.Errorf("Reads (-want +got):\n%s", diff)
	}
}

func designApp(env spec.EnvName) spec.App {
	level, replicas := "info", 2
	e := spec.Environment{Name: env, OnDrift: spec.Replace, Rollout: spec.DefaultRollout()}
	if env == "prod" {
		level, replicas = "warn", 4
		e.PromoteFrom = "staging"
		e.Rollout.MaxParallel, e.Rollout.Canary = 2, []int{10, 50}
	}
	return spec.App{
		Name: "shop", Env: e,
		Images: []spec.Image{
			{Name: "cache", Ref: "registry.example.com/cache:7"},
			{Name: "db", Debian: &spec.DebianImage{Suite: "bookworm", Packages: []string{"postgresql-15"}}},
			{Name: "site", Layers: &spec.LayersImage{Base: "web", Copy: map[string]string{"./public": "/srv/public"}}},
			{Name: "web", Go: &spec.GoImage{Package: "./cmd/web"}},
		},
		Components: []spec.Component{
			{
				Name: "db", Image: "db", Replicas: 1, StopTimeout: 10 * time.Second,
				Ports:   []spec.Port{{Name: "sql", Number: 5432, Protocol: "tcp"}},
				Volumes: []spec.Volume{{Name: "data", Path: "/var/lib/postgresql"}},
			},
			{
				Name: "web", Image: "web", Replicas: replicas, StopTimeout: 10 * time.Second,
				Env:       map[string]string{"LOG_LEVEL": level, "DATABASE": "postgres://app@db:5432/app"},
				Uses:      []spec.PortRef{{Component: "db", Port: "sql"}},
				Files:     []spec.File{{Path: "/etc/web/config.yaml", Content: []byte("level: " + level + "\n"), Mode: 0o444}},
				Secrets:   []spec.Secret{{Path: "/run/secrets/db-password", Name: "db-password", Mode: 0o400}},
				Ports:     []spec.Port{{Name: "http", Number: 8080, Protocol: "tcp"}},
				Health:    &spec.Health{HTTP: &spec.HTTPCheck{Port: "http", Path: "/healthz"}, Interval: time.Second, Timeout: time.Second, Failures: 3},
				Scratches: []spec.Scratch{{Path: "/tmp", SizeBytes: 64 << 20, Mode: 0o1777}},
				Resources: spec.Resources{CPUMillis: 500, MemoryBytes: 128 << 20},
			},
		},
		Routes: []spec.Route{{Name: "shop", Host: "shop.localhost", Path: "/", To: spec.PortRef{Component: "web", Port: "http"}}},
	}
}
