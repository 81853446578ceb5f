app = "keeper"

image "keeper" {
  go { package = "." }
}

component "keeper" {
  image = image.keeper
  env   = { MODE = "serve" }

  secret "/run/secrets/password" {
    name = "password"
    mode = "0440"
    user = "1234:65532"
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

component "plain" {
  image = image.keeper
  port "http" { number = 8080 }
}

route "keeper" {
  host = "keeper.localhost"
  to   = component.keeper.port.http
}

environment "staging" {
  rollout {
    min_healthy_time = "0s"
    healthy_deadline = "5s"
    keep_warm        = "0s"
    drain            = "0s"
  }
}
