package layout

import (
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Parse reads a layout, YAML or JSON, and checks all of it that can be checked without a machine. Scaleway's partitioning schema and Equinix
// Metal's CPR are told apart by their keys and converted. An error is Problems, each with the path of its field.
func Parse(data []byte) (*Layout, error) {
	root, err := document(data)
	if err != nil {
		return nil, err
	}
	switch origin(root) {
	case OriginScaleway:
		return fromScaleway(root)
	case OriginEquinix:
		return fromEquinix(root)
	}
	return parseNative(root)
}

func parseNative(root *yaml.Node) (*Layout, error) {
	l, d := &Layout{}, decoder{}
	d.value(root, reflect.ValueOf(l).Elem(), "")
	if len(d.problems) > 0 {
		return nil, d.problems
	}
	if _, err := l.check(); err != nil {
		return nil, locate(err, root)
	}
	return l, nil
}

// locate adds lines to problems that were found after the document was read.
func locate(err error, root *yaml.Node) error {
	problems, ok := err.(Problems)
	if !ok {
		return err
	}
	for i := range problems {
		problems[i].Line = lineOf(root, problems[i].Path)
	}
	return problems
}

// lineOf is the line of the field at path, or of the nearest one above it that the document has.
func lineOf(n *yaml.Node, path string) int {
	for path != "" {
		var next *yaml.Node
		if path[0] == '[' {
			digits, after, _ := strings.Cut(path[1:], "]")
			index, err := strconv.Atoi(digits)
			if err == nil && n.Kind == yaml.SequenceNode && index < len(n.Content) {
				next = n.Content[index]
			}
			path = strings.TrimPrefix(after, ".")
		} else {
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			next = child(n, path[:end])
			path = strings.TrimPrefix(path[end:], ".")
		}
		if next == nil {
			break
		}
		n = next
	}
	return n.Line
}
