package sbom

import (
	"strings"
)

// A stanza is a paragraph of fields, as dpkg's databases and Debian's copyright files have them (deb822(5)). Names are lower-case;
// a value has its lines joined by line feeds.
type stanza map[string]string

// stanzas reads paragraphs. What is no field is passed over.
func stanzas(text string) []stanza {
	var all []stanza
	var at stanza
	field := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.TrimSpace(line) == "":
			if at != nil {
				all = append(all, at)
			}
			at, field = nil, ""
		case line[0] == ' ' || line[0] == '\t':
			if field != "" {
				at[field] += "\n" + strings.TrimSpace(line)
			}
		case line[0] == '#':
		default:
			name, value, ok := strings.Cut(line, ":")
			if field = ""; !ok || name == "" {
				continue
			}
			if at == nil {
				at = stanza{}
			}
			field = strings.ToLower(strings.TrimSpace(name))
			at[field] = strings.TrimSpace(value)
		}
	}
	if at != nil {
		all = append(all, at)
	}
	return all
}

// word returns a field's first line if it is one word, as names and versions are, else "".
func (s stanza) word(field string) string {
	v, _, _ := strings.Cut(s[field], "\n")
	if strings.ContainsAny(v, " \t") {
		return ""
	}
	return v
}

// debPackage is an installed package of Debian or its relatives.
type debPackage struct {
	name, version, architecture string
	source, sourceVersion       string // what it was built from; "": the same
}

// parseStatus reads dpkg's database: /var/lib/dpkg/status, or a file of status.d, whose packages have no status.
func parseStatus(text string) []debPackage {
	var all []debPackage
	for _, s := range stanzas(text) {
		p := debPackage{name: s.word("package"), version: s.word("version"), architecture: s.word("architecture")}
		status, known := s["status"]
		if p.name == "" || p.version == "" || known && !strings.HasSuffix(status, " installed") {
			continue
		}
		source, version, _ := strings.Cut(s["source"], " ")
		if source != p.name {
			p.source = source
		}
		p.sourceVersion = strings.Trim(version, "()")
		all = append(all, p)
	}
	return all
}

// parseCopyright returns the licenses that a machine-readable copyright file (DEP-5) gives for files, and whether it is one.
func parseCopyright(text string) ([]string, bool) {
	all := stanzas(text)
	if len(all) == 0 || !strings.Contains(all[0]["format"], "copyright-format") && !strings.Contains(all[0]["format"], "dep5") {
		return nil, false
	}
	var names []string
	for i, s := range all {
		if _, files := s["files"]; files || i == 0 {
			short, _, _ := strings.Cut(s["license"], "\n")
			names = append(names, splitLicenses(short)...)
		}
	}
	return names, true
}

// apkPackage is an installed package of Alpine or its relatives.
type apkPackage struct {
	name, version, architecture, license, origin string
}

// parseInstalled reads apk's database, /lib/apk/db/installed: a letter, a colon and a value a line, packages divided by empty lines.
func parseInstalled(text string) []apkPackage {
	var all []apkPackage
	var p apkPackage
	flush := func() {
		if p.name != "" && p.version != "" {
			all = append(all, p)
		}
		p = apkPackage{}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			flush()
			continue
		}
		if len(line) < 2 || line[1] != ':' {
			continue
		}
		switch value := line[2:]; line[0] {
		case 'P':
			p.name = value
		case 'V':
			p.version = value
		case 'A':
			p.architecture = value
		case 'L':
			p.license = value
		case 'o':
			p.origin = value
		}
	}
	flush()
	return all
}

// system is what /etc/os-release says.
type system struct{ id, version, name string }

// parseOSRelease reads os-release(5).
func parseOSRelease(text string) system {
	var s system
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			s.id = strings.ToLower(value)
		case "VERSION_ID":
			s.version = value
		case "PRETTY_NAME":
			s.name = value
		}
	}
	return s
}

// distro is the qualifier that tells scanners which advisories apply.
func (s system) distro() string {
	if s.id == "" || s.version == "" {
		return s.id
	}
	return s.id + "-" + s.version
}
