package invar.no_floating_references_test

import data.invar.no_floating_references as floating

settings := {"require_digests": false}

image(fields) := {"images": {"web": object.union(
	{"kind": "ref", "reference": "as-written", "repository": "registry.example.com/web", "pinned": true, "immutable": false},
	fields,
)}}

ids(results) := {r.id | some r in results}

test_a_version_that_the_lock_pins_is_allowed if {
	count(floating.deny) == 0 with input as image({"tag": "1.2"}) with data.settings as settings
}

test_a_digest_is_allowed_whatever_the_tag if {
	count(floating.deny) == 0 with input as image({"tag": "latest", "immutable": true}) with data.settings as settings
}

test_latest_and_no_tag_are_denied if {
	ids(floating.deny) == {"newest"} with input as image({"tag": "latest"}) with data.settings as settings
	ids(floating.deny) == {"newest"} with input as image({}) with data.settings as settings
}

test_what_the_lock_does_not_pin_is_denied if {
	ids(floating.deny) == {"not-pinned"} with input as image({"tag": "1.2", "pinned": false}) with data.settings as settings
	ids(floating.deny) == {"not-pinned"} with input as {"images": {"db": {"kind": "debian", "pinned": false, "immutable": true}}} with data.settings as settings
}

test_an_archive_is_a_file_and_has_no_tag if {
	archive := {"images": {"web": {"kind": "ref", "reference": "oci-archive:web.tar", "pinned": true, "immutable": false}}}
	count(floating.deny) == 0 with input as archive with data.settings as settings
}

test_digests_can_be_demanded if {
	ids(floating.deny) == {"mutable"} with input as image({"tag": "1.2"}) with data.settings as {"require_digests": true}
}
