# PostgreSQL with a volume, a Go web app that uses it, nginx in front.
# No image comes from a registry: nginx and PostgreSQL are Debian's packages.
app = "notes"

variable "title" {
  type    = string
  default = "Notes"
}

variable "max_connections" {
  type    = number
  default = 50

  validation {
    condition     = var.max_connections >= 10
    error_message = "PostgreSQL keeps a few connections for itself: use 10 or more."
  }
}

image "postgres" {
  debian {
    suite    = "bookworm"
    packages = ["postgresql-15"]
    user     = "postgres"
  }
}

image "nginx" {
  debian {
    suite    = "bookworm"
    packages = ["nginx-light"]
    user     = "www-data"
  }
}

image "notes" {
  go { package = "./cmd/notes" }
}

component "db" {
  image   = image.postgres
  command = ["/bin/sh", "/etc/postgresql/start.sh"]

  file "/etc/postgresql/start.sh" { content = file("config/start-postgres.sh") }
  file "/etc/postgresql/invar.conf" {
    content = templatefile("config/postgresql.conf.tftpl", { max_connections = var.max_connections })
  }
  file "/etc/postgresql/hba.conf" { content = file("config/hba.conf") }

  volume "data" { path = "/var/lib/postgresql/data" }
  scratch "/run/postgresql" { size = "1Mi" }
  scratch "/tmp" { size = "64Mi" }

  port "sql" { number = 5432 }
  health {
    exec { command = ["/usr/lib/postgresql/15/bin/pg_isready", "-q", "-h", "127.0.0.1"] }
  }
  stop_signal  = "SIGINT" # PostgreSQL's fast shutdown
  stop_timeout = "30s"
  resources { memory = "512Mi" }
}

component "notes" {
  image    = image.notes
  replicas = 2
  env      = { TITLE = var.title, DATABASE_URL = "postgres://notes@db:5432/notes" }
  uses     = [component.db.port.sql]

  port "http" { number = 8080 }
  health {
    http {
      port = "http"
      path = "/healthz"
    }
  }
  resources { memory = "128Mi" }
}

component "nginx" {
  image   = image.nginx
  command = ["/usr/sbin/nginx", "-e", "stderr", "-c", "/etc/nginx/invar.conf"]
  uses    = [component.notes.port.http]

  file "/etc/nginx/invar.conf" { content = file("config/nginx.conf") }
  scratch "/tmp" { size = "64Mi" }

  port "http" { number = 80 }
  health {
    http {
      port = "http"
      path = "/nginx-health"
    }
  }
  resources { memory = "64Mi" }
}

route "notes" {
  host = "notes.localhost"
  to   = component.nginx.port.http
}

environment "prod" {
  rollout {
    max_parallel     = 2
    min_healthy_time = "1s"
    healthy_deadline = "1m"
  }
}
