package bmc_test

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	driver "bloomery/firmware/bmc"
	"bloomery/internal/fence"
	"bloomery/lab/bmc"
)

// counted counts the datagrams that a BMC hears.
type counted struct {
	net.PacketConn
	heard atomic.Int64
}

func (c *counted) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.PacketConn.ReadFrom(b)
	if err == nil {
		c.heard.Add(1)
	}
	return n, from, err
}

// TestFenceStopsTheDriverBeforeEachPacket lets a lease end after each number of packets that switching a machine on takes.
func TestFenceStopsTheDriverBeforeEachPacket(t *testing.T) {
	power := &fakePower{}
	s, err := bmc.New(bmc.Config{Address: netip.MustParseAddrPort("10.65.0.11:623"), Power: power, Username: "bloomery", Password: "pass"})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn := &counted{PacketConn: socket}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(t.Context(), conn) })
	t.Cleanup(wg.Wait)
	over := errors.New("the lease is over")
	for allowed := int64(0); ; allowed++ {
		before := conn.heard.Load()
		var asked atomic.Int64
		ctx := fence.With(t.Context(), func() error {
			if asked.Add(1) > allowed {
				return over
			}
			return nil
		})
		began := time.Now()
		d, err := driver.DialIPMI(ctx, driver.Options{Address: socket.LocalAddr().String(), Username: "bloomery", Password: "pass", CipherSuite: 17})
		if err == nil {
			err = d.PowerOn(ctx)
			_ = d.Close(ctx)
		}
		if heard := conn.heard.Load() - before; heard > allowed {
			t.Errorf("the BMC heard %d packets of %d that were allowed", heard, allowed)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a driver whose lease is over took %s to notice", took)
		}
		if power.On() {
			if allowed < 5 {
				t.Errorf("switching on took %d packets: too few to be a session", allowed)
			}
			break
		}
		if err == nil {
			t.Fatalf("after %d packets the machine is off, and no error says so", allowed)
		}
		if allowed > 30 {
			t.Fatalf("after %d packets: %v", allowed, err)
		}
	}
}

func TestBMCIsNotToldTwice(t *testing.T) {
	_, power, addr := start(t, bmc.Config{})
	once := driver.BootDevice{Target: driver.BootNetwork, Once: true, UEFI: true}
	for range 2 { // as two coordinators would, one after the other
		d, err := dial(t, addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{d.SetBootDevice(t.Context(), once), d.PowerOn(t.Context()), d.Close(t.Context())} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := power.actions(); len(got) != 1 || got[0] != "on" {
		t.Errorf("the machine saw %v", got)
	}
}
