package evidence

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/state"
)

// OSCAL 1.2.2 (https://pages.nist.gov/OSCAL), as far as it is needed here. Names are those of its JSON schema.
const oscalVersion = "1.2.2"

type (
	oscalMetadata struct {
		Title        string    `json:"title"`
		LastModified time.Time `json:"last-modified"`
		Version      string    `json:"version"`
		OSCALVersion string    `json:"oscal-version"`
		Remarks      string    `json:"remarks,omitempty"`
	}
	oscalResults struct {
		UUID     string        `json:"uuid"`
		Metadata oscalMetadata `json:"metadata"`
		ImportAP oscalLink     `json:"import-ap"`
		Results  []oscalResult `json:"results"`
		Back     *oscalBack    `json:"back-matter,omitempty"`
	}
	oscalLink struct {
		Href string `json:"href"`
	}
	oscalResult struct {
		UUID         string             `json:"uuid"`
		Title        string             `json:"title"`
		Description  string             `json:"description"`
		Start        time.Time          `json:"start"`
		End          time.Time          `json:"end"`
		Reviewed     oscalReviewed      `json:"reviewed-controls"`
		Observations []oscalObservation `json:"observations,omitempty"`
		Findings     []oscalFinding     `json:"findings,omitempty"`
	}
	oscalReviewed struct {
		Selections []oscalSelection `json:"control-selections"`
	}
	oscalSelection struct {
		Description string         `json:"description"`
		Include     []oscalControl `json:"include-controls"`
	}
	oscalControl struct {
		ID string `json:"control-id"`
	}
	oscalObservation struct {
		UUID        string          `json:"uuid"`
		Title       string          `json:"title"`
		Description string          `json:"description"`
		Methods     []string        `json:"methods"`
		Types       []string        `json:"types,omitempty"`
		Evidence    []oscalEvidence `json:"relevant-evidence,omitempty"`
		Collected   time.Time       `json:"collected"`
	}
	oscalEvidence struct {
		Href        string `json:"href"`
		Description string `json:"description"`
	}
	oscalFinding struct {
		UUID        string         `json:"uuid"`
		Title       string         `json:"title"`
		Description string         `json:"description"`
		Target      oscalTarget    `json:"target"`
		Related     []oscalRelated `json:"related-observations,omitempty"`
	}
	oscalTarget struct {
		Type   string      `json:"type"`
		ID     string      `json:"target-id"`
		Status oscalStatus `json:"status"`
	}
	oscalStatus struct {
		State  string `json:"state"`
		Reason string `json:"reason,omitempty"`
	}
	oscalRelated struct {
		UUID string `json:"observation-uuid"`
	}
	oscalBack struct {
		Resources []oscalResource `json:"resources"`
	}
	oscalResource struct {
		UUID        string `json:"uuid"`
		Title       string `json:"title"`
		Description string `json:"description"`
	}
	oscalComponents struct {
		UUID       string           `json:"uuid"`
		Metadata   oscalMetadata    `json:"metadata"`
		Components []oscalComponent `json:"components"`
	}
	oscalComponent struct {
		UUID            string                `json:"uuid"`
		Type            string                `json:"type"`
		Title           string                `json:"title"`
		Description     string                `json:"description"`
		Implementations []oscalImplementation `json:"control-implementations"`
	}
	oscalImplementation struct {
		UUID         string             `json:"uuid"`
		Source       string             `json:"source"`
		Description  string             `json:"description"`
		Requirements []oscalRequirement `json:"implemented-requirements"`
	}
	oscalRequirement struct {
		UUID        string `json:"uuid"`
		ID          string `json:"control-id"`
		Description string `json:"description"`
	}
)

// sources of the controls. NIST publishes a catalog; the others' are named only.
var sources = map[string]string{
	"NIST SP 800-53r5":   "https://raw.githubusercontent.com/usnistgov/oscal-content/main/nist.gov/SP800-53/rev5/json/NIST_SP-800-53_rev5_catalog.json",
	"SOC 2":              "urn:invar:framework:soc-2",
	"PCI DSS 4.0.1":      "urn:invar:framework:pci-dss-4.0.1",
	"ISO/IEC 27001:2022": "urn:invar:framework:iso-iec-27001-2022",
	"DORA RTS 2024/1774": "urn:invar:framework:dora-rts-2024-1774",
	"21 CFR Part 11":     "urn:invar:framework:21-cfr-11",
}

// oscalID is a control's identifier as OSCAL wants one: that of NIST's catalog, or the number with a letter before it.
func (c Control) oscalID() string {
	id := strings.ToLower(c.ID)
	if strings.HasPrefix(c.Framework, "NIST") {
		return strings.NewReplacer("(", ".", ")", "").Replace(id)
	}
	id = strings.Trim(strings.NewReplacer("(", ".", ")", "", " ", "", "..", ".").Replace(id), ".")
	if strings.HasPrefix(id, "art.") || id[0] >= 'a' {
		return id
	}
	return "c" + id
}

// unique returns a UUID of version 5 that depends on the log and what it is for alone.
func (d *dataset) unique(of ...string) string {
	space := uuid.NewSHA1(uuid.NameSpaceURL, []byte("urn:invar:evidence:"+d.vkey))
	return uuid.NewSHA1(space, []byte(strings.Join(of, "\x00"))).String()
}

// id names what is of this bundle.
func (d *dataset) id(of ...string) string {
	return d.unique(append([]string{fmt.Sprint(d.scope, d.at.UnixMilli(), len(d.leaves))}, of...)...)
}

