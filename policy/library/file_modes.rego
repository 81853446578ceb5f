# METADATA
# title: No privileged file modes
# description: No file that runs as another user or that everybody may write, and no secret that others may read.
# custom:
#   controls: ["NIST-800-53:AC-3", "NIST-800-53:AC-6", "NIST-800-53:CM-6"]
package invar.file_modes

# Permission bits, octal in the comment: Rego has decimal numbers alone.
privileged := {
	"set-user-id": 2048, # 4000
	"set-group-id": 1024, # 2000
	"world-writable": 2, # 0002
}

deny contains {"msg": msg, "id": id, "subject": subject, "path": file.path} if {
	some placed in input.after.components
	some file in placed.component.files
	some id, bit in privileged
	bits.and(file.mode, bit) != 0
	subject := sprintf("component %s", [placed.component.name])
	msg := sprintf("file %s of component %s is %s (mode %04o)", [file.path, placed.component.name, id, file.mode])
}

deny contains {"msg": msg, "id": "secret-readable", "subject": subject, "path": secret.path} if {
	some placed in input.after.components
	some secret in placed.component.secrets
	bits.and(secret.mode, 7) != 0 # 0007: anything for others
	subject := sprintf("component %s", [placed.component.name])
	msg := sprintf("secret %s of component %s is open to every user (mode %04o)", [secret.path, placed.component.name, secret.mode])
}
