package layout

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// nodeDecoder is a type that reads itself.
type nodeDecoder interface{ decode(n *yaml.Node) error }

// document parses one YAML or JSON document. Aliases are refused: they let a small document stand for a huge one.
func document(data []byte) (*yaml.Node, error) {
	if len(data) > MaxLayoutSize {
		return nil, Problems{{Reason: ReasonTooMany, Message: fmt.Sprintf("the document has %d bytes; at most %d are read", len(data), MaxLayoutSize)}}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, Problems{{Reason: ReasonSyntax, Message: "the document is empty; it begins with format: " + Format}}
	} else if err != nil {
		return nil, Problems{{Reason: ReasonSyntax, Message: "not YAML or JSON: " + strings.TrimPrefix(err.Error(), "yaml: ")}}
	}
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, Problems{{Reason: ReasonSyntax, Message: "there is more than one document; give one"}}
	}
	root := &doc
	if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
		root = doc.Content[0]
	}
	if root.Kind != yaml.MappingNode {
		return nil, Problems{{Reason: ReasonSyntax, Message: "want fields and values, not " + kindText(root), Line: root.Line}}
	}
	return root, nil
}

// child is the value of a mapping's key, nil when there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// decoder fills Go values from a document, by their json tags, and notes everything that does not match.
type decoder struct {
	problems Problems
	// nulls says that null stands for a field that was left out.
	nulls bool
}

func (d *decoder) fail(n *yaml.Node, path, reason, format string, args ...any) {
	d.problems.add(path, reason, format, args...)
	if last := len(d.problems) - 1; d.problems[last].Path == path {
		d.problems[last].Line = n.Line
	}
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.fail(n, path, ReasonUnsupported, "anchors and aliases are not read; write it out")
		return
	}
	if n.ShortTag() == "!!null" {
		if !d.nulls {
			d.fail(n, path, ReasonInvalid, "has no value; give one or leave the field out")
		}
		return
	}
	if own, ok := v.Addr().Interface().(nodeDecoder); ok {
		if err := own.decode(n); err != nil {
			d.fail(n, path, ReasonInvalid, "%v", err)
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), path)
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Slice:
		d.list(n, v, path)
	default:
		d.scalar(n, v, path)
	}
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, ReasonSyntax, "want fields and values, not %s", kindText(n))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, field := n.Content[i], at(path, clip(n.Content[i].Value))
		index := fieldIndex(v.Type(), key.Value)
		switch {
		case key.Kind != yaml.ScalarNode:
			d.fail(key, path, ReasonSyntax, "a field's name is a text, not %s", kindText(key))
		case index < 0:
			d.fail(key, field, ReasonUnknownField, "there is no such field here; there are %s", strings.Join(fieldNames(v.Type()), ", "))
		case seen[key.Value]:
			d.fail(key, field, ReasonDuplicate, "the field is there twice")
		default:
			d.value(n.Content[i+1], v.Field(index), field)
		}
		seen[key.Value] = true
	}
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, path, ReasonSyntax, "want a list, not %s", kindText(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		d.value(item, v.Index(i), at(path, i))
	}
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	tag := n.ShortTag()
	switch v.Kind() {
	case reflect.String:
		if n.Kind != yaml.ScalarNode {
			d.fail(n, path, ReasonSyntax, "want a text, not %s", kindText(n))
		} else if tag != "!!str" {
			d.fail(n, path, ReasonSyntax, "want a text, not %s; write it in quotes: %q", kindText(n), clip(n.Value))
		} else {
			v.SetString(n.Value)
		}
	case reflect.Int, reflect.Int64:
		number, err := strconv.ParseInt(n.Value, 10, 64)
		if tag != "!!int" {
			d.fail(n, path, ReasonSyntax, "want a whole number, not %s", kindText(n))
		} else if err != nil || v.OverflowInt(number) {
			d.fail(n, path, ReasonInvalid, "%s is no number that can be read here", clip(n.Value))
		} else {
			v.SetInt(number)
		}
	case reflect.Bool:
		if tag != "!!bool" || (n.Value != "true" && n.Value != "false") {
			d.fail(n, path, ReasonSyntax, "want true or false, not %s", kindText(n))
			return
		}
		v.SetBool(n.Value == "true")
	default:
		panic("layout: a field of kind " + v.Kind().String()) // a field's type that this file does not know is a mistake in this package
	}
}

func fieldIndex(t reflect.Type, name string) int {
	for i := range t.NumField() {
		if fieldName(t.Field(i)) == name && name != "" {
			return i
		}
	}
	return -1
}

func fieldNames(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		if name := fieldName(t.Field(i)); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// fieldName is a field's name in documents, "" when it is not read.
func fieldName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	if name == "-" {
		return ""
	}
	return name
}

func kindText(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "fields and values"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.ShortTag() {
	case "!!str":
		return "a text"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "a truth value"
	case "!!null":
		return "nothing"
	}
	return n.ShortTag()
}
