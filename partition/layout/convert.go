package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Where a layout was converted from.
const (
	OriginScaleway = "scaleway"
	OriginEquinix  = "equinix"
)

// origin tells formats apart by their keys: ours has a format.
func origin(root *yaml.Node) string {
	first := func(key string) *yaml.Node {
		if list := child(root, key); list != nil && list.Kind == yaml.SequenceNode && len(list.Content) > 0 {
			return list.Content[0]
		}
		return nil
	}
	disk := first("disks")
	switch {
	case child(root, "format") != nil:
		return ""
	case child(root, "partitioning_schema") != nil:
		return OriginScaleway
	case child(root, "storage") != nil, child(root, "raid") != nil, child(first("filesystems"), "mount") != nil,
		child(disk, "wipeTable") != nil, child(disk, "wipe_table") != nil:
		return OriginEquinix
	case child(disk, "device") != nil:
		return OriginScaleway
	}
	return ""
}

// sourcePath is a path of a converted layout in the document that it was converted from: lists keep their places, names differ.
func (l *Layout) sourcePath(path string) string {
	path = strings.ReplaceAll(path, ".select.device", ".device")
	switch l.Origin {
	case OriginScaleway:
		return strings.NewReplacer(".members", ".devices", ".mount_point", ".mountpoint").Replace(path)
	case OriginEquinix:
		if entry, field, ok := strings.Cut(path, "]."); ok && strings.HasPrefix(path, "filesystems[") {
			path = entry + "].mount." + field
		}
		path = strings.NewReplacer(".members", ".devices", ".mount_point", ".point", ".make_options", ".create.options").Replace(path)
		return strings.Replace(path, "raids[", "raid[", 1)
	}
	return path
}

// inSource gives an error's problems the paths of the document that the layout came from.
func (l *Layout) inSource(err error) error {
	var problems Problems
	if l.Origin == "" || !errors.As(err, &problems) {
		return err
	}
	for i := range problems {
		problems[i].Path = l.sourcePath(problems[i].Path)
	}
	return problems
}

// convert reads a document of another format into doc and makes a layout of it with build. A wrapper is a key that the document may stand under.
func convert(root *yaml.Node, wrapper string, doc any, build func(p *Problems) *Layout) (*Layout, error) {
	prefix := ""
	d := decoder{nulls: true}
	if inner := child(root, wrapper); inner != nil {
		if len(root.Content) > 2 {
			return nil, Problems{{Reason: ReasonUnknownField, Message: wrapper + " stands beside other fields; give it alone", Line: root.Line}}
		}
		root, prefix = inner, wrapper
	}
	d.value(root, reflect.ValueOf(doc).Elem(), "")
	var l *Layout
	err := d.problems.err()
	if err == nil {
		l = build(&d.problems)
		err = d.problems.err()
	}
	if err == nil {
		_, err = l.check()
		err = l.inSource(err)
	}
	if err == nil {
		return l, nil
	}
	err = locate(err, root)
	var problems Problems
	if errors.As(err, &problems) {
		for i := range problems {
			problems[i].Path = at(prefix, problems[i].Path)
		}
	}
	return nil, err
}

// devices finds what the device names of another format stand for.
type devices struct{ l *Layout }

var (
	partitionExpression = regexp.MustCompile(`^(/dev/nvme[0-9]{1,3}n1)p([1-9][0-9]{0,2})$|^(/dev/(?:sd[a-z]{1,2}|vd[a-z]))([1-9][0-9]{0,2})$`)
	arrayExpression     = regexp.MustCompile(`^/dev/md/?(.+)$`)
)

// ref is the reference for a device name such as /dev/sda1 or /dev/md0.
func (d devices) ref(name string) (string, error) {
	if m := partitionExpression.FindStringSubmatch(name); m != nil {
		disk, number := m[1]+m[3], m[2]+m[4]
		for _, spec := range d.l.Disks {
			if spec.Select.Device == disk {
				return "part/" + spec.Name + "/" + number, nil
			}
		}
		return "", fmt.Errorf("%q is on no disk of the document", clip(name))
	}
	if arrayExpression.MatchString(name) {
		return "md/" + arrayName(name), nil
	}
	return "", fmt.Errorf("%q: use a partition such as /dev/nvme0n1p1 or /dev/sda1, or an array such as /dev/md0", clip(name))
}

// arrayName is the name of an array for its device. mdadm gives /dev/md0 and /dev/md/0 a meaning of their own, so that they are called array0.
func arrayName(device string) string {
	name := ""
	if m := arrayExpression.FindStringSubmatch(device); m != nil {
		name = m[1]
	}
	if digitsExpression.MatchString(name) {
		return "array" + name
	}
	return name
}

// disk converts a device name to a disk that is chosen by order.
func (d devices) disk(p *Problems, path, device string) (DiskSpec, bool) {
	if !strings.HasPrefix(device, "/dev/") || !deviceExpression.MatchString(device) {
		p.add(path, ReasonInvalid, "%q: use a name such as /dev/nvme0n1, /dev/sda or /dev/vda", clip(device))
		return DiskSpec{}, false
	}
	return DiskSpec{Name: strings.TrimPrefix(device, "/dev/"), Select: Select{Device: device}}, true
}

// ownLabel keeps labels unique on a disk: the second "data" is "data-4" where 4 is its number.
func ownLabel(specs []PartitionSpec, label string, number int) string {
	for _, s := range specs {
		if s.Label == label {
			return label + "-" + strconv.Itoa(number)
		}
	}
	return label
}

// YAML is the layout as its author would write it.
func (l *Layout) YAML() ([]byte, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encode the layout: %w", err)
	}
	var node yaml.Node // of JSON, since it keeps the fields in their order
	if err := yaml.Unmarshal(text, &node); err != nil {
		return nil, fmt.Errorf("encode the layout: %w", err)
	}
	blockStyle(&node)
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(&node); err != nil {
		return nil, fmt.Errorf("encode the layout: %w", err)
	}
	return out.Bytes(), encoder.Close()
}

// blockStyle writes lists and fields on lines of their own, but for the smallest.
func blockStyle(n *yaml.Node) {
	n.Style = 0
	scalars := n.Kind == yaml.SequenceNode
	for _, c := range n.Content {
		blockStyle(c)
		scalars = scalars && c.Kind == yaml.ScalarNode
	}
	if scalars {
		n.Style = yaml.FlowStyle
	}
}
