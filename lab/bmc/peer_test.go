package bmc_test

import (
	"context"
	"net/netip"
	"testing"

	driver "bloomery/firmware/bmc"
	"bloomery/lab/bmc"
)

// TestPeer looks who a BMC says has sent it a command.
func TestPeer(t *testing.T) {
	got := make(chan netip.AddrPort, 10)
	_, _, addr := start(t, bmc.Config{BootSet: func(ctx context.Context, b bmc.Boot) {
		if from, ok := bmc.Peer(ctx); ok && b == bmc.BootNetwork {
			got <- from
		}
	}})
	d, err := dial(t, addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SetBootDevice(t.Context(), driver.BootDevice{Target: driver.BootNetwork, Once: true, UEFI: true}); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
	select {
	case from := <-got:
		if from.Addr() != netip.MustParseAddr("127.0.0.1") || from.Port() == 0 {
			t.Errorf("command came from %s", from)
		}
	default:
		t.Error("nobody was told of the boot device, or of who set it")
	}
	if _, ok := bmc.Peer(t.Context()); ok {
		t.Error("a context of no command has a peer")
	}
}
