package layout

import (
	"bytes"
	_ "embed"
)

//go:embed layout.schema.json
var schema []byte

// Schema is the JSON Schema (draft 2020-12) of a layout. It says what each field may be by itself; how they fit together Parse checks.
func Schema() []byte { return bytes.Clone(schema) }
