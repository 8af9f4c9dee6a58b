package vswitch

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	gpb "github.com/openconfig/gnmi/proto/gnmi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// configured is a server of a switch with an access port e1, a trunk e2, and nothing plugged in.
func configured(t testing.TB) *gnmiServer {
	t.Helper()
	sw := New(Config{Name: "tor1"})
	for i, v := range []VLAN{Access(100), Trunk(7, 10, 20)} {
		if err := sw.plug(fmt.Sprintf("e%d", i+1), v, &link{kind: "socket"}, io.NopCloser(nil), func() {}); err != nil {
			t.Fatal(err)
		}
	}
	return &gnmiServer{sw: sw}
}

// vlans is what a Set can change.
func (g *gnmiServer) vlans() map[string]VLAN {
	out := map[string]VLAN{}
	for _, p := range g.sw.Snapshot().Ports {
		out[p.Name] = p.VLAN
	}
	return out
}

// gpath reads "interfaces/interface[name=e1]/state".
func gpath(text string) *gpb.Path {
	p := &gpb.Path{}
	for part := range strings.SplitSeq(text, "/") {
		if part == "" {
			continue
		}
		name, keys, _ := strings.Cut(part, "[")
		e := &gpb.PathElem{Name: name}
		for pair := range strings.SplitSeq(keys, "[") {
			if k, v, ok := strings.Cut(strings.TrimSuffix(pair, "]"), "="); ok {
				if e.Key == nil {
					e.Key = map[string]string{}
				}
				e.Key[k] = v
			}
		}
		p.Elem = append(p.Elem, e)
	}
	return p
}

// configPath is a port's VLAN configuration, or a leaf of it.
func configPath(port, leaf string) *gpb.Path {
	return gpath("interfaces/interface[name=" + port + "]/ethernet/switched-vlan/config/" + leaf)
}

func jsonValue(text string) *gpb.TypedValue {
	return &gpb.TypedValue{Value: &gpb.TypedValue_JsonIetfVal{JsonIetfVal: []byte(text)}}
}

func change(port, leaf, value string) []*gpb.Update {
	return []*gpb.Update{{Path: configPath(port, leaf), Val: jsonValue(value)}}
}

func typed(port, leaf string, val *gpb.TypedValue) []*gpb.Update {
	return []*gpb.Update{{Path: configPath(port, leaf), Val: val}}
}

