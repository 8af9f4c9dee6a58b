package vswitch

import (
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	gpb "github.com/openconfig/gnmi/proto/gnmi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const entries = "network-instances/network-instance[name=default]/fdb/mac-table/entries/"

// learned is configured with one address on each port.
func learned(t testing.TB) *gnmiServer {
	t.Helper()
	g := configured(t)
	for port, vlan := range map[string]uint16{"e1": 100, "e2": 20} {
		if err := g.sw.InjectMAC(port, []byte{2, 0, 0, 0, 0, 0xab}, vlan); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// lines writes notifications as "path value".
func lines(list ...*gpb.Notification) []string {
	var out []string
	for _, n := range list {
		for _, u := range n.GetUpdate() {
			out = append(out, pathString(u.GetPath())+" "+string(u.GetVal().GetJsonIetfVal()))
		}
	}
	return out
}

func TestGet(t *testing.T) {
	const e1, e2 = "/interfaces/interface[name=e1]", "/interfaces/interface[name=e2]"
	const vlan = "/ethernet/switched-vlan/config"
	const access = ` {"openconfig-vlan:access-vlan":100,"openconfig-vlan:interface-mode":"ACCESS"}`
	const trunk = ` {"openconfig-vlan:interface-mode":"TRUNK","openconfig-vlan:native-vlan":7,"openconfig-vlan:trunk-vlans":[10,20]}`
	const inE1 = "/" + entries + "entry[mac-address=02:00:00:00:00:ab][vlan=100]"
	for _, tt := range []struct {
		path string
		want []string
	}{
		{e1 + vlan, []string{e1 + vlan + access}},
		{e1 + vlan + "/access-vlan", []string{e1 + vlan + "/access-vlan 100"}},
		{e2 + vlan, []string{e2 + vlan + trunk}},
		{"/interfaces/interface[name=*]/config/enabled", []string{e1 + "/config/enabled true", e2 + "/config/enabled true"}},
		{"/interfaces/interface/state/oper-status", []string{e1 + `/state/oper-status "DOWN"`, e2 + `/state/oper-status "DOWN"`}},
		{"/openconfig-interfaces:interfaces/interface[name=e1]/state/counters/in-pkts",
			[]string{"/openconfig-interfaces:interfaces/interface[name=e1]/state/counters/in-pkts \"0\""}},
		{"/" + entries + "entry[mac-address=02:00:00:00:00:AB][vlan=100]/interface",
			[]string{inE1 + `/interface {"openconfig-network-instance:interface-ref":{"state":{"interface":"e1"}}}`}},
		{"/" + entries + "entry[vlan=100]/vlan", []string{inE1 + "/vlan 100"}},
	} {
		t.Run(tt.path, func(t *testing.T) {
			res, err := learned(t).Get(t.Context(), &gpb.GetRequest{Path: []*gpb.Path{gpath(tt.path)}, Encoding: gpb.Encoding_JSON_IETF})
			if err != nil {
				t.Fatal(err)
			}
			got := lines(res.GetNotification()...)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestGetRefuses(t *testing.T) {
	many := make([]*gpb.Path, maxPaths+1)
	for i := range many {
		many[i] = &gpb.Path{}
	}
	one := func(p *gpb.Path) *gpb.GetRequest {
		return &gpb.GetRequest{Path: []*gpb.Path{p}, Encoding: gpb.Encoding_JSON_IETF}
	}
	for _, tt := range []struct {
		name string
		r    *gpb.GetRequest
		code codes.Code
	}{
		{"encoding", &gpb.GetRequest{Path: []*gpb.Path{{}}}, codes.Unimplemented},
		{"no path", &gpb.GetRequest{Encoding: gpb.Encoding_JSON_IETF}, codes.InvalidArgument},
		{"too many paths", &gpb.GetRequest{Path: many, Encoding: gpb.Encoding_JSON_IETF}, codes.InvalidArgument},
		{"too deep", one(gpath(strings.Repeat("interfaces/", maxElems+1))), codes.InvalidArgument},
		//lint:ignore SA1019 it must be refused
		{"deprecated form", one(&gpb.Path{Element: []string{"interfaces"}}), codes.InvalidArgument},
		{"foreign origin", one(&gpb.Path{Origin: "cli"}), codes.InvalidArgument},
		{"key of a container", one(gpath("interfaces[name=e1]")), codes.InvalidArgument},
		{"unknown key", one(gpath("interfaces/interface[id=e1]")), codes.InvalidArgument},
		{"no such interface", one(gpath("interfaces/interface[name=e9]")), codes.NotFound},
		{"other case", one(gpath("interfaces/interface[name=E1]")), codes.NotFound},
		{"no such leaf", one(gpath("interfaces/interface[name=e1]/state/mtu")), codes.NotFound},
		{"below a leaf", one(gpath("interfaces/interface[name=e1]/state/name/x")), codes.NotFound},
		{"no such address", one(gpath(entries + "entry[mac-address=02:00:00:00:00:01]")), codes.NotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := learned(t).Get(t.Context(), tt.r); status.Code(err) != tt.code {
				t.Errorf("got %v, want %s", err, tt.code)
			}
		})
	}
}

// fakeStream is a client that sends its requests and hangs up.
type fakeStream struct {
	grpc.ServerStream
	requests []*gpb.SubscribeRequest
	sent     []*gpb.SubscribeResponse
}

func (s *fakeStream) Recv() (*gpb.SubscribeRequest, error) {
	if len(s.requests) == 0 {
		return nil, io.EOF
	}
	r := s.requests[0]
	s.requests = s.requests[1:]
	return r, nil
}

func (s *fakeStream) Send(r *gpb.SubscribeResponse) error {
	s.sent = append(s.sent, r)
	return nil
}

func TestSubscribe(t *testing.T) {
	once := func(paths ...string) *gpb.SubscriptionList {
		l := &gpb.SubscriptionList{Mode: gpb.SubscriptionList_ONCE, Encoding: gpb.Encoding_JSON_IETF}
		for _, p := range paths {
			l.Subscription = append(l.Subscription, &gpb.Subscription{Path: gpath(p)})
		}
		return l
	}
	with := func(l *gpb.SubscriptionList, edit func(*gpb.SubscriptionList)) *gpb.SubscriptionList {
		edit(l)
		return l
	}
	const vlan = "interfaces/interface[name=e1]/ethernet/switched-vlan/config/access-vlan"
	for _, tt := range []struct {
		name string
		list *gpb.SubscriptionList
		want []string
		code codes.Code
	}{
		{"two paths", once(vlan, "interfaces/interface[name=e2]/name"), []string{"/" + vlan + " 100", `/interfaces/interface[name=e2]/name "e2"`}, codes.OK},
		{"nothing", once(), nil, codes.OK},
		{"what is not there", once("interfaces/interface[name=e9]", vlan), []string{"/" + vlan + " 100"}, codes.OK},
		{"updates only", with(once(vlan), func(l *gpb.SubscriptionList) { l.UpdatesOnly = true }), nil, codes.OK},
		{"prefix", with(once("access-vlan"), func(l *gpb.SubscriptionList) {
			l.Prefix = gpath(strings.TrimSuffix(vlan, "/access-vlan"))
		}), []string{"/" + vlan + " 100"}, codes.OK},
		{"bad path", once("interfaces/interface[id=e1]"), nil, codes.InvalidArgument},
		{"too many paths", once(make([]string, maxPaths+1)...), nil, codes.InvalidArgument},
		{"stream", with(once(vlan), func(l *gpb.SubscriptionList) { l.Mode = gpb.SubscriptionList_STREAM }), nil, codes.Unimplemented},
		{"poll", with(once(vlan), func(l *gpb.SubscriptionList) { l.Mode = gpb.SubscriptionList_POLL }), nil, codes.Unimplemented},
		{"encoding", with(once(vlan), func(l *gpb.SubscriptionList) { l.Encoding = gpb.Encoding_PROTO }), nil, codes.Unimplemented},
		{"no list", nil, nil, codes.InvalidArgument},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &gpb.SubscribeRequest{}
			if tt.list != nil {
				r.Request = &gpb.SubscribeRequest_Subscribe{Subscribe: tt.list}
			}
			s := &fakeStream{requests: []*gpb.SubscribeRequest{r}}
			err := configured(t).Subscribe(s)
			if status.Code(err) != tt.code {
				t.Fatalf("got %v, want %s", err, tt.code)
			}
			if err != nil {
				return
			}
			var got []string
			for _, m := range s.sent[:len(s.sent)-1] {
				got = append(got, lines(m.GetUpdate())...)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("updates (-want +got):\n%s", diff)
			}
			if !s.sent[len(s.sent)-1].GetSyncResponse() {
				t.Errorf("the last message is %v, want a sync_response", s.sent[len(s.sent)-1])
			}
		})
	}
	if err := configured(t).Subscribe(&fakeStream{}); err != nil {
		t.Errorf("a client that hangs up at once: %v", err)
	}
}

func TestTargetGoesBack(t *testing.T) {
	res, err := configured(t).Get(t.Context(), &gpb.GetRequest{
		Prefix: &gpb.Path{Target: "tor1"}, Path: []*gpb.Path{gpath("interfaces")}, Encoding: gpb.Encoding_JSON_IETF,
	})
	if err != nil || res.GetNotification()[0].GetPrefix().GetTarget() != "tor1" {
		t.Errorf("got %v, %v", res, err)
	}
}

func TestEmptyForwardingTable(t *testing.T) {
	for _, path := range []string{entries + "entry", entries + "entry/state", entries} {
		res, err := configured(t).Get(t.Context(), &gpb.GetRequest{Path: []*gpb.Path{gpath(path)}, Encoding: gpb.Encoding_JSON_IETF})
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if got := lines(res.GetNotification()...); path == entries && len(got) != 1 || path != entries && got != nil {
			t.Errorf("%s: got %v", path, got)
		}
	}
}
