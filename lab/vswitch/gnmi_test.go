package vswitch_test

import (
	"crypto/x509"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"bloomery/internal/fence"
	"bloomery/lab/vswitch"
	"bloomery/network/switchport"
)

var (
	ours   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	theirs = net.HardwareAddr{2, 0, 0, 0, 0, 9}
)

func serve(t *testing.T) (*vswitch.Switch, switchport.Options) {
	t.Helper()
	sw := vswitch.New(vswitch.Config{Name: "tor1"})
	t.Cleanup(func() {
		if err := sw.Close(); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(t.TempDir(), "e1")
	if err := sw.AddSocketPort("Ethernet1", path, vswitch.Access(100)); err != nil {
		t.Fatal(err)
	}
	cert, ca, err := vswitch.SelfSigned("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := sw.ServeGNMI(t.Context(), l, vswitch.GNMIOptions{Certificate: cert, Username: "bloomery", Password: "right"}); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return sw, switchport.Options{Address: l.Addr().String(), CA: pool, Username: "bloomery", Password: "right"}
}

func TestMoveByGNMI(t *testing.T) {
	sw, o := serve(t)
	d, err := switchport.DialGNMI(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r := switchport.MoveRequest{Port: "Ethernet1", MACs: []net.HardwareAddr{ours}, From: 100, To: 200}
	refused := func(want switchport.Reason) {
		t.Helper()
		_, err := switchport.Move(t.Context(), d, r)
		var g *switchport.GuardError
		if !errors.As(err, &g) || g.Reason != want {
			t.Fatalf("got %v, want a refusal for %s", err, want)
		}
		if p, _ := sw.Snapshot().Port("Ethernet1"); p.VLAN.Access != 100 {
			t.Fatalf("a refused move changed the port to %v", p.VLAN)
		}
	}
	refused(switchport.ReasonMACNotSeen)
	inject := func(m net.HardwareAddr) {
		t.Helper()
		if err := sw.InjectMAC("Ethernet1", m, 100); err != nil {
			t.Fatal(err)
		}
	}
	inject(ours)
	r.From = 999
	refused(switchport.ReasonWrongNetwork)
	r.From = 100
	res, err := switchport.Move(t.Context(), d, r)
	if err != nil || res.AlreadyThere || !res.MACSeen || res.After.AccessVLAN != 200 {
		t.Fatalf("move: %+v, %v", res, err)
	}
	if p, _ := sw.Snapshot().Port("Ethernet1"); p.VLAN.Access != 200 {
		t.Fatalf("the switch has %v", p.VLAN)
	}
	if res, err = switchport.Move(t.Context(), d, r); err != nil || !res.AlreadyThere {
		t.Fatalf("second move: %+v, %v", res, err)
	}
	r.From, r.To = 200, 100
	if err := sw.SetVLAN("Ethernet1", vswitch.Access(100)); err != nil {
		t.Fatal(err)
	}
	inject(ours)
	inject(theirs)
	r.From, r.To = 100, 200
	refused(switchport.ReasonForeignMAC)
	if _, err := d.Port(t.Context(), "Ethernet7"); !errors.Is(err, switchport.ErrNoPort) {
		t.Errorf("a port that does not exist: %v", err)
	}
	if err := d.SetAccessVLAN(t.Context(), "Ethernet7", 5); !errors.Is(err, switchport.ErrNoPort) {
		t.Errorf("setting a port that does not exist: %v", err)
	}
}

func TestFenceStopsTheDriver(t *testing.T) {
	sw, o := serve(t)
	over := errors.New("the lease is over")
	var down atomic.Bool
	d, err := switchport.DialGNMI(fence.With(t.Context(), func() error {
		if down.Load() {
			return over
		}
		return nil
	}), o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.SetAccessVLAN(t.Context(), "Ethernet1", 200); err != nil {
		t.Fatal(err)
	}
	down.Store(true)
	if err := d.SetAccessVLAN(t.Context(), "Ethernet1", 300); err == nil {
		t.Error("a driver whose lease is over set a VLAN")
	}
	if p, _ := sw.Snapshot().Port("Ethernet1"); p.VLAN.Access != 200 {
		t.Errorf("it moved the port to %v", p.VLAN)
	}
	if _, err := switchport.DialGNMI(fence.With(t.Context(), func() error { return over }), o); err == nil {
		t.Error("a driver without a lease reached the switch")
	}
}

func TestGNMIRefusesStrangers(t *testing.T) {
	_, o := serve(t)
	bad := o
	bad.Password = "wrong"
	if _, err := switchport.DialGNMI(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "Unauthenticated") {
		t.Errorf("wrong password: %v", err)
	}
	_, ca, err := vswitch.SelfSigned("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	bad = o
	bad.CA = x509.NewCertPool()
	bad.CA.AppendCertsFromPEM(ca)
	if _, err := switchport.DialGNMI(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("another authority: %v", err)
	}
}
