package sbom

import (
	"bytes"
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

// Summarize reads a document that this package made, or another in CycloneDX's JSON. It fails with fault.Invalid.
func Summarize(doc []byte) (Summary, error) {
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(doc), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		return Summary{}, fault.Errorf(fault.Invalid, "reading CycloneDX: %w", err)
	}
	if bom.BOMFormat != cdx.BOMFormat {
		return Summary{}, fault.Errorf(fault.Invalid, "reading CycloneDX: the format is %q", bom.BOMFormat)
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
		switch {
		case l.License != nil && l.License.ID != "":
			s.Licenses = append(s.Licenses, l.License.ID)
		case l.License != nil:
			s.Unknown = append(s.Unknown, l.License.Name)
		default:
			s.Unknown = append(s.Unknown, l.Expression)
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
