package invar.resource_limits_test

import data.invar.resource_limits

with_limits(resources) := {"after": {"components": [{"component": {"name": "web", "resources": resources}, "replicas": 1}]}}

test_both_limits_are_wanted if {
	count(resource_limits.deny) == 2 with input as with_limits({})
	count(resource_limits.deny) == 1 with input as with_limits({"cpu_millis": 500})
	count(resource_limits.deny) == 1 with input as with_limits({"memory_bytes": 1048576})
	count(resource_limits.deny) == 0 with input as with_limits({"cpu_millis": 500, "memory_bytes": 1048576})
}

test_the_missing_limit_is_named if {
	some result in resource_limits.deny with input as with_limits({"cpu_millis": 500})
	result.limit == "memory"
}
