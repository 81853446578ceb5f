# METADATA
# title: Resource limits are set
# description: A component without limits takes what its neighbours need.
# custom:
#   controls: ["NIST-800-53:CM-6", "PCI-DSS-4.0.1:2.2.1", "ISO-27001:A.8.9"]
package invar.resource_limits

limits := {"cpu_millis": "cpu", "memory_bytes": "memory"}

deny contains {"msg": msg, "id": "resource-limits", "subject": subject, "limit": name} if {
	some placed in input.after.components
	some field, name in limits
	object.get(placed.component.resources, field, 0) <= 0
	subject := sprintf("component %s", [placed.component.name])
	msg := sprintf("component %s has no limit of %s; set it in its resources block", [placed.component.name, name])
}
