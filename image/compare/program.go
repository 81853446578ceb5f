package compare

import (
	"debug/buildinfo"
	"debug/elf"
	"io"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
)

// programs says how two programs differ, as far as they tell: in which sections, and for programs of the go
// command which compiler, modules and settings they were built with. What are no programs gives nothing.
func programs(a, b io.ReaderAt) []Difference {
	var out []Difference
	if names := sections(a, b); len(names) > 0 {
		out = append(out, Difference{What: "sections that differ: " + strings.Join(names, " "), Offset: -1})
	}
	if idA, idB := buildID(a), buildID(b); idA != idB {
		out = append(out, Difference{What: "Go build ID", Recorded: idA, Made: idB, Offset: -1})
	}
	infoA, errA := buildinfo.Read(a)
	infoB, errB := buildinfo.Read(b)
	if errA != nil || errB != nil {
		return out
	}
	factsA, factsB := facts(infoA), facts(infoB)
	all := maps.Clone(factsA)
	maps.Copy(all, factsB)
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if factsA[k] != factsB[k] {
			out = append(out, Difference{What: k, Recorded: factsA[k], Made: factsB[k], Offset: -1})
		}
	}
	return out
}

// facts is what a program of the go command says of how it was built.
func facts(i *debug.BuildInfo) map[string]string {
	out := map[string]string{"Go version": i.GoVersion, "Go package": i.Path, "Go module " + i.Main.Path: version(&i.Main)}
	for _, m := range i.Deps {
		out["Go module "+m.Path] = version(m)
	}
	for _, s := range i.Settings {
		out["Go build setting "+s.Key] = s.Value
	}
	return out
}

func version(m *debug.Module) string {
	text := m.Version
	if m.Sum != "" {
		text += " " + m.Sum
	}
	if m.Replace != nil {
		text += " => " + m.Replace.Path + " " + version(m.Replace)
	}
	return text
}

// sections names the sections of two ELF files that are not the same.
func sections(a, b io.ReaderAt) []string {
	elfA, errA := elf.NewFile(a)
	elfB, errB := elf.NewFile(b)
	if errA != nil || errB != nil {
		return nil
	}
	var names []string
	for _, s := range elfA.Sections {
		if other := elfB.Section(s.Name); other == nil || !sameSection(s, other) {
			names = append(names, s.Name)
		}
	}
	for _, s := range elfB.Sections {
		if elfA.Section(s.Name) == nil {
			names = append(names, s.Name)
		}
	}
	return names
}

func sameSection(a, b *elf.Section) bool {
	if a.Type == elf.SHT_NOBITS || a.Size != b.Size || a.Type != b.Type {
		return a.Size == b.Size && a.Type == b.Type
	}
	at, err := firstOther(a.Open(), b.Open())
	return err == nil && at < 0
}

// buildID is what the go command's linker left of its build ID, "" where there is none: images of kind go have none.
func buildID(r io.ReaderAt) string {
	f, err := elf.NewFile(r)
	if err != nil {
		return ""
	}
	s := f.Section(".note.go.buildid")
	if s == nil || s.Size > 1<<12 {
		return ""
	}
	raw, err := s.Data()
	if err != nil || len(raw) < 16 {
		return ""
	}
	return string(raw[16:])
}
