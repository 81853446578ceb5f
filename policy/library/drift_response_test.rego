package invar.drift_response_test

import data.invar.drift_response as response

settings := {"production": {"environments": ["prod", "prod-*"]}}

answering(env, after) := {"environment": {"name": env}, "after": object.union({"components": []}, after)}

test_alert_alone_is_denied_in_production if {
	every env in ["prod", "prod-eu"] {
		count(response.deny) == 1 with input as answering(env, {"on_drift": "alert"}) with data.settings as settings
	}
}

test_what_answers_is_allowed if {
	every after in [{}, {"on_drift": "freeze"}] {
		count(response.deny) == 0 with input as answering("prod", after) with data.settings as settings
	}
}

test_alert_is_allowed_elsewhere if {
	count(response.deny) == 0 with input as answering("staging", {"on_drift": "alert"}) with data.settings as settings
}
