package release_test

import (
	"fmt"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// Two evaluations of an app differ in one line of a file, so one component is replaced.
func ExampleDiff() {
	before := app()
	after := app()
	after.Components[1].Files = []spec.File{{Path: "/etc/web/config.yaml", Content: []byte("a: 1\nb: 9\nc: 3\n"), Mode: 0o444}, after.Components[1].Files[1]}
	a, err := release.Evaluate(before, digest.Of([]byte("bundle 1")), images(), pins())
	if err != nil {
		fmt.Println(err)
		return
	}
	b, err := release.Evaluate(after, digest.Of([]byte("bundle 2")), images(), pins())
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, c := range release.Diff(a, b).Components {
		fmt.Println(c.Sign(), c.Name)
		for _, cause := range c.Causes {
			fmt.Println("   ", cause)
		}
	}
	// Output:
	// +/- web
	//     file /etc/web/config.yaml: 1 line added, 1 removed
}
