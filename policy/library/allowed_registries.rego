# METADATA
# title: Only allowed registries
# description: Images come from the registries in settings.registries of data.json, or are built from the sources.
# custom:
#   controls: ["NIST-800-53:CM-7", "NIST-800-53:CM-14", "NIST-800-53:SR-4", "SOC2:CC6.8"]
package invar.allowed_registries

deny contains {"msg": msg, "id": "allowed-registries", "subject": subject, "reference": image.reference} if {
	some name, image in input.images
	image.kind == "ref"
	not allowed(object.get(image, "repository", "file"))
	subject := sprintf("image %s", [name])
	msg := sprintf("image %s (%s) is from none of the allowed registries: %s", [name, image.reference, concat(", ", data.settings.registries)])
}

# An entry is a registry (registry.example.com), a part of one (registry.example.com/team), or "file": an archive or
# layout beside the configuration.
allowed(repository) if {
	some entry in data.settings.registries
	repository == entry
}

allowed(repository) if {
	some entry in data.settings.registries
	startswith(repository, sprintf("%s/", [trim_right(entry, "/")]))
}
