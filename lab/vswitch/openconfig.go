package vswitch

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	gpb "github.com/openconfig/gnmi/proto/gnmi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// object is a YANG container, list a YANG list; names carry their module's where it differs from the parent's (RFC 7951).
type object = map[string]any

type list []item

type item struct {
	keys   map[string]string
	values object
}

// MarshalJSON writes a list as RFC 7951 section 5.4 does.
func (l list) MarshalJSON() ([]byte, error) {
	out := make([]object, len(l))
	for i, it := range l {
		out[i] = it.values
	}
	return json.Marshal(out)
}

// tree is everything that can be read, at this moment.
func (s *Switch) tree() object {
	now := s.now().UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	var interfaces, entries list
	for _, p := range s.ports {
		interfaces = append(interfaces, item{map[string]string{"name": p.name}, object{
			"name":   p.name,
			"config": object{"name": p.name, "type": "iana-if-type:ethernetCsmacd", "enabled": true},
			"state":  p.state(),
			"openconfig-if-ethernet:ethernet": object{
				"state":                         object{"port-speed": "SPEED_10GB"},
				"openconfig-vlan:switched-vlan": object{"config": p.vlan.openConfig(), "state": p.vlan.openConfig()},
			},
		}})
	}
	for _, l := range s.fdb.list(now) {
		vlan := strconv.Itoa(int(l.VLAN))
		entries = append(entries, item{map[string]string{"mac-address": l.MAC.String(), "vlan": vlan}, object{
			"mac-address": l.MAC.String(), "vlan": l.VLAN,
			"config": object{"mac-address": l.MAC.String(), "vlan": l.VLAN},
			"state": object{
				"mac-address": l.MAC.String(), "vlan": l.VLAN, "entry-type": "DYNAMIC",
				"age": strconv.FormatInt(int64(l.Age/time.Second), 10),
			},
			"interface": object{"interface-ref": object{"state": object{"interface": l.Port}}},
		}})
	}
	return object{
		"openconfig-interfaces:interfaces": object{"interface": interfaces},
		"openconfig-network-instance:network-instances": object{"network-instance": list{{
			map[string]string{"name": "default"},
			object{"name": "default", "fdb": object{"mac-table": object{"entries": object{"entry": entries}}}},
		}}},
	}
}

func (p *port) state() object {
	oper := "DOWN"
	if p.up() {
		oper = "UP"
	}
	c := p.count.read()
	big := func(n uint64) string { return strconv.FormatUint(n, 10) }
	return object{
		"name": p.name, "type": "iana-if-type:ethernetCsmacd", "enabled": true, "ifindex": p.index,
		"admin-status": "UP", "oper-status": oper, "last-change": big(uint64(p.changed.UnixNano())),
		"counters": object{
			"in-pkts": big(c.InFrames), "in-octets": big(c.InOctets), "in-discards": big(c.InDiscards), "in-errors": big(c.InErrors),
			"out-pkts": big(c.OutFrames), "out-octets": big(c.OutOctets), "out-discards": big(c.OutDiscards), "out-errors": "0",
		},
	}
}

func (v VLAN) openConfig() object {
	o := object{"interface-mode": string(v.Mode)}
	if v.Mode == ModeAccess {
		o["access-vlan"] = v.Access
		return o
	}
	if v.Native != 0 {
		o["native-vlan"] = v.Native
	}
	if len(v.Allowed) > 0 {
		o["trunk-vlans"] = v.Allowed
	}
	return o
}

const (
	maxPaths = 256 // of one request, which may ask for the whole tree each time
	maxElems = 32  // of one path
)

// join is the path below the prefix, of which only one may name an origin (gNMI specification section 2.7).
func join(prefix, p *gpb.Path) (*gpb.Path, error) {
	out := &gpb.Path{Elem: slices.Concat(prefix.GetElem(), p.GetElem())}
	switch origin := prefix.GetOrigin() + p.GetOrigin(); {
	case prefix.GetOrigin() != "" && p.GetOrigin() != "":
		return nil, status.Errorf(codes.InvalidArgument, "path %s: origin in prefix and path: want one at most", pathString(out))
	case origin != "" && origin != "openconfig":
		return nil, status.Errorf(codes.InvalidArgument, "path %s: origin %.64q: want openconfig", pathString(out), origin)
	case deprecated(prefix), deprecated(p):
		return nil, status.Error(codes.InvalidArgument, "path with element: want elem")
	case len(out.GetElem()) > maxElems:
		return nil, status.Errorf(codes.InvalidArgument, "path of %d elements: want at most %d", len(out.GetElem()), maxElems)
	}
	return out, nil
}

// deprecated says whether a path uses the form of gNMI 0.3, which would read as the root.
func deprecated(p *gpb.Path) bool {
	//lint:ignore SA1019 looked at only to be refused
	return len(p.GetElement()) > 0
}

