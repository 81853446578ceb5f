package sbom

import (
	"bytes"
	"cmp"
	"slices"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"github.com/invarhq/invar/fault"
)

// Summary is what policies ask of a document.
type Summary struct {
	Format      string   `json:"format"`                  // "CycloneDX 1.6"
	Packages    int      `json:"packages"`                // libraries and applications
	Files       int      `json:"files"`                   // files that are listed one by one
	Licenses    []string `json:"licenses"`                // SPDX identifiers, sorted, each once
	Unknown     []string `json:"unknown_licenses"`        // names of licenses that SPDX does not have
	Unlicensed  int      `json:"unlicensed"`              // packages whose license is not known
	Complete    bool     `json:"complete"`                // the document says that nothing else is in the image
	NotLookedAt []string `json:"not_looked_at,omitempty"` // in sentences
	Purls       []string `json:"purls"`                   // of the packages, sorted, each once
}

// Component is one of a document, as lists for people have it.
type Component struct {
	Type, Name, Version, Purl string
	Licenses                  []string // SPDX identifiers, or names
}

// Components returns what a document lists, in its order. It fails with fault.Invalid.
func Components(doc []byte) ([]Component, error) {
	bom, err := decode(doc)
	if err != nil || bom.Components == nil {
		return nil, err
	}
	var all []Component
	for _, c := range *bom.Components {
		out := Component{Type: string(c.Type), Name: c.Name, Version: c.Version, Purl: c.PackageURL}
		if c.Licenses != nil {
			for _, l := range *c.Licenses {
				out.Licenses = append(out.Licenses, licenseName(l))
			}
		}
		all = append(all, out)
	}
	return all, nil
}

func licenseName(l cdx.LicenseChoice) string {
	if l.License != nil {
		return cmp.Or(l.License.ID, l.License.Name)
	}
	return l.Expression
}

func decode(doc []byte) (cdx.BOM, error) {
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(doc), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		return cdx.BOM{}, fault.Errorf(fault.Invalid, "reading CycloneDX: %w", err)
	}
	if bom.BOMFormat != cdx.BOMFormat {
		return cdx.BOM{}, fault.Errorf(fault.Invalid, "reading CycloneDX: the format is %q", bom.BOMFormat)
	}
	return bom, nil
}

// Summarize reads a document that this package made, or another in CycloneDX's JSON. It fails with fault.Invalid.
func Summarize(doc []byte) (Summary, error) {
	bom, err := decode(doc)
	if err != nil {
		return Summary{}, err
	}
	s := Summary{Format: bom.BOMFormat + " " + bom.SpecVersion.String(), Complete: complete(bom)}
	if bom.Components != nil {
		for _, c := range *bom.Components {
			s.count(c)
		}
	}
	if bom.Metadata != nil && bom.Metadata.Properties != nil {
		for _, p := range *bom.Metadata.Properties {
			if p.Name == "invar:not-looked-at" {
				s.NotLookedAt = append(s.NotLookedAt, p.Value)
			}
		}
	}
	for _, list := range []*[]string{&s.Licenses, &s.Unknown, &s.Purls} {
		slices.Sort(*list)
		*list = append([]string{}, slices.Compact(*list)...)
	}
	return s, nil
}

func (s *Summary) count(c cdx.Component) {
	switch c.Type {
	case cdx.ComponentTypeFile:
		s.Files++
		return
	case cdx.ComponentTypeLibrary, cdx.ComponentTypeApplication:
	default:
		return
	}
	s.Packages++
	if c.PackageURL != "" {
		s.Purls = append(s.Purls, c.PackageURL)
	}
	if c.Licenses == nil || len(*c.Licenses) == 0 {
		s.Unlicensed++
		return
	}
	for _, l := range *c.Licenses {
		if l.License != nil && l.License.ID != "" {
			s.Licenses = append(s.Licenses, l.License.ID)
		} else {
			s.Unknown = append(s.Unknown, licenseName(l))
		}
	}
}

func complete(bom cdx.BOM) bool {
	if bom.Compositions == nil {
		return false
	}
	return slices.ContainsFunc(*bom.Compositions, func(c cdx.Composition) bool {
		return c.Aggregate == cdx.CompositionAggregateComplete && c.Assemblies != nil && slices.Contains(*c.Assemblies, imageRef)
	})
}
