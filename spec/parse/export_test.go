package parse

import "slices"

// SchemaNames returns "section.name" for everything that an app's file may hold: attributes and inner blocks, by the
// section of docs/configuration.md that describes them. Inner blocks are described as "component.file".
func SchemaNames() []string { return namesOf(fileBlock) }

// PlatformNames is SchemaNames of the platform's file, and docs/platform.md. What it shares with apps is described there.
func PlatformNames() []string {
	own := *platformBlock
	own.blocks = slices.DeleteFunc(slices.Clone(own.blocks), func(b *block) bool { return b == variableBlock || b == localsBlock })
	return namesOf(&own)
}

func namesOf(file *block) []string {
	var out []string
	var walk func(section string, b *block)
	walk = func(section string, b *block) {
		for _, a := range b.attrs {
			out = append(out, section+"."+a.name)
		}
		for _, k := range b.blocks {
			out = append(out, section+"."+k.name)
			walk(sectionOf(section, k.name), k)
		}
	}
	walk("File", file)
	return out
}

func sectionOf(section, name string) string {
	if section == "File" {
		return name
	}
	return section + " " + name
}

// FunctionNames returns the names of all functions.
func FunctionNames() []string { return functionNames() }
