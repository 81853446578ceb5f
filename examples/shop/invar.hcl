# The sample app: a shop's web page, and the catalog that it asks.
#
#   invar apply staging            deploy it
#   invar apply prod               the same bundle, with prod's variables
app = "shop"

variable "greeting" {
  type        = string
  default     = "Welcome to the shop"
  description = "The headline of the page."

  validation {
    condition     = length(var.greeting) > 0
    error_message = "The greeting is what customers see first: it can't be empty."
  }
}

variable "log_level" {
  type    = string
  default = "info"
}

image "web" {
  go { package = "./cmd/web" }
}

image "catalog" {
  go { package = "./cmd/catalog" }
}

component "web" {
  image    = image.web
  replicas = 2
  env      = { LOG_LEVEL = var.log_level }
  uses     = [component.catalog.port.http]

  file "/etc/web/config.json" {
    content = templatefile("config/web.json.tftpl", {
      greeting = var.greeting
      catalog  = "http://catalog:9000"
    })
  }

  port "http" { number = 8080 }

  health {
    http {
      port = "http"
      path = "/healthz"
    }
  }

  resources {
    cpu    = 0.5
    memory = "64Mi"
  }
}

component "catalog" {
  image = image.catalog

  port "http" { number = 9000 }

  health {
    http {
      port = "http"
      path = "/healthz"
    }
  }

  resources { memory = "64Mi" }
}

route "shop" {
  host = env.name == "staging" ? "shop.localhost" : "${env.name}.shop.localhost"
  to   = component.web.port.http
}

environment "staging" {
  rollout {
    max_parallel     = 2
    min_healthy_time = "1s"
    keep_warm        = "15m"
  }
}

environment "prod" {
  promote_from = "staging" # takes only what ran healthy there
  rollout {
    max_parallel     = 2
    min_healthy_time = "1s"
  }
}
