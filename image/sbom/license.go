package sbom

import (
	_ "embed"
	"regexp"
	"slices"
	"strings"
	"sync"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// spdxText has the identifiers of the SPDX License List (CC0-1.0), one a line.
//
//go:embed spdx.txt
var spdxText string

// spdx finds an identifier by its lower-case form.
var spdx = sync.OnceValue(func() map[string]string {
	ids := map[string]string{}
	for id := range strings.Lines(spdxText) {
		id = strings.TrimSpace(id)
		ids[strings.ToLower(id)] = id
	}
	return ids
})

// debianNames are short names of Debian's copyright format that SPDX has under another one.
var debianNames = map[string]string{
	"apache-2": "Apache-2.0", "bsd-2-clauses": "BSD-2-Clause", "bsd-3-clauses": "BSD-3-Clause", "cc0": "CC0-1.0", "expat": "MIT",
	"psf-2": "PSF-2.0", "python-2": "Python-2.0", "zope-2.1": "ZPL-2.1",
}

var gnuName = regexp.MustCompile(`^(?i:(A?GPL|LGPL|GFDL)(?:v|-)(\d)(?:\.(\d))?(\+|-only|-or-later)?)$`)

// spdxID returns the identifier of a license by a name that packages use for it, or "".
func spdxID(name string) string {
	if m := gnuName.FindStringSubmatch(name); m != nil {
		minor, suffix := m[3], "-only"
		if minor == "" {
			minor = "0"
		}
		if m[4] == "+" || strings.EqualFold(m[4], "-or-later") {
			suffix = "-or-later"
		}
		if id := spdx()[strings.ToLower(m[1]+"-"+m[2]+"."+minor+suffix)]; id != "" {
			return id
		}
	}
	lower := strings.ToLower(name)
	if id := debianNames[lower]; id != "" {
		return id
	}
	return spdx()[lower]
}

// maxLicenseName bounds the name of a license that SPDX does not know.
const maxLicenseName = 120

var betweenLicenses = regexp.MustCompile(`(?i)\s*,?\s+(?:and/or|and|or)\s+|\s*[,|]\s*|\s*\(\s*|\s*\)\s*`)

// splitLicenses takes the licenses out of an expression such as "GPL-2+ or Artistic". An exception stays with its license.
func splitLicenses(expression string) []string {
	var names []string
	for _, name := range betweenLicenses.Split(" "+strings.Join(strings.Fields(expression), " ")+" ", -1) {
		if name = strings.TrimSpace(name); name != "" && len(name) <= maxLicenseName {
			names = append(names, name)
		}
	}
	return names
}

// licenses are a component's, each once: by identifier where SPDX has one, else by name. Whether all of them apply or one is to
// be chosen is lost: their packages say it, for each file.
func licenses(names []string) *cdx.Licenses {
	all := map[string]cdx.LicenseChoice{}
	for _, name := range names {
		l := &cdx.License{ID: spdxID(name)}
		if l.ID == "" {
			l.Name = name
		}
		all[l.ID+l.Name] = cdx.LicenseChoice{License: l}
	}
	if len(all) == 0 {
		return nil
	}
	out := make(cdx.Licenses, 0, len(all))
	for _, key := range sortedKeys(all) {
		out = append(out, all[key])
	}
	return &out
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
