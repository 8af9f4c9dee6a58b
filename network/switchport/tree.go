package switchport

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	gpb "github.com/openconfig/gnmi/proto/gnmi"
)

// errBadAnswer is wrapped by every error about what a switch answered.
var errBadAnswer = errors.New("switch answered something that cannot be understood")

const maxDepth = 64 // of a path; OpenConfig's deepest are about 20

// bare cuts a YANG module prefix ("openconfig-vlan:access-vlan"), which some switches send and others do not.
func bare(name string) string {
	if _, after, ok := strings.Cut(name, ":"); ok {
		return after
	}
	return name
}

// typedValue turns a gNMI value into what encoding/json would give with UseNumber.
func typedValue(v *gpb.TypedValue) (any, error) {
	switch x := v.GetValue().(type) {
	case *gpb.TypedValue_JsonIetfVal:
		return parseJSON(x.JsonIetfVal)
	case *gpb.TypedValue_JsonVal:
		return parseJSON(x.JsonVal)
	case *gpb.TypedValue_StringVal:
		return x.StringVal, nil
	case *gpb.TypedValue_AsciiVal:
		return x.AsciiVal, nil
	case *gpb.TypedValue_UintVal:
		return json.Number(fmt.Sprint(x.UintVal)), nil
	case *gpb.TypedValue_IntVal:
		return json.Number(fmt.Sprint(x.IntVal)), nil
	case *gpb.TypedValue_BoolVal:
		return x.BoolVal, nil
	case nil:
		return nil, fmt.Errorf("%w: an update without a value", errBadAnswer)
	default:
		return nil, fmt.Errorf("%w: a value of type %T", errBadAnswer, x)
	}
}

func parseJSON(b []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("%w: bad JSON: %w", errBadAnswer, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: bad JSON: something follows the value", errBadAnswer)
	}
	return unprefix(v)
}

// unprefix cuts module prefixes from member names all the way down; two members that become one are an error.
func unprefix(v any) (any, error) {
	switch x := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(x))
		for k, member := range x {
			name := bare(k)
			if _, ok := out[name]; ok {
				return nil, fmt.Errorf("%w: member %q stands there twice", errBadAnswer, name)
			}
			clean, err := unprefix(member)
			if err != nil {
				return nil, err
			}
			out[name] = clean
		}
		return out, nil
	case []any:
		for i, item := range x {
			clean, err := unprefix(item)
			if err != nil {
				return nil, err
			}
			x[i] = clean
		}
		return x, nil
	default:
		return v, nil
	}
}

// container gathers the members of one container. Switches answer with the container itself, with an ancestor that
// holds it, or with one update for each leaf.
func container(answer []*gpb.Notification, name string) (map[string]any, error) {
	out := map[string]any{}
	err := eachUpdate(answer, func(elems []*gpb.PathElem, v any) error {
		at := -1
		for i, e := range elems {
			if bare(e.GetName()) == name {
				at = i
			}
		}
		if at >= 0 {
			return merge(out, nest(elems[at+1:], v))
		}
		members, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		if inner, ok := find(members, name, maxDepth); ok {
			return merge(out, inner)
		}
		return nil
	})
	return out, err
}

// eachUpdate calls f with the full path and decoded value of every update.
func eachUpdate(answer []*gpb.Notification, f func([]*gpb.PathElem, any) error) error {
	for _, n := range answer {
		for _, u := range n.GetUpdate() {
			v, err := typedValue(u.GetVal())
			if err != nil {
				return err
			}
			elems := append(append([]*gpb.PathElem(nil), n.GetPrefix().GetElem()...), u.GetPath().GetElem()...)
			if len(elems) > maxDepth {
				return fmt.Errorf("%w: a path of %d elements", errBadAnswer, len(elems))
			}
			if err := f(elems, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// nest wraps a value in the containers that the path names.
func nest(elems []*gpb.PathElem, v any) any {
	for i := len(elems) - 1; i >= 0; i-- {
		v = map[string]any{bare(elems[i].GetName()): v}
	}
	return v
}

// merge adds members to a tree; a leaf that is there already must not change its kind.
func merge(into map[string]any, v any) error {
	members, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("%w: %.40q where a container was expected", errBadAnswer, fmt.Sprint(v))
	}
	for k, m := range members {
		old, ok := into[k].(map[string]any)
		if !ok {
			into[k] = m
			continue
		}
		if err := merge(old, m); err != nil {
			return err
		}
	}
	return nil
}

// find looks for a container or list of that name below members, through containers only.
func find(members map[string]any, name string, depth int) (any, bool) {
	if depth == 0 {
		return nil, false
	}
	if v, ok := members[name]; ok {
		return v, true
	}
	for _, m := range members {
		if inner, ok := m.(map[string]any); ok {
			if v, ok := find(inner, name, depth-1); ok {
				return v, true
			}
		}
	}
	return nil, false
}
