package switchport

import (
	"errors"
	"net"
	"testing"
	"time"

	gpb "github.com/openconfig/gnmi/proto/gnmi"

	"github.com/google/go-cmp/cmp"
)

func answer(updates ...*gpb.Update) []*gpb.Notification {
	return []*gpb.Notification{{Update: updates}}
}

func update(json string, elems ...*gpb.PathElem) *gpb.Update {
	return &gpb.Update{
		Path: &gpb.Path{Elem: elems},
		Val:  &gpb.TypedValue{Value: &gpb.TypedValue_JsonIetfVal{JsonIetfVal: []byte(json)}},
	}
}

func elem(name string, keys ...string) *gpb.PathElem {
	e := &gpb.PathElem{Name: name}
	for i := 0; i < len(keys); i += 2 {
		if e.Key == nil {
			e.Key = map[string]string{}
		}
		e.Key[keys[i]] = keys[i+1]
	}
	return e
}

func TestDecodeFDB(t *testing.T) {
	m := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	const ref = `"interface":{"interface-ref":{"state":{"interface":"e1"}}}`
	key := elem("entry", "mac-address", "02:00:00:00:00:01", "vlan", "100")
	for _, c := range []struct {
		name string
		in   []*gpb.Notification
		want []LearnedMAC
	}{
		{"list below the table", answer(update(`{"openconfig-network-instance:entry":[{"mac-address":"02:00:00:00:00:01","vlan":100,`+ref+`,"state":{"age":"7"}},
			{"mac-address":"02:00:00:00:00:02","vlan":100,"interface":{"interface-ref":{"state":{"interface":"e2"}}}}]}`, elem("entries"))),
			[]LearnedMAC{{m, 100, 7 * time.Second}}},
		{"bare list", answer(update(`[{"mac-address":"02:00:00:00:00:01","state":{"vlan":"100"},`+ref+`}]`, elem("entry"))), []LearnedMAC{{m, 100, 0}}},
		{"keyed entry", answer(update(`{`+ref+`}`, elem("openconfig-network-instance:entries"), key)), []LearnedMAC{{m, 100, 0}}},
		{"without VLAN", answer(update(`{"state":{"mac-address":"02:00:00:00:00:01"},`+ref+`}`, elem("entry", "mac-address", "02:00:00:00:00:01"))), []LearnedMAC{{m, 0, 0}}},
		{"leaves", answer(
			update(`"e1"`, key, elem("interface"), elem("interface-ref"), elem("state"), elem("interface")),
			update(`"9"`, key, elem("state"), elem("age"))), []LearnedMAC{{m, 100, 9 * time.Second}}},
		{"whole tree", answer(update(`{"fdb":{"mac-table":{"entries":{"entry":[{"mac-address":"02:00:00:00:00:01",` + ref + `}]}}}}`)), []LearnedMAC{{m, 0, 0}}},
		{"empty", answer(), nil},
		{"empty table", answer(update(`{}`, elem("entries"))), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := decodeFDB(c.in, "e1")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeConfig(t *testing.T) {
	config := []*gpb.PathElem{elem("switched-vlan"), elem("config")}
	for _, u := range []*gpb.Update{
		update(`{"interface-mode":"ACCESS","access-vlan":200}`, config...),
		update(`{"openconfig-vlan:interface-mode":"openconfig-vlan-types:ACCESS","openconfig-vlan:access-vlan":200}`, config...),
		update(`{"openconfig-vlan:switched-vlan":{"config":{"interface-mode":"ACCESS","access-vlan":200}}}`),
	} {
		mode, vlan, err := decodeSwitchedVLAN(answer(u))
		if err != nil || mode != ModeAccess || vlan != 200 {
			t.Errorf("%v: %s %d %v", u, mode, vlan, err)
		}
	}
	for _, bad := range []string{`{`, `{}x`, `[]`, `{"access-vlan":4095}`, `{"access-vlan":-1}`, `{"interface-mode":"HYBRID"}`, `{"a:x":1,"b:x":2}`} {
		if _, _, err := decodeSwitchedVLAN(answer(update(bad, elem("config")))); !errors.Is(err, errBadAnswer) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"entry":[{"mac-address":"02:00:00:00:00:01","interface":{"interface-ref":{"state":{"interface":"e1"}}}}]}`), true)
	f.Add([]byte(`{"interface-mode":"ACCESS","access-vlan":"7","port-speed":"SPEED_10GB","oper-status":"UP"}`), false)
	f.Add([]byte(`[1e99,null,{"a:b":{"b":[]}}]`), true)
	f.Fuzz(func(t *testing.T, b []byte, keyed bool) {
		e := elem("entry")
		if keyed {
			e = elem("entry", "mac-address", "02:00:00:00:00:01")
		}
		macs, err := decodeFDB(answer(update(string(b), e), update(string(b))), "e1")
		for _, m := range macs {
			if err != nil || len(m.MAC) != 6 || m.VLAN > 4095 {
				t.Fatalf("%v, %v", m, err)
			}
		}
		in := answer(update(string(b), elem("config")), update(string(b), elem("state")))
		if mode, vlan, err := decodeSwitchedVLAN(in); err == nil && (vlan > MaxVLAN || len(mode) > 6) {
			t.Fatalf("%s %d", mode, vlan)
		}
		_, _ = decodeLinkUp(in)
		_, _ = decodeSpeed(in)
	})
}
