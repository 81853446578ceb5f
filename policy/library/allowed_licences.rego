# METADATA
# title: Only allowed licences
# description: Every licence in an image's SBOM is one of settings.licences of data.json.
# custom:
#   controls: ["NIST-800-53:CM-8", "NIST-800-53:SR-4"]
package invar.allowed_licences

deny contains {"msg": msg, "id": "allowed-licences", "subject": subject, "licence": licence} if {
	some name, image in input.images
	some licence in array.concat(image.sbom.licenses, object.get(image.sbom, "unknown_licenses", []))
	not allowed(licence)
	subject := sprintf("image %s", [name])
	msg := sprintf("image %s has software under %s, which is not an allowed licence", [name, licence])
}

deny contains {"msg": msg, "id": "sbom", "subject": subject} if {
	data.settings.require_sbom
	some name, image in input.images
	not image.sbom
	subject := sprintf("image %s", [name])
	msg := sprintf("image %s has no SBOM, so its licences are not known", [name])
}

warn contains {"msg": msg, "id": "sbom", "subject": subject} if {
	not data.settings.require_sbom
	some name, image in input.images
	not image.sbom
	subject := sprintf("image %s", [name])
	msg := sprintf("image %s has no SBOM, so its licences are not known", [name])
}

warn contains {"msg": msg, "id": "unlicensed", "subject": subject} if {
	some name, image in input.images
	image.sbom.unlicensed > 0
	subject := sprintf("image %s", [name])
	msg := sprintf("image %s has %d packages of which no licence is known", [name, image.sbom.unlicensed])
}

warn contains {"msg": msg, "id": "incomplete", "subject": subject} if {
	some name, image in input.images
	image.sbom.complete == false
	subject := sprintf("image %s", [name])
	msg := sprintf("image %s may hold software that its SBOM does not list", [name])
}

# An expression is allowed when one of its alternatives is: all licences of it. One with parentheses is allowed only as it
# stands in the list.
allowed(expression) if expression in data.settings.licences

allowed(expression) if {
	not contains(expression, "(")
	some alternative in split(expression, " OR ")
	every licence in split(alternative, " AND ") {
		licence in data.settings.licences
	}
}
