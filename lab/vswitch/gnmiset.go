package vswitch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	gpb "github.com/openconfig/gnmi/proto/gnmi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Set applies all of a request or nothing of it, deletes before replaces before updates (gNMI specification section 3.4).
func (g *gnmiServer) Set(_ context.Context, r *gpb.SetRequest) (*gpb.SetResponse, error) {
	if len(r.GetUnionReplace()) > 0 {
		return nil, status.Error(codes.Unimplemented, "union_replace is not supported")
	}
	g.sw.mu.Lock()
	defer g.sw.mu.Unlock()
	draft := map[*port]VLAN{}
	res := &gpb.SetResponse{Prefix: r.GetPrefix(), Timestamp: g.sw.now().UnixNano()}
	done := func(p *gpb.Path, op gpb.UpdateResult_Operation) {
		res.Response = append(res.Response, &gpb.UpdateResult{Path: p, Op: op})
	}
	for _, p := range r.GetDelete() {
		if err := g.edit(draft, join(r.GetPrefix(), p), nil, gpb.UpdateResult_DELETE); err != nil {
			return nil, err
		}
		done(p, gpb.UpdateResult_DELETE)
	}
	for _, u := range r.GetReplace() {
		if err := g.edit(draft, join(r.GetPrefix(), u.GetPath()), u.GetVal(), gpb.UpdateResult_REPLACE); err != nil {
			return nil, err
		}
		done(u.GetPath(), gpb.UpdateResult_REPLACE)
	}
	for _, u := range r.GetUpdate() {
		if err := g.edit(draft, join(r.GetPrefix(), u.GetPath()), u.GetVal(), gpb.UpdateResult_UPDATE); err != nil {
			return nil, err
		}
		done(u.GetPath(), gpb.UpdateResult_UPDATE)
	}
	for p, v := range draft {
		if err := v.validate(); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "interface %s: %v", p.name, err)
		}
	}
	for p, v := range draft {
		g.sw.setVLAN(p, v)
	}
	return res, nil
}

// edit changes the draft of one port's VLAN configuration; the path is .../switched-vlan/config or a leaf of it.
func (g *gnmiServer) edit(draft map[*port]VLAN, path *gpb.Path, val *gpb.TypedValue, op gpb.UpdateResult_Operation) error {
	at := pathString(path)
	e := path.GetElem()
	want := []string{"interfaces", "interface", "ethernet", "switched-vlan", "config"}
	if len(e) < len(want) || len(e) > len(want)+1 {
		return status.Errorf(codes.InvalidArgument, "path %s cannot be set: want /interfaces/interface[name=…]/ethernet/switched-vlan/config or a leaf of it", at)
	}
	for i, w := range want {
		if bare(e[i].GetName()) != w || (i != 1 && len(e[i].GetKey()) > 0) {
			return status.Errorf(codes.InvalidArgument, "path %s cannot be set: %.64q where %s was expected", at, e[i].GetName(), w)
		}
	}
	name, ok := e[1].GetKey()["name"]
	if !ok || len(e[1].GetKey()) != 1 {
		return status.Errorf(codes.InvalidArgument, "path %s: want interface[name=…]", at)
	}
	p, ok := g.sw.byName[name]
	if !ok {
		return status.Errorf(codes.NotFound, "path %s: there is no interface %.64s", at, name)
	}
	v, ok := draft[p]
	if !ok {
		v = p.vlan
		v.Allowed = slices.Clone(v.Allowed)
	}
	fields := map[string]json.RawMessage{}
	switch {
	case op == gpb.UpdateResult_DELETE && len(e) == len(want):
		v = Access(defaultVLAN)
	case op == gpb.UpdateResult_DELETE:
		if err := v.deleteField(bare(e[5].GetName())); err != nil {
			return status.Errorf(codes.InvalidArgument, "path %s: %v", at, err)
		}
	case len(e) > len(want):
		raw, err := leafJSON(val)
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "path %s: %v", at, err)
		}
		fields[bare(e[5].GetName())] = raw
	default:
		if op == gpb.UpdateResult_REPLACE {
			v = Access(defaultVLAN)
		}
		raw, ok := val.GetValue().(*gpb.TypedValue_JsonIetfVal)
		if !ok {
			return status.Errorf(codes.InvalidArgument, "path %s: want a JSON_IETF value", at)
		}
		if err := strictJSON(raw.JsonIetfVal, &fields); err != nil {
			return status.Errorf(codes.InvalidArgument, "path %s: %v", at, err)
		}
	}
	seen := map[string]bool{}
	for k, raw := range fields {
		field := bare(k)
		if seen[field] {
			return status.Errorf(codes.InvalidArgument, "path %s: %s stands there twice", at, field)
		}
		seen[field] = true
		if err := v.setField(field, raw); err != nil {
			return status.Errorf(codes.InvalidArgument, "path %s: %v", at, err)
		}
	}
	draft[p] = v
	return nil
}

func (v *VLAN) setField(field string, raw json.RawMessage) error {
	var err error
	switch field {
	case "interface-mode":
		var mode string
		err = strictJSON(raw, &mode)
		v.Mode = Mode(mode)
	case "access-vlan":
		err = strictJSON(raw, &v.Access)
	case "native-vlan":
		err = strictJSON(raw, &v.Native)
	case "trunk-vlans":
		var items []json.RawMessage
		if err = strictJSON(raw, &items); err == nil {
			v.Allowed, err = trunkVLANs(items)
		}
	default:
		return fmt.Errorf("unknown leaf %.64q: want interface-mode, access-vlan, native-vlan or trunk-vlans", field)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	return nil
}

func (v *VLAN) deleteField(field string) error {
	switch field {
	case "interface-mode":
		v.Mode = ModeAccess
	case "access-vlan":
		v.Access = defaultVLAN
	case "native-vlan":
		v.Native = 0
	case "trunk-vlans":
		v.Allowed = nil
	default:
		return fmt.Errorf("unknown leaf %.64q", field)
	}
	return nil
}

// trunkVLANs reads openconfig-vlan's union of a VLAN and a range "100..110".
func trunkVLANs(items []json.RawMessage) ([]uint16, error) {
	var out []uint16
	for _, raw := range items {
		var n uint16
		if strictJSON(raw, &n) == nil {
			out = append(out, n)
			continue
		}
		var s string
		if err := strictJSON(raw, &s); err != nil {
			return nil, err
		}
		a, b, ok := strings.Cut(s, "..")
		low, errLow := strconv.ParseUint(a, 10, 12)
		high, errHigh := strconv.ParseUint(b, 10, 12)
		if !ok || errLow != nil || errHigh != nil || low > high {
			return nil, fmt.Errorf("%.20q: want a VLAN or a range like \"100..110\"", s)
		}
		for vid := low; vid <= high; vid++ {
			out = append(out, uint16(vid))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func leafJSON(v *gpb.TypedValue) (json.RawMessage, error) {
	switch x := v.GetValue().(type) {
	case *gpb.TypedValue_JsonIetfVal:
		return x.JsonIetfVal, nil
	case *gpb.TypedValue_UintVal:
		return json.Marshal(x.UintVal)
	case *gpb.TypedValue_StringVal:
		return json.Marshal(x.StringVal)
	default:
		return nil, fmt.Errorf("value of type %T: want JSON_IETF, an unsigned number or a string", x)
	}
}

func strictJSON(b []byte, into any) error {
	if bytes.Equal(bytes.TrimSpace(b), []byte("null")) {
		return fmt.Errorf("null is no value")
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("bad JSON: %w", err)
	}
	return nil
}