func TestSet(t *testing.T) {
	e2 := Trunk(7, 10, 20)
	for _, tt := range []struct {
		name   string
		r      *gpb.SetRequest
		e1, e2 VLAN
	}{
		{"nothing", &gpb.SetRequest{}, Access(100), e2},
		{"update container", &gpb.SetRequest{Update: change("e1", "", `{"openconfig-vlan:access-vlan":200}`)}, Access(200), e2},
		{"update leaf", &gpb.SetRequest{Update: change("e1", "access-vlan", `200`)}, Access(200), e2},
		{"update leaf by number", &gpb.SetRequest{Update: typed("e1", "access-vlan", &gpb.TypedValue{Value: &gpb.TypedValue_UintVal{UintVal: 200}})}, Access(200), e2},
		{"update leaf by string", &gpb.SetRequest{Update: append(change("e2", "access-vlan", "5"),
			typed("e2", "interface-mode", &gpb.TypedValue{Value: &gpb.TypedValue_StringVal{StringVal: "ACCESS"}})...)},
			Access(100), VLAN{Mode: ModeAccess, Access: 5, Native: 7, Allowed: []uint16{10, 20}}},
		{"update of a list adds", &gpb.SetRequest{Update: change("e2", "trunk-vlans", `[15,20]`)}, Access(100), Trunk(7, 10, 15, 20)},
		{"replace of a list replaces", &gpb.SetRequest{Replace: change("e2", "trunk-vlans", `["30..33",31,9]`)}, Access(100), Trunk(7, 9, 30, 31, 32, 33)},
		{"range of one", &gpb.SetRequest{Replace: change("e2", "trunk-vlans", `["4094..4094"]`)}, Access(100), Trunk(7, 4094)},
		{"replace with an empty list", &gpb.SetRequest{Replace: change("e2", "trunk-vlans", `[]`)}, Access(100), Trunk(7)},
		{"replace container forgets the rest", &gpb.SetRequest{Replace: change("e2", "", `{"interface-mode":"TRUNK","trunk-vlans":[5]}`)},
			Access(100), VLAN{Mode: ModeTrunk, Access: defaultVLAN, Allowed: []uint16{5}}},
		{"replace with nothing", &gpb.SetRequest{Replace: change("e2", "", `{}`)}, Access(100), Access(defaultVLAN)},
		{"delete container", &gpb.SetRequest{Delete: []*gpb.Path{configPath("e2", "")}}, Access(100), Access(defaultVLAN)},
		{"delete leaves", &gpb.SetRequest{Delete: []*gpb.Path{configPath("e2", "native-vlan"), configPath("e2", "trunk-vlans"), configPath("e1", "access-vlan")}},
			Access(defaultVLAN), Trunk(0)},
		{"delete mode of an access port", &gpb.SetRequest{Delete: []*gpb.Path{configPath("e1", "interface-mode")}}, Access(100), e2},
		{"delete what is not there", &gpb.SetRequest{Delete: []*gpb.Path{configPath("e9", "")}}, Access(100), e2},
		{"delete, then replace, then update", &gpb.SetRequest{
			Update:  change("e1", "access-vlan", `3`),
			Replace: change("e1", "", `{"access-vlan":2,"native-vlan":9}`),
			Delete:  []*gpb.Path{configPath("e1", "")},
		}, VLAN{Mode: ModeAccess, Access: 3, Native: 9}, e2},
		{"prefix and origin", &gpb.SetRequest{
			Prefix: &gpb.Path{Origin: "openconfig", Target: "tor1", Elem: gpath("openconfig-interfaces:interfaces/interface[name=e1]").Elem},
			Update: []*gpb.Update{{Path: gpath("openconfig-if-ethernet:ethernet/switched-vlan/config/access-vlan"), Val: jsonValue("8")}},
		}, Access(8), e2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := configured(t)
			res, err := g.Set(t.Context(), tt.r)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]VLAN{"e1": tt.e1, "e2": tt.e2}, g.vlans()); diff != "" {
				t.Errorf("VLANs (-want +got):\n%s", diff)
			}
			if want := len(tt.r.Delete) + len(tt.r.Replace) + len(tt.r.Update); len(res.GetResponse()) != want {
				t.Errorf("%d results, want %d", len(res.GetResponse()), want)
			}
		})
	}
}

