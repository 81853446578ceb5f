# METADATA
# title: Two replicas in production
# description: One instance that ends must not end the service.
# custom:
#   controls: ["NIST-800-53:CM-6", "ISO-27001:A.8.9"]
package invar.production_replicas

production if {
	some pattern in data.settings.production.environments
	glob.match(pattern, [], input.environment.name)
}

deny contains {"msg": msg, "id": "production-replicas", "subject": subject, "replicas": placed.replicas} if {
	production
	some placed in input.after.components
	placed.replicas < data.settings.production.min_replicas
	not single(placed.component)
	subject := sprintf("component %s", [placed.component.name])
	msg := sprintf("component %s has replicas = %d in %s; %d or more are wanted", [placed.component.name, placed.replicas, input.environment.name, data.settings.production.min_replicas])
}

warn contains {"msg": msg, "id": "single-instance", "subject": subject} if {
	production
	some placed in input.after.components
	single(placed.component)
	subject := sprintf("component %s", [placed.component.name])
	msg := sprintf("component %s has a volume, which one instance at a time can use: it has no second replica", [placed.component.name])
}

# A volume belongs to one instance at a time, so that a component that has one can't have two.
single(component) if count(component.volumes) > 0
