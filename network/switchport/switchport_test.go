package switchport_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"bloomery/network/switchport"
	"bloomery/network/switchport/switchporttest"

	"github.com/google/go-cmp/cmp"
)

var (
	ours   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	second = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	theirs = net.HardwareAddr{2, 0, 0, 0, 0, 9}
	group  = net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}
)

func TestGuard(t *testing.T) {
	state := func(vlan uint16, macs ...net.HardwareAddr) switchport.State {
		s := switchport.State{Port: "e1", Mode: switchport.ModeAccess, AccessVLAN: vlan, LinkUp: true}
		for _, m := range macs {
			s.MACs = append(s.MACs, switchport.LearnedMAC{MAC: m})
		}
		return s
	}
	trunk := state(100, ours)
	trunk.Mode = switchport.ModeTrunk
	routed := state(100, ours)
	routed.Mode = ""
	down := state(100)
	down.LinkUp = false
	for _, c := range []struct {
		name  string
		state switchport.State
		want  switchport.Reason
		says  string
	}{
		{"in place", state(100, ours), "", ""},
		{"second nic", state(100, second), "", ""},
		{"group addresses do not count", state(100, ours, group), "", ""},
		{"only a group address", state(100, group), switchport.ReasonMACNotSeen, "no learned address"},
		{"silent", state(100), switchport.ReasonMACNotSeen, ours.String()},
		{"down", down, switchport.ReasonMACNotSeen, "link is down"},
		{"stranger", state(100, theirs), switchport.ReasonForeignMAC, theirs.String()},
		{"stranger too", state(100, ours, theirs), switchport.ReasonForeignMAC, theirs.String()},
		{"other network", state(300, ours), switchport.ReasonWrongNetwork, "found VLAN 300"},
		{"trunk", trunk, switchport.ReasonNotAccessPort, "TRUNK"},
		{"routed", routed, switchport.ReasonNotAccessPort, "no switched-port mode"},
		{"there and silent", state(200), "", ""},
		{"there with a stranger", state(200, theirs), switchport.ReasonForeignMAC, theirs.String()},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := switchport.Guard(c.state, switchport.MoveRequest{Port: "e1", MACs: []net.HardwareAddr{ours, second}, From: 100, To: 200})
			if c.want == "" {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			var g *switchport.GuardError
			if !errors.As(err, &g) || g.Reason != c.want || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %s saying %q", err, c.want, c.says)
			}
		})
	}
}

func TestMove(t *testing.T) {
	r := switchport.MoveRequest{Port: "e1", MACs: []net.HardwareAddr{ours}, From: 100, To: 200}
	sw := switchporttest.New()
	sw.AddPort("e1", 100, ours)
	res, err := switchport.Move(t.Context(), sw, r)
	if err != nil || res.AlreadyThere || sw.VLAN("e1") != 200 {
		t.Fatalf("move: %+v, %v", res, err)
	}
	if res, err = switchport.Move(t.Context(), sw, r); err != nil || !res.AlreadyThere || res.MACSeen {
		t.Fatalf("again: %+v, %v", res, err)
	}
	if diff := cmp.Diff([]string{"port e1", "set e1 200", "port e1", "port e1"}, sw.Log()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}

	sw.AddPort("e1", 100, ours)
	sw.Stick("e1")
	var v *switchport.VerifyError
	if _, err := switchport.Move(t.Context(), sw, r); !errors.As(err, &v) {
		t.Errorf("a switch that does not take the VLAN: %v", err)
	}
	boom := errors.New("boom")
	for _, op := range []string{"port", "set"} {
		sw.FailNext(op, boom)
		if _, err := switchport.Move(t.Context(), sw, r); !errors.Is(err, boom) {
			t.Errorf("failing %s: %v", op, err)
		}
	}
	r.To = 4095
	if _, err := switchport.Move(t.Context(), sw, r); err == nil || !strings.Contains(err.Error(), "to: VLAN 4095") {
		t.Errorf("bad VLAN: %v", err)
	}
}
