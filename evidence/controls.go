package evidence

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/state"
)

// Control is a control of a standard, with what in the ledger answers it. Titles and answers are in our own words; the texts of some
// standards may not be copied.
type Control struct {
	Framework string       `json:"framework"`
	ID        string       `json:"id"`
	Title     string       `json:"title"`
	Answer    string       `json:"answer"`
	Kinds     []state.Kind `json:"kinds"`            // of the entries that show it
	Checks    []string     `json:"checks,omitempty"` // of which a finding bears on it
}

// Name is how the control is cited.
func (c Control) Name() string { return c.Framework + " " + c.ID }

// Mapping is which controls the ledger answers.
type Mapping struct {
	Controls    []Control    `json:"controls"`
	Operational []state.Kind `json:"operational"` // kinds that answer none: the ledger's own life
}

//go:embed controls.json
var controlsFile []byte

// DecodeMapping reads a mapping. Its errors are of kind fault.Invalid.
func DecodeMapping(b []byte) (Mapping, error) {
	var m Mapping
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return Mapping{}, fault.As(fault.Invalid, fmt.Errorf("reading the mapping of controls: %w", err))
	}
	return m, nil
}

var mapping = sync.OnceValue(func() Mapping {
	m, err := DecodeMapping(controlsFile)
	if err != nil {
		panic(fmt.Sprintf("evidence: controls.json, which is part of the program: %v", err))
	}
	return m
})

// Controls returns the mapping.
func Controls() Mapping {
	m := mapping()
	return Mapping{slices.Clone(m.Controls), slices.Clone(m.Operational)}
}

// bearing names the controls that a finding of the check bears on.
func bearing(check string) []string {
	var out []string
	for _, c := range mapping().Controls {
		if slices.Contains(c.Checks, check) {
			out = append(out, c.Name())
		}
	}
	return out
}

// ControlsDoc returns docs/controls.md.
func ControlsDoc() string {
	var b strings.Builder
	b.WriteString(`# Controls

Which controls of which standards a ledger answers, and with which entries. This page is made from ` + "`evidence/controls.json`" + `; ` + "`invar evidence export`" + `
writes the same as data, and names with every finding the controls that it bears on.

The wording is ours: the texts of PCI DSS, ISO/IEC 27001 and SOC 2 are licensed, and only their numbers stand here. **Have a compliance reader check
numbers and answers against your edition before you rely on them.** An entry shows that something was done or refused; whether that meets a
control in your organisation is for you and your auditor to say.
`)
	last := ""
	for _, c := range mapping().Controls {
		if c.Framework != last {
			fmt.Fprintf(&b, "\n## %s\n\n| control | asks for | answered by | entries |\n|---|---|---|---|\n", c.Framework)
			last = c.Framework
		}
		var kinds []string
		for _, k := range c.Kinds {
			kinds = append(kinds, "`"+string(k)+"`")
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", c.ID, c.Title, c.Answer, strings.Join(kinds, ", "))
	}
	b.WriteString("\n## Entries of the ledger's own life\n\nThese answer no control by themselves, and are in every export:")
	for i, k := range mapping().Operational {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, " `%s`", k)
	}
	b.WriteString(".\n")
	return b.String()
}
