package invar.allowed_registries_test

import data.invar.allowed_registries

settings := {"registries": ["registry.example.com", "docker.io/library"]}

from(repository) := {"images": {"web": {"kind": "ref", "reference": "as-written", "repository": repository}}}

test_allowed if {
	every repository in ["registry.example.com/web", "registry.example.com/team/web", "docker.io/library/nginx"] {
		count(allowed_registries.deny) == 0 with input as from(repository) with data.settings as settings
	}
}

test_denied if {
	every repository in ["registry.example.com.evil.example/web", "registry.example.community/web", "docker.io/someone/nginx", "docker.io/librarymine/x"] {
		count(allowed_registries.deny) == 1 with input as from(repository) with data.settings as settings
	}
}

test_an_archive_is_from_no_registry if {
	archive := {"images": {"web": {"kind": "ref", "reference": "oci-archive:web.tar"}}}
	count(allowed_registries.deny) == 1 with input as archive with data.settings as settings
	count(allowed_registries.deny) == 0 with input as archive with data.settings as {"registries": ["file"]}
}

test_what_is_built_is_from_no_registry if {
	count(allowed_registries.deny) == 0 with input as {"images": {"web": {"kind": "go"}}} with data.settings as settings
}