// answered are the controls that entries of the scope bear on, by framework in the mapping's order.
func answered(a *Audit) (frameworks []string, by map[string][]Control) {
	by = map[string][]Control{}
	for _, c := range mapping().Controls {
		if !slices.ContainsFunc(c.Kinds, func(k state.Kind) bool { return a.Kinds[k] > 0 }) {
			continue
		}
		if by[c.Framework] == nil {
			frameworks = append(frameworks, c.Framework)
		}
		by[c.Framework] = append(by[c.Framework], c)
	}
	return frameworks, by
}

// oscal writes the assessment results and the component definition.
func (d *dataset) oscal(m *made) (results, components []byte, err error) {
	if results, err = indented(map[string]oscalResults{"assessment-results": d.results(m)}); err != nil {
		return nil, nil, err
	}
	components, err = indented(map[string]oscalComponents{"component-definition": d.components()})
	return results, components, err
}

func indented(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	err := e.Encode(v)
	return b.Bytes(), err
}

func (d *dataset) results(m *made) oscalResults {
	plan := d.id("plan")
	r := oscalResult{
		UUID: d.id("result"), Title: "Change and configuration control of " + d.log, Start: m.audit.Began, End: m.audit.Ended,
		Description: fmt.Sprintf("All %d entries of the ledger were folded again; those from %d up to %d%s are reported on. %d heads moved.",
			len(d.leaves), d.scope.From, d.scope.To-1, ofEnv(d.scope), m.pop.Count),
	}
	frameworks, by := answered(m.audit)
	for _, f := range frameworks {
		s := oscalSelection{Description: f}
		for _, c := range by[f] {
			s.Include = append(s.Include, oscalControl{c.oscalID()})
		}
		r.Reviewed.Selections = append(r.Reviewed.Selections, s)
	}
	for _, c := range m.audit.Checks {
		r.Observations = append(r.Observations, oscalObservation{UUID: d.id("check", c.Check), Title: "Check: " + c.Check,
			Description: fmt.Sprintf("%d looked at: %s.", c.Count, c.What), Methods: []string{"TEST"}, Types: []string{"control-objective"}, Collected: d.at})
	}
	about := map[string][]oscalRelated{}
	bad := map[string][]string{}
	notices := 0
	for i, f := range m.audit.Findings {
		if f.Severity == Notice {
			if notices++; notices > maxNotices {
				break // they come last
			}
		}
		o := oscalObservation{UUID: d.id("finding", fmt.Sprint(i)), Title: fmt.Sprintf("%s: %s", f.Severity, f.Check), Description: f.String(),
			Methods: []string{"TEST"}, Types: []string{"finding"}, Collected: d.at}
		if f.Entry >= 0 {
			o.Evidence = []oscalEvidence{d.evidenceOf(m, f)}
		}
		r.Observations = append(r.Observations, o)
		if f.Severity == Notice {
			continue
		}
		for _, c := range f.Controls {
			about[c] = append(about[c], oscalRelated{o.UUID})
			bad[c] = append(bad[c], f.String())
		}
	}
	for _, c := range mapping().Controls {
		if len(bad[c.Name()]) == 0 {
			continue
		}
		r.Findings = append(r.Findings, oscalFinding{UUID: d.id("control", c.Name()), Title: c.Name() + ": " + c.Title,
			Description: strings.Join(bad[c.Name()], "\n\n"), Related: about[c.Name()],
			Target: oscalTarget{Type: "statement-id", ID: c.oscalID() + "_smt", Status: oscalStatus{State: "not-satisfied", Reason: "fail"}}})
	}
	return oscalResults{
		UUID: d.id("results"), Metadata: d.metadata("Evidence of change and configuration control", d.at), ImportAP: oscalLink{"#" + plan}, Results: []oscalResult{r},
		Back: &oscalBack{[]oscalResource{{plan, "What is checked", "Every check of package evidence, on every entry of the ledger; docs/evidence.md of invar lists them. A control without a finding is not said to be met: that is for the assessor."}}},
	}
}

// evidenceOf points to an entry: its place, the hash of its leaf, and its proof where that is here.
func (d *dataset) evidenceOf(m *made, f Finding) oscalEvidence {
	at := fmt.Sprintf("proofs/%06d.tlog-proof", f.Entry)
	if _, ok := m.files[at]; !ok {
		at = FileEntries
	}
	hash := tlog.RecordHash(d.leaves[f.Entry])
	return oscalEvidence{"../" + at, fmt.Sprintf("entry %d, %s, leaf hash %s", f.Entry, f.ID, hex.EncodeToString(hash[:]))}
}

func (d *dataset) metadata(title string, at time.Time) oscalMetadata {
	return oscalMetadata{Title: title, LastModified: at, Version: "1", OSCALVersion: oscalVersion, Remarks: "Written by invar " + d.tool + " from the ledger " + d.log + "."}
}

func (d *dataset) components() oscalComponents {
	c := oscalComponent{UUID: d.unique("component"), Type: "software", Title: "invar",
		Description: "Immutable infrastructure whose changes are entries of a tamper-evident ledger."}
	for _, control := range mapping().Controls {
		n := len(c.Implementations)
		if n == 0 || c.Implementations[n-1].Source != sources[control.Framework] {
			c.Implementations = append(c.Implementations, oscalImplementation{UUID: d.unique("framework", control.Framework), Source: sources[control.Framework],
				Description: control.Framework + ", in words of our own; to be checked by a compliance reader."})
			n++
		}
		i := &c.Implementations[n-1]
		i.Requirements = append(i.Requirements, oscalRequirement{UUID: d.unique("control", control.Name()), ID: control.oscalID(), Description: control.Answer})
	}
	return oscalComponents{UUID: d.unique("components"), Metadata: d.metadata("Controls that invar answers", d.at), Components: []oscalComponent{c}}
}

func ofEnv(s Scope) string {
	if s.Env == "" {
		return ""
	}
	return " of environment " + string(s.Env)
}
