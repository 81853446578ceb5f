# METADATA
# title: No floating references
# description: What runs is pinned to a digest, and a reference does not mean whatever is newest.
# custom:
#   controls: ["NIST-800-53:CM-2", "NIST-800-53:SI-7", "NIST-800-53:SR-11"]
package invar.no_floating_references

deny contains {"msg": msg, "id": "not-pinned", "subject": subject} if {
	some name, image in input.images
	not image.pinned
	subject := sprintf("image %s", [name])
	msg := sprintf("image %s is not pinned to a digest; run: invar lock", [name])
}

deny contains {"msg": msg, "id": "newest", "subject": subject, "reference": image.reference} if {
	some name, image in input.images
	image.kind == "ref"
	image.repository
	not image.immutable
	object.get(image, "tag", "latest") == "latest"
	subject := sprintf("image %s", [name])
	msg := sprintf("image %s (%s) means whatever is newest when it is locked; name a version or a digest", [name, image.reference])
}

deny contains {"msg": msg, "id": "mutable", "subject": subject, "reference": image.reference} if {
	data.settings.require_digests
	some name, image in input.images
	image.kind == "ref"
	not image.immutable
	subject := sprintf("image %s", [name])
	msg := sprintf("image %s (%s) has no digest in its reference, and settings.require_digests is set", [name, image.reference])
}
