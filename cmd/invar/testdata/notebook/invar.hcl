app = "notebook"

variable "title" {
  type    = string
  default = "one"
}

variable "migrate" {
  type    = string
  default = "nothing"
}

image "notebook" {
  go { package = "." }
}

component "notebook" {
  image = image.notebook
  env = {
    TITLE   = var.title
    MIGRATE = var.migrate
  }

  volume "data" {
    path     = "/data"
    snapshot = "before-change"
  }

  port "http" { number = 8080 }
  health {
    http {
      port = "http"
      path = "/healthz"
    }
    interval = "100ms"
  }
}

route "notebook" {
  host = "notebook.localhost"
  to   = component.notebook.port.http
}

environment "prod" {
  rollout {
    min_healthy_time  = "0s"
    healthy_deadline  = "20s"
    progress_deadline = "20s"
    auto_revert       = true
    drain             = "0s"
  }
}
