# METADATA
# title: Drift is answered in production
# description: What was tampered with must not go on.
# custom:
#   controls: ["NIST-800-53:CM-6", "NIST-800-53:SI-7(7)"]
package invar.drift_response

production if {
	some pattern in data.settings.production.environments
	glob.match(pattern, [], input.environment.name)
}

deny contains {"msg": msg, "id": "drift-only-alerts"} if {
	production
	input.after.on_drift == "alert"
	msg := sprintf("on_drift is \"alert\" in %s: an instance that differs from its release would go on", [input.environment.name])
}
