package coordinator

import (
	"context"
	"crypto/x509"
	"net"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	"bloomery/lab/vswitch"
	"bloomery/network/switchport"
)

// TestQuarantineByGNMI moves a port of the virtual rack's switch with the driver that production runs.
func TestQuarantineByGNMI(t *testing.T) {
	r, op := lockRack(t)
	sw := vswitch.New(vswitch.Config{Name: "tor1"})
	t.Cleanup(func() { must(t, sw.Close()) })
	must(t, sw.AddSocketPort("Ethernet1", filepath.Join(t.TempDir(), "e1"), vswitch.Access(200)))
	cert, ca, err := vswitch.SelfSigned("127.0.0.1")
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, sw.ServeGNMI(t.Context(), l, vswitch.GNMIOptions{Certificate: cert, Username: "bloomery", Password: "right"}))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	r.c.DialSwitch = func(ctx context.Context, _ Switch) (switchport.Driver, error) {
		return switchport.DialGNMI(ctx, switchport.Options{Address: l.Addr().String(), CA: pool, Username: "bloomery", Password: "right"})
	}
	vlan := func() uint16 {
		p, _ := sw.Snapshot().Port("Ethernet1")
		return p.VLAN.Access
	}
	// Nobody has seen the machine on the port yet.
	_, err = op.lock(t, true)
	wantRefusal(t, "silent", err, connect.CodeFailedPrecondition, "port", "PORT_NOT_MOVED")
	must(t, sw.InjectMAC("Ethernet1", r.learns, 200))
	m, err := op.lock(t, true)
	must(t, err)
	if m.GetNetwork() != QuarantineNetwork || vlan() != 999 {
		t.Fatalf("machine: %v, port in VLAN %d", m, vlan())
	}
	// A stranger in quarantine under this cable does not get the customer's network.
	must(t, sw.InjectMAC("Ethernet1", net.HardwareAddr{2, 0, 0, 0, 0, 9}, 999))
	wantRefusal(t, "stranger", op.unlock(t, false), connect.CodeFailedPrecondition, "port", "PORT_NOT_MOVED")
	for _, v := range []uint16{998, 999} { // a switch forgets what it has learned when a port moves
		must(t, sw.SetVLAN("Ethernet1", vswitch.Access(v)))
	}
	must(t, sw.InjectMAC("Ethernet1", r.learns, 999))
	if err := op.unlock(t, false); err != nil {
		t.Fatalf("unlock: %v", err)
	}
	if after := r.m1(); after.GetLock() != nil || after.GetNetwork() != "customer-a" || vlan() != 200 {
		t.Errorf("machine: %v, port in VLAN %d", after, vlan())
	}
}
