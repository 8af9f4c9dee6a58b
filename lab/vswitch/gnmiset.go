package vswitch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	gpb "github.com/openconfig/gnmi/proto/gnmi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Set applies all of a request or nothing of it, deletes before replaces before updates (gNMI specification section 3.4).
func (g *gnmiServer) Set(ctx context.Context, r *gpb.SetRequest) (*gpb.SetResponse, error) {
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
		// What does not exist is deleted already (gNMI specification section 3.4.6).
		err := g.edit(draft, r.GetPrefix(), p, nil, gpb.UpdateResult_DELETE)
		if err != nil && status.Code(err) != codes.NotFound {
			return nil, err
		}
		done(p, gpb.UpdateResult_DELETE)
	}
	for _, u := range r.GetReplace() {
		if err := g.edit(draft, r.GetPrefix(), u.GetPath(), u.GetVal(), gpb.UpdateResult_REPLACE); err != nil {
			return nil, err
		}
		done(u.GetPath(), gpb.UpdateResult_REPLACE)
	}
	for _, u := range r.GetUpdate() {
		if err := g.edit(draft, r.GetPrefix(), u.GetPath(), u.GetVal(), gpb.UpdateResult_UPDATE); err != nil {
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
		before := p.vlan
		g.sw.setVLAN(p, v)
		if g.sw.onSet != nil {
			var from net.Addr
			if caller, ok := peer.FromContext(ctx); ok {
				from = caller.Addr
			}
			g.sw.onSet(from, p.name, before, v)
		}
	}
	return res, nil
}

// edit changes the draft of one port's VLAN configuration; the path is .../switched-vlan/config or a leaf of it.
func (g *gnmiServer) edit(draft map[*port]VLAN, prefix, p *gpb.Path, val *gpb.TypedValue, op gpb.UpdateResult_Operation) error {
	path, err := join(prefix, p)
	if err != nil {
		return err
	}
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
	port, ok := g.sw.byName[name]
	if !ok {
		return status.Errorf(codes.NotFound, "path %s: there is no interface %.64s", at, name)
	}
	v, ok := draft[port]
	if !ok {
		v = port.vlan
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
		if err := v.setField(field, raw, op); err != nil {
			return status.Errorf(codes.InvalidArgument, "path %s: %v", at, err)
		}
	}
	draft[port] = v
	return nil
}

func (v *VLAN) setField(field string, raw json.RawMessage, op gpb.UpdateResult_Operation) error {
	var err error
	switch field {
	case "interface-mode":
		var mode string
		err = strictJSON(raw, &mode)
		v.Mode = Mode(mode)
	case "access-vlan":
		v.Access, err = vlanID(raw)
	case "native-vlan":
		v.Native, err = vlanID(raw)
	case "trunk-vlans":
		var vlans []uint16
		if vlans, err = trunkVLANs(raw); err != nil {
			break
		}
		if op == gpb.UpdateResult_UPDATE { // adds to a collection (gNMI specification section 3.4.4)
			vlans = append(vlans, v.Allowed...)
			slices.Sort(vlans)
			vlans = slices.Compact(vlans)
		}
		v.Allowed = vlans
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

func vlanID(raw json.RawMessage) (uint16, error) {
	var n uint16
	if err := strictJSON(raw, &n); err != nil {
		return 0, err
	}
	if n == 0 || n > maxVLAN {
		return 0, fmt.Errorf("%d: want 1 to %d", n, maxVLAN)
	}
	return n, nil
}

// trunkVLANs reads openconfig-vlan's union of a VLAN and a range "100..110".
func trunkVLANs(raw json.RawMessage) ([]uint16, error) {
	var items []json.RawMessage
	if err := strictJSON(raw, &items); err != nil {
		return nil, err
	}
	if len(items) > maxVLAN {
		return nil, fmt.Errorf("%d items: want at most %d", len(items), maxVLAN)
	}
	var in [maxVLAN + 1]bool
	for _, item := range items {
		low, high, err := vlanRange(item)
		if err != nil {
			return nil, err
		}
		for vid := low; vid <= high; vid++ {
			in[vid] = true
		}
	}
	var out []uint16
	for vid, ok := range in {
		if ok {
			out = append(out, uint16(vid))
		}
	}
	return out, nil
}

func vlanRange(raw json.RawMessage) (low, high uint64, err error) {
	var s string
	if strictJSON(raw, &s) != nil {
		n, err := vlanID(raw)
		return uint64(n), uint64(n), err
	}
	a, b, ok := strings.Cut(s, "..")
	low, errLow := strconv.ParseUint(a, 10, 12)
	high, errHigh := strconv.ParseUint(b, 10, 12)
	if !ok || errLow != nil || errHigh != nil || low == 0 || low > high || high > maxVLAN {
		return 0, 0, fmt.Errorf("%.20q: want a VLAN or a range like \"100..110\", of 1 to %d", s, maxVLAN)
	}
	return low, high, nil
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