// pathString writes a path as people do: /interfaces/interface[name=Ethernet1]/state. It cuts long ones, as it is for errors.
func pathString(p *gpb.Path) string {
	const most = 512
	var b strings.Builder
	for _, e := range p.GetElem() {
		fmt.Fprintf(&b, "/%.64s", e.GetName())
		for _, k := range slices.Sorted(maps.Keys(e.GetKey())) {
			if b.Len() < most {
				fmt.Fprintf(&b, "[%.64s=%.64s]", k, e.GetKey()[k])
			}
		}
		if b.Len() >= most {
			return b.String() + "…"
		}
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}

func bare(name string) string {
	if _, after, ok := strings.Cut(name, ":"); ok {
		return after
	}
	return name
}

// place is one node that a path leads to.
type place struct {
	path   []*gpb.PathElem
	module string
	value  any
}

// answer is read below a prefix, whose target goes back to the client (gNMI specification section 2.2.2.1).
func answer(tree object, prefix, path *gpb.Path, now time.Time) (*gpb.Notification, error) {
	p, err := join(prefix, path)
	if err != nil {
		return nil, err
	}
	n, err := read(tree, p, now)
	if err != nil {
		return nil, err
	}
	if target := prefix.GetTarget(); target != "" {
		n.Prefix = &gpb.Path{Target: target}
	}
	return n, nil
}

// read answers one path: an update for every node that it matches.
func read(tree object, p *gpb.Path, now time.Time) (*gpb.Notification, error) {
	places := []place{{value: tree}}
	for i, e := range p.GetElem() {
		var next []place
		known := false
		for _, at := range places {
			child, module, ok := member(at.value, bare(e.GetName()))
			if !ok {
				continue
			}
			known = true
			if module == "" {
				module = at.module
			}
			l, isList := child.(list)
			if !isList {
				if len(e.GetKey()) > 0 {
					return nil, status.Errorf(codes.InvalidArgument, "path %s: %s is not a list", pathString(p), e.GetName())
				}
				next = append(next, place{extend(at.path, e.GetName(), nil), module, child})
				continue
			}
			if len(e.GetKey()) == 0 && i == len(p.GetElem())-1 {
				for _, it := range l {
					next = append(next, place{extend(at.path, e.GetName(), it.keys), module, it.values})
				}
				continue
			}
			for _, it := range l {
				match, err := matches(it.keys, e.GetKey())
				if err != nil {
					return nil, status.Errorf(codes.InvalidArgument, "path %s: %v", pathString(p), err)
				}
				if match {
					next = append(next, place{extend(at.path, e.GetName(), it.keys), module, it.values})
				}
			}
			if len(e.GetKey()) == 0 && len(l) == 0 {
				return &gpb.Notification{Timestamp: now.UnixNano()}, nil
			}
		}
		if len(next) == 0 && !(known && len(e.GetKey()) == 0) {
			return nil, status.Errorf(codes.NotFound, "path %s: there is no %s", pathString(p),
				pathString(&gpb.Path{Elem: p.GetElem()[:i+1]}))
		}
		places = next
	}
	n := &gpb.Notification{Timestamp: now.UnixNano()}
	for _, at := range places {
		text, err := json.Marshal(qualified(at))
		if err != nil {
			return nil, status.Errorf(codes.Internal, "path %s: %v", pathString(p), err)
		}
		n.Update = append(n.Update, &gpb.Update{
			Path: &gpb.Path{Elem: at.path},
			Val:  &gpb.TypedValue{Value: &gpb.TypedValue_JsonIetfVal{JsonIetfVal: text}},
		})
	}
	return n, nil
}

func member(v any, name string) (child any, module string, ok bool) {
	o, isObject := v.(object)
	if !isObject {
		return nil, "", false
	}
	if c, ok := o[name]; ok {
		return c, "", true
	}
	for k, c := range o {
		if m, n, ok := strings.Cut(k, ":"); ok && n == name {
			return c, m, true
		}
	}
	return nil, "", false
}

func extend(path []*gpb.PathElem, name string, keys map[string]string) []*gpb.PathElem {
	return append(append([]*gpb.PathElem(nil), path...), &gpb.PathElem{Name: name, Key: maps.Clone(keys)})
}

func matches(have, want map[string]string) (bool, error) {
	all := true
	for k, v := range want {
		h, ok := have[bare(k)]
		if !ok {
			return false, fmt.Errorf("%.64s is not a key of this list", k)
		}
		same := v == h || bare(k) == "mac-address" && strings.EqualFold(v, h)
		if v != "*" && !same {
			all = false
		}
	}
	return all, nil
}

// qualified gives the outermost names of a value their module's (RFC 7951 section 4).
func qualified(at place) any {
	o, ok := at.value.(object)
	if !ok || at.module == "" {
		return at.value
	}
	out := make(object, len(o))
	for k, v := range o {
		if !strings.Contains(k, ":") {
			k = at.module + ":" + k
		}
		out[k] = v
	}
	return out
}
