package parse_test

import (
	"fmt"
	"testing/fstest"

	"github.com/invarhq/invar/spec/parse"
)

// All problems of a directory are reported in one run, each with its place, its cause and a way out.
func ExampleModule_Validate() {
	m, _ := parse.Load(fstest.MapFS{"invar.hcl": {Data: []byte(`app = "shop"
image "web" {
  go { package = "./cmd/web" }
}
component "web" {
  image    = image.wbe
  replicas = "two"
}
environment "staging" {}
`)}})
	fmt.Print(m.Validate())
	// Output:
	// invar.hcl:6: Unknown image
	//   6 |   image    = image.wbe
	//     |                   ^^^^
	//   There is no image "wbe".
	//   Did you mean "web"?
	//
	// invar.hcl:7: Wrong type
	//   7 |   replicas = "two"
	//     |              ^^^^^
	//   This is a string: a number is required.
}
