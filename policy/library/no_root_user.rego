# METADATA
# title: No root user
# description: A process that breaks out of its instance as root is root; one that runs as a user of its own is nobody.
# custom:
#   controls: ["NIST-800-53:AC-6", "NIST-800-53:CM-7", "SOC2:CC6.1"]
package invar.no_root_user

deny contains {"msg": msg, "id": "no-root-user", "subject": subject, "user": user} if {
	some placed in input.after.components
	user := object.get(placed.component, "user", "")
	regex.match(`^(root|0*)(:.*)?$`, user)
	subject := sprintf("component %s", [placed.component.name])
	msg := sprintf("component %s runs as root (user %q); give it a user, such as \"65532:65532\"", [placed.component.name, user])
}
