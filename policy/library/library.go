// Package library has the starter policy: Rego rules to begin from, with their tests and settings.
//
// Each rule is a package of its own below data.invar, annotated with the ids of the controls that it serves. What differs
// from one organisation to the next is in data.json.
package library

import (
	"embed"
	"io/fs"
)

//go:embed *.rego data.json
var files embed.FS

// FS holds the files, as "invar policy init" writes them.
func FS() fs.FS { return files }
