package invar.file_modes_test

import data.invar.file_modes

with_file(mode) := {"after": {"components": [{"component": {"name": "web", "files": [{"path": "/etc/app", "mode": mode}]}, "replicas": 1}]}}

with_secret(mode) := {"after": {"components": [{"component": {"name": "web", "secrets": [{"path": "/run/secrets/db", "mode": mode}]}, "replicas": 1}]}}

ids(results) := {r.id | some r in results}

test_plain_modes_are_allowed if {
	every mode in [292, 420, 493] { # 0444, 0644, 0755
		count(file_modes.deny) == 0 with input as with_file(mode)
	}
}

test_privileged_modes_are_denied if {
	ids(file_modes.deny) == {"set-user-id"} with input as with_file(2541) # 4755
	ids(file_modes.deny) == {"set-group-id"} with input as with_file(1517) # 2755
	ids(file_modes.deny) == {"world-writable"} with input as with_file(438) # 0666
	ids(file_modes.deny) == {"set-user-id", "set-group-id", "world-writable"} with input as with_file(3583) # 6777
}

test_secrets_are_for_their_owner_and_group if {
	every mode in [256, 288] { # 0400, 0440
		count(file_modes.deny) == 0 with input as with_secret(mode)
	}
	every mode in [260, 292, 257] { # 0404, 0444, 0401
		ids(file_modes.deny) == {"secret-readable"} with input as with_secret(mode)
	}
}

test_the_mode_is_shown_in_octal if {
	some result in file_modes.deny with input as with_file(438)
	contains(result.msg, "mode 0666")
}
