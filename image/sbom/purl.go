package sbom

import "strings"

// purl is a package URL (ECMA-427): what a package is called wherever packages are compared.
type purl struct {
	kind, namespace, name, version string
	qualifiers                     [][2]string // sorted by key; empty values are left out
}

func (p purl) String() string {
	var b strings.Builder
	b.WriteString("pkg:" + p.kind + "/")
	for part := range strings.SplitSeq(p.namespace, "/") {
		if part != "" {
			b.WriteString(escape(part) + "/")
		}
	}
	b.WriteString(escape(p.name))
	if p.version != "" {
		b.WriteString("@" + escape(p.version))
	}
	sep := "?"
	for _, q := range p.qualifiers {
		if q[1] != "" {
			b.WriteString(sep + q[0] + "=" + escape(q[1]))
			sep = "&"
		}
	}
	return b.String()
}

// escape percent-encodes all but what package URLs leave as it is.
func escape(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(".-_~:", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

// goPurl is that of a Go module. The type's rules want lower case; the component's name keeps the module's own.
func goPurl(module, version string) string {
	dir, name := "", strings.ToLower(module)
	if i := strings.LastIndex(name, "/"); i >= 0 {
		dir, name = name[:i], name[i+1:]
	}
	return purl{kind: "golang", namespace: dir, name: name, version: version}.String()
}
