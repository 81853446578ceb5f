package invar.production_replicas_test

import data.invar.production_replicas as replicas

settings := {"production": {"environments": ["prod", "prod-*"], "min_replicas": 2}}

running(env, n, component) := {
	"environment": {"name": env},
	"after": {"components": [{"component": object.union({"name": "web"}, component), "replicas": n}]},
}

test_one_replica_is_denied_in_production if {
	every env in ["prod", "prod-eu"] {
		count(replicas.deny) == 1 with input as running(env, 1, {}) with data.settings as settings
		count(replicas.deny) == 1 with input as running(env, 0, {}) with data.settings as settings
		count(replicas.deny) == 0 with input as running(env, 2, {}) with data.settings as settings
	}
}

test_one_replica_is_allowed_elsewhere if {
	every env in ["staging", "preprod", "production"] {
		count(replicas.deny) == 0 with input as running(env, 1, {}) with data.settings as settings
	}
}

test_a_component_with_a_volume_has_one_instance if {
	count(replicas.deny) == 0 with input as running("prod", 1, {"volumes": [{"name": "data"}]}) with data.settings as settings
	count(replicas.warn) == 1 with input as running("prod", 1, {"volumes": [{"name": "data"}]}) with data.settings as settings
}
