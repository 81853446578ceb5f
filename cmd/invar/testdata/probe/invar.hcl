app = "probe"

image "probe" {
  go { package = "." }
}

component "web" {
  image = image.probe
  env   = { MODE = "serve" }

  port "http" { number = 8080 }

  health {
    http {
      port = "http"
      path = "/healthz"
    }
    interval = "100ms"
  }

  resources { memory = "48Mi" }
}

route "web" {
  host = "probe.localhost"
  to   = component.web.port.http
}

environment "staging" {
  rollout {
    min_healthy_time = "0s"
    healthy_deadline = "30s"
    keep_warm        = "0s"
  }
}