func TestSetRefuses(t *testing.T) {
	update := func(u ...*gpb.Update) *gpb.SetRequest { return &gpb.SetRequest{Update: u} }
	leaf := func(port, leaf, value string) *gpb.SetRequest { return update(change(port, leaf, value)...) }
	at := func(path string) *gpb.SetRequest { return update(&gpb.Update{Path: gpath(path), Val: jsonValue("{}")}) }
	big := `[` + strings.Repeat(`"1..4094",`, maxVLAN) + `1]`
	for _, tt := range []struct {
		name string
		r    *gpb.SetRequest
		code codes.Code
		has  string
	}{
		{"no such interface", leaf("e9", "access-vlan", "5"), codes.NotFound, "no interface e9"},
		{"no such interface to replace", &gpb.SetRequest{Replace: change("e9", "", "{}")}, codes.NotFound, "no interface e9"},
		{"other case", leaf("E1", "access-vlan", "5"), codes.NotFound, "no interface E1"},
		{"root", at(""), codes.InvalidArgument, "cannot be set"},
		{"no path", update(&gpb.Update{Val: jsonValue("{}")}), codes.InvalidArgument, "cannot be set"},
		{"state", at("interfaces/interface[name=e1]/ethernet/switched-vlan/state"), codes.InvalidArgument, `"state" where config was expected`},
		{"no key", at("interfaces/interface/ethernet/switched-vlan/config"), codes.InvalidArgument, "interface[name=…]"},
		{"two keys", at("interfaces/interface[name=e1][id=2]/ethernet/switched-vlan/config"), codes.InvalidArgument, "interface[name=…]"},
		{"key at the wrong place", at("interfaces/interface[name=e1]/ethernet[name=e1]/switched-vlan/config"), codes.InvalidArgument, "cannot be set"},
		{"too deep", at("interfaces/interface[name=e1]/ethernet/switched-vlan/config/trunk-vlans/1"), codes.InvalidArgument, "cannot be set"},
		{"endless path", at(strings.Repeat("a/", maxElems+1)), codes.InvalidArgument, "want at most 32"},
		{"foreign origin", update(&gpb.Update{Path: &gpb.Path{Origin: "cli"}, Val: jsonValue("{}")}), codes.InvalidArgument, `origin "cli"`},
		{"origin twice", &gpb.SetRequest{Prefix: &gpb.Path{Origin: "openconfig"}, Delete: []*gpb.Path{{Origin: "openconfig"}}}, codes.InvalidArgument, "prefix and path"},
		{"unknown leaf", leaf("e1", "mtu", "5"), codes.InvalidArgument, `unknown leaf "mtu"`},
		{"delete of an unknown leaf", &gpb.SetRequest{Delete: []*gpb.Path{configPath("e1", "mtu")}}, codes.InvalidArgument, `unknown leaf "mtu"`},
		{"unknown field", leaf("e1", "", `{"mtu":5}`), codes.InvalidArgument, `unknown leaf "mtu"`},
		{"field twice", leaf("e1", "", `{"access-vlan":5,"openconfig-vlan:access-vlan":6}`), codes.InvalidArgument, "twice"},
		{"no value", update(&gpb.Update{Path: configPath("e1", "")}), codes.InvalidArgument, "JSON_IETF"},
		{"no value of a leaf", update(&gpb.Update{Path: configPath("e1", "access-vlan")}), codes.InvalidArgument, "<nil>"},
		{"broken JSON", leaf("e1", "", `{"access-vlan":`), codes.InvalidArgument, "bad JSON"},
		{"two documents", leaf("e1", "", `{} {}`), codes.InvalidArgument, "bad JSON"},
		{"null", leaf("e1", "", `null`), codes.InvalidArgument, "null"},
		{"null field", leaf("e1", "", `{"access-vlan":null}`), codes.InvalidArgument, "access-vlan: null"},
		{"VLAN 0", leaf("e1", "access-vlan", "0"), codes.InvalidArgument, "access-vlan: 0: want 1 to 4094"},
		{"VLAN 4095", leaf("e1", "access-vlan", "4095"), codes.InvalidArgument, "want 1 to 4094"},
		{"VLAN -1", leaf("e1", "access-vlan", "-1"), codes.InvalidArgument, "access-vlan: bad JSON"},
		{"VLAN 65736, which is 200 in 16 bits", leaf("e1", "access-vlan", "65736"), codes.InvalidArgument, "access-vlan: bad JSON"},
		{"VLAN in quotes", leaf("e1", "access-vlan", `"200"`), codes.InvalidArgument, "access-vlan: bad JSON"},
		{"native VLAN 0", leaf("e2", "native-vlan", "0"), codes.InvalidArgument, "native-vlan: 0"},
		{"native VLAN of an access port", leaf("e1", "native-vlan", "60000"), codes.InvalidArgument, "native-vlan: 60000"},
		{"mode", leaf("e1", "interface-mode", `"HYBRID"`), codes.InvalidArgument, "want ACCESS or TRUNK"},
		{"access without a VLAN", leaf("e2", "interface-mode", `"ACCESS"`), codes.InvalidArgument, "access-vlan 0"},
		{"trunk of an access port", leaf("e1", "trunk-vlans", "[5000]"), codes.InvalidArgument, "5000"},
		{"trunk of no list", leaf("e2", "trunk-vlans", "5"), codes.InvalidArgument, "bad JSON"},
		{"range backwards", leaf("e2", "trunk-vlans", `["20..10"]`), codes.InvalidArgument, `"20..10"`},
		{"range from 0", leaf("e2", "trunk-vlans", `["0..10"]`), codes.InvalidArgument, `"0..10"`},
		{"range to 4095", leaf("e2", "trunk-vlans", `["10..4095"]`), codes.InvalidArgument, `"10..4095"`},
		{"range without an end", leaf("e2", "trunk-vlans", `["10.."]`), codes.InvalidArgument, `"10.."`},
		{"range of three", leaf("e2", "trunk-vlans", `["1..2..3"]`), codes.InvalidArgument, `"1..2..3"`},
		{"dash", leaf("e2", "trunk-vlans", `["10-20"]`), codes.InvalidArgument, `"10-20"`},
		{"too many ranges", leaf("e2", "trunk-vlans", big), codes.InvalidArgument, "want at most 4094"},
		{"union replace", &gpb.SetRequest{UnionReplace: change("e1", "access-vlan", "5")}, codes.Unimplemented, "union_replace"},
		{"second update is bad", update(append(change("e1", "access-vlan", "5"), change("e2", "native-vlan", "4095")...)...), codes.InvalidArgument, "native-vlan"},
		{"second interface is missing", update(append(change("e1", "access-vlan", "5"), change("e9", "access-vlan", "5")...)...), codes.NotFound, "e9"},
		{"delete with a bad replace", &gpb.SetRequest{Delete: []*gpb.Path{configPath("e2", "")}, Replace: change("e1", "", `{"access-vlan":0}`)}, codes.InvalidArgument, "access-vlan"},
		{"replace with a bad update", &gpb.SetRequest{Replace: change("e1", "", `{"access-vlan":5}`), Update: change("e1", "interface-mode", `"x"`)}, codes.InvalidArgument, "interface-mode"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := configured(t)
			before := g.vlans()
			_, err := g.Set(t.Context(), tt.r)
			if status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.has) {
				t.Errorf("got %v, want %s with %q", err, tt.code, tt.has)
			}
			if len(err.Error()) > 2048 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if diff := cmp.Diff(before, g.vlans()); diff != "" {
				t.Errorf("a refused Set changed (-before +after):\n%s", diff)
			}
		})
	}
}

