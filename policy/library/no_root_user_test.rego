package invar.no_root_user_test

import data.invar.no_root_user

running_as(user) := {"after": {"components": [{"component": {"name": "web", "user": user}, "replicas": 1}]}}

test_root_is_denied_in_every_spelling if {
	every user in ["", "root", "0", "00", "0:0", "root:web", "0:1000"] {
		count(no_root_user.deny) == 1 with input as running_as(user)
	}
}

test_a_user_of_its_own_is_allowed if {
	every user in ["65532", "65532:65532", "postgres", "10", "rooty"] {
		count(no_root_user.deny) == 0 with input as running_as(user)
	}
}

test_no_user_at_all_is_root if {
	count(no_root_user.deny) == 1 with input as {"after": {"components": [{"component": {"name": "web"}, "replicas": 1}]}}
}

test_nothing_is_said_when_an_environment_is_destroyed if {
	count(no_root_user.deny) == 0 with input as {"change": {"kind": "destroy"}}
}
