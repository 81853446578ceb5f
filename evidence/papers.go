package evidence

import (
	"fmt"

	"github.com/invarhq/invar/digest"
)

// papers writes what people and their tools read: the OSCAL files, the report, and how to check all of it without invar.
func (d *dataset) papers(m *made, paths map[digest.Digest]string) error {
	results, components, err := d.oscal(m)
	if err != nil {
		return fmt.Errorf("writing the OSCAL files: %w", err)
	}
	m.files[FileResults], m.files[FileComponents] = results, components
	if m.files[FileReport], err = d.report(m); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	m.files[FileGuide] = d.guide(m, paths)
	return nil
}
