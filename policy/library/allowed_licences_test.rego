package invar.allowed_licences_test

import data.invar.allowed_licences

settings := {"licences": ["MIT", "Apache-2.0", "(MIT OR GPL-2.0-only) AND Apache-2.0"], "require_sbom": false}

under(licences) := {"images": {"web": {"sbom": {"licenses": licences, "unlicensed": 0}}}}

test_allowed if {
	every licence in ["MIT", "MIT AND Apache-2.0", "GPL-3.0-only OR MIT", "GPL-3.0-only AND MIT OR Apache-2.0", "(MIT OR GPL-2.0-only) AND Apache-2.0"] {
		count(allowed_licences.deny) == 0 with input as under([licence]) with data.settings as settings
	}
}

test_denied if {
	every licence in ["GPL-3.0-only", "MIT AND GPL-3.0-only", "GPL-3.0-only OR AGPL-3.0-only", "(MIT OR MIT)", "GPL-2.0-only WITH Classpath-exception-2.0"] {
		count(allowed_licences.deny) == 1 with input as under([licence]) with data.settings as settings
	}
}

test_a_licence_that_spdx_does_not_have_is_denied_unless_it_is_listed if {
	own := {"images": {"web": {"sbom": {"licenses": ["MIT"], "unknown_licenses": ["Acme"], "complete": true}}}}
	count(allowed_licences.deny) == 1 with input as own with data.settings as settings
	count(allowed_licences.deny) == 0 with input as own with data.settings as {"licences": ["MIT", "Acme"]}
}

test_an_incomplete_sbom_is_warned_of if {
	partial := {"images": {"web": {"sbom": {"licenses": [], "complete": false}}}}
	count(allowed_licences.warn) == 1 with input as partial with data.settings as settings
}

test_an_image_without_sbom_is_warned_of_or_denied if {
	bare := {"images": {"web": {"kind": "ref"}}}
	count(allowed_licences.warn) == 1 with input as bare with data.settings as settings
	count(allowed_licences.deny) == 0 with input as bare with data.settings as settings
	count(allowed_licences.deny) == 1 with input as bare with data.settings as {"licences": [], "require_sbom": true}
}
