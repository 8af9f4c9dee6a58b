package layout

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

func compiledSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("layout.schema.json", document); err != nil {
		t.Fatal(err)
	}
	compiled, err := compiler.Compile("layout.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

// againstSchema validates a YAML document.
func againstSchema(t *testing.T, schema *jsonschema.Schema, text []byte) error {
	t.Helper()
	var value any
	if err := yaml.Unmarshal(text, &value); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return schema.Validate(document)
}

func TestThePublishedSchemaIsThisOne(t *testing.T) {
	published, err := os.ReadFile("../../docs/schema/layout.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(published, Schema()) {
		t.Error("docs/schema/layout.schema.json differs from partition/layout/layout.schema.json; copy it")
	}
}

func TestSchemaTakesWhatParseTakes(t *testing.T) {
	schema := compiledSchema(t)
	documents := map[string][]byte{"raid1": []byte(raid1), "everything": []byte(everything)}
	files, err := filepath.Glob("../../docs/layouts/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, "testdata/scaleway-default.yaml", "testdata/equinix-raid1.yaml") {
		if documents[file], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	fallback, err := Default().YAML()
	if err != nil {
		t.Fatal(err)
	}
	documents["Default"] = fallback
	for name, text := range documents {
		if err := againstSchema(t, schema, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// schemaNode is what the comparison with the Go types reads of a schema.
type schemaNode struct {
	Ref        string                `json:"$ref"`
	Type       string                `json:"type"`
	Pattern    string                `json:"pattern"`
	Enum       []any                 `json:"enum"`
	Properties map[string]schemaNode `json:"properties"`
	Required   []string              `json:"required"`
	Items      *schemaNode           `json:"items"`
	Defs       map[string]schemaNode `json:"$defs"`
	OneOf      []schemaNode          `json:"oneOf"`
	AnyOf      []schemaNode          `json:"anyOf"`
}

// TestSchemaMatchesTheGoTypes walks both: each field is in the other, with its kind, and is required where it cannot be left out.
func TestSchemaMatchesTheGoTypes(t *testing.T) {
	var root schemaNode
	if err := json.Unmarshal(Schema(), &root); err != nil {
		t.Fatal(err)
	}
	var walk func(path string, typ reflect.Type, node schemaNode)
	walk = func(path string, typ reflect.Type, node schemaNode) {
		if name, ok := strings.CutPrefix(node.Ref, "#/$defs/"); ok {
			node = root.Defs[name]
		}
		if typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if typ == reflect.TypeFor[Size]() {
			if len(node.OneOf) != 2 || node.OneOf[1].Pattern != sizePattern {
				t.Errorf("%s: the schema has no size there", path)
			}
			return
		}
		switch typ.Kind() {
		case reflect.Struct:
			var names, wanted, inSchema []string
			for i := range typ.NumField() {
				name, optional := fieldName(typ.Field(i)), strings.Contains(typ.Field(i).Tag.Get("json"), "omitempty")
				if name == "" {
					continue
				}
				names = append(names, name)
				if !optional {
					wanted = append(wanted, name)
				}
				walk(path+"."+name, typ.Field(i).Type, node.Properties[name])
			}
			for name := range node.Properties {
				inSchema = append(inSchema, name)
			}
			slices.Sort(names)
			slices.Sort(inSchema)
			slices.Sort(wanted)
			slices.Sort(node.Required)
			if diff := cmp.Diff(names, inSchema); diff != "" {
				t.Errorf("%s: fields (-Go +schema)\n%s", path, diff)
			}
			if diff := cmp.Diff(wanted, slices.Clip(append([]string(nil), node.Required...))); diff != "" {
				t.Errorf("%s: required (-Go +schema)\n%s", path, diff)
			}
		case reflect.Slice:
			if node.Type != "array" || node.Items == nil {
				t.Errorf("%s: the schema has no list there", path)
				return
			}
			walk(path+"[]", typ.Elem(), *node.Items)
		default:
			want := map[reflect.Kind]string{reflect.String: "string", reflect.Int: "integer", reflect.Bool: "boolean"}[typ.Kind()]
			if node.Type != want && len(node.Enum)+len(node.AnyOf) == 0 && path != ".format" {
				t.Errorf("%s: the schema says %q, the Go type %s", path, node.Type, want)
			}
		}
	}
	walk("", reflect.TypeFor[Layout](), root)
}

// TestSchemaHasTheSamePatterns keeps names right for one right for the other.
func TestSchemaHasTheSamePatterns(t *testing.T) {
	text := string(Schema())
	for name, pattern := range map[string]string{"disk": diskNamePattern, "array": arrayNamePattern, "luks": luksNamePattern, "lvm": lvmNamePattern, "label": labelPattern, "secret": secretPattern,
		"mount": mountPattern, "option": optionPattern, "subvolume": subvolumePattern, "reference": refPattern, "size": sizePattern, "identity": identityExpression.String(), "device": deviceExpression.String()} {
		quoted, err := json.Marshal(pattern)
		if err != nil {
			t.Fatal(err)
		}
		var plain bytes.Buffer
		encoder := json.NewEncoder(&plain)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(pattern); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text, strings.TrimSpace(plain.String())) {
			t.Errorf("the schema lacks the pattern of %s: %s", name, quoted)
		}
	}
	for _, name := range append(typeNames(), attributeNames()...) {
		if !strings.Contains(text, `"`+name+`"`) {
			t.Errorf("the schema lacks %s", name)
		}
	}
}