// FuzzSet feeds bytes to Set, and their paths to Get: an error changes nothing, success leaves valid VLANs and readable JSON.
func FuzzSet(f *testing.F) {
	for _, r := range []*gpb.SetRequest{
		{Update: change("e1", "", `{"openconfig-vlan:interface-mode":"ACCESS","openconfig-vlan:access-vlan":200}`)},
		{Delete: []*gpb.Path{configPath("e2", "trunk-vlans")}, Replace: change("e1", "", `{"interface-mode":"TRUNK","trunk-vlans":["5..9",12]}`)},
		{Update: typed("e1", "access-vlan", &gpb.TypedValue{Value: &gpb.TypedValue_UintVal{UintVal: 4095}})},
		{Prefix: &gpb.Path{Origin: "openconfig", Elem: gpath("interfaces/interface[name=*]").Elem}, Update: []*gpb.Update{{Path: gpath("state"), Val: jsonValue("1")}}},
		{Delete: []*gpb.Path{gpath("network-instances/network-instance[name=default]/fdb/mac-table/entries/entry[mac-address=*][vlan=1]/state")}},
		{Delete: []*gpb.Path{{}, gpath("interfaces/interface")}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &gpb.SetRequest{}
		if proto.Unmarshal(b, r) != nil {
			return
		}
		g := configured(t)
		if err := g.sw.InjectMAC("e1", []byte{2, 0, 0, 0, 0, 1}, 100); err != nil {
			t.Fatal(err)
		}
		before := g.vlans()
		_, err := g.Set(t.Context(), r)
		after := g.vlans()
		if diff := cmp.Diff(before, after); err != nil && diff != "" {
			t.Fatalf("%v, and yet (-before +after):\n%s", err, diff)
		}
		for name, v := range after {
			if err := v.validate(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		paths := r.GetDelete()
		for _, u := range append(r.GetReplace(), r.GetUpdate()...) {
			paths = append(paths, u.GetPath())
		}
		res, err := g.Get(t.Context(), &gpb.GetRequest{Prefix: r.GetPrefix(), Path: paths, Encoding: gpb.Encoding_JSON_IETF})
		if err != nil && status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.NotFound {
			t.Fatal(err)
		}
		for _, n := range res.GetNotification() {
			for _, u := range n.GetUpdate() {
				if !json.Valid(u.GetVal().GetJsonIetfVal()) {
					t.Fatalf("%s: %s", pathString(u.GetPath()), u.GetVal().GetJsonIetfVal())
				}
			}
		}
	})
}

func TestSetTellsWhoAsked(t *testing.T) {
	g := configured(t)
	var told []string
	g.sw.onSet = func(from net.Addr, port string, before, after VLAN) {
		told = append(told, fmt.Sprintf("%v %s %d %d", from, port, before.Access, after.Access))
	}
	caller := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 99}})
	for _, vlan := range []string{"200", "200", "5000"} {
		_, err := g.Set(caller, &gpb.SetRequest{Update: change("e1", "access-vlan", vlan)})
		if (err != nil) != (vlan == "5000") {
			t.Errorf("set VLAN %s: %v", vlan, err)
		}
	}
	if d := cmp.Diff([]string{"10.0.0.1:99 e1 100 200", "10.0.0.1:99 e1 200 200"}, told); d != "" {
		t.Errorf("-want +told:\n%s", d)
	}
}
