package bmc_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bougou/go-ipmi/pkg/vmproto"
	"github.com/google/go-cmp/cmp"

	driver "bloomery/firmware/bmc"
	"bloomery/lab/bmc"
)

// fakePower is a machine without QEMU.
type fakePower struct {
	mu  sync.Mutex
	on  bool
	log []string
}

func (p *fakePower) do(name string, on bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.on = on
	p.log = append(p.log, name)
	return nil
}

func (p *fakePower) On() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.on
}
func (p *fakePower) actions() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.log...)
}
func (p *fakePower) PowerOn(context.Context) error  { return p.do("on", true) }
func (p *fakePower) PowerOff(context.Context) error { return p.do("off", false) }
func (p *fakePower) Reset(context.Context) error    { return p.do("reset", true) }
func (p *fakePower) Shutdown(context.Context) error { return p.do("soft", p.On()) }

func start(t *testing.T, c bmc.Config) (*bmc.Server, *fakePower, string) {
	t.Helper()
	power := &fakePower{}
	c.Address, c.Power = netip.MustParseAddrPort("10.65.0.11:623"), power
	c.Username, c.Password = "bloomery", "s3cret-s3cret-20byte"
	s, err := bmc.New(c)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx, conn); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s, power, conn.LocalAddr().String()
}

func dial(t *testing.T, addr string, change func(*driver.Options)) (driver.Driver, error) {
	t.Helper()
	o := driver.Options{Address: addr, Username: "bloomery", Password: "s3cret-s3cret-20byte", Timeout: 5 * time.Second}
	if change != nil {
		change(&o)
	}
	d, err := driver.DialIPMI(t.Context(), o)
	if err == nil {
		t.Cleanup(func() { d.Close(context.Background()) })
	}
	return d, err
}

func TestPower(t *testing.T) {
	for _, suite := range []int{0, 3, 17} {
		_, power, addr := start(t, bmc.Config{})
		d, err := dial(t, addr, func(o *driver.Options) { o.CipherSuite = suite })
		if err != nil {
			t.Fatalf("suite %d: %v", suite, err)
		}
		ctx := t.Context()
		if err := d.Reset(ctx); !errors.Is(err, driver.ErrPoweredOff) {
			t.Errorf("reset of a machine that is off: %v", err)
		}
		for _, f := range []func(context.Context) error{d.PowerOn, d.PowerOn, d.Reset, d.PowerOff, d.PowerOff} {
			if err := f(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if on, err := d.PowerStatus(ctx); err != nil || on {
			t.Errorf("status: on=%t, %v", on, err)
		}
		if diff := cmp.Diff([]string{"on", "reset", "off"}, power.actions()); diff != "" {
			t.Errorf("suite %d: actions (-want +got):\n%s", suite, diff)
		}
	}
}

func TestBootFlags(t *testing.T) {
	s, _, addr := start(t, bmc.Config{})
	d, err := dial(t, addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		dev    driver.BootDevice
		starts []bmc.Boot
	}{
		{driver.BootDevice{Target: driver.BootNetwork, Once: true, UEFI: true}, []bmc.Boot{bmc.BootNetwork, bmc.BootNone}},
		{driver.BootDevice{Target: driver.BootDisk, Once: true, UEFI: true}, []bmc.Boot{bmc.BootDisk, bmc.BootNone}},
		{driver.BootDevice{Target: driver.BootNetwork, UEFI: true}, []bmc.Boot{bmc.BootNetwork, bmc.BootNetwork}},
		{driver.BootDevice{Target: driver.BootDefault}, []bmc.Boot{bmc.BootNone}},
	} {
		if err := d.SetBootDevice(t.Context(), tc.dev); err != nil {
			t.Fatalf("%+v: %v", tc.dev, err)
		}
		for i, want := range tc.starts {
			if got := s.Flags.Take(); got != want {
				t.Errorf("%+v: start %d boots %v, want %v", tc.dev, i, got, want)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	_, power, addr := start(t, bmc.Config{})
	for name, change := range map[string]func(*driver.Options){
		"wrong password": func(o *driver.Options) { o.Password = "wrong" },
		"wrong user":     func(o *driver.Options) { o.Username = "nobody" },
		"anonymous":      func(o *driver.Options) { o.Username, o.Password = "", "" },
	} {
		_, err := dial(t, addr, change)
		if !errors.Is(err, driver.ErrUnauthorized) {
			t.Errorf("%s: %v, want ErrUnauthorized", name, err)
		} else if want := "BMC " + addr; !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: error %q should name %s and no secret", name, err, want)
		}
	}
	if len(power.actions()) != 0 {
		t.Errorf("somebody without a password did %v", power.actions())
	}
	if _, err := bmc.New(bmc.Config{Address: netip.MustParseAddrPort("10.0.0.1:623"), Username: "a", Password: "b", CipherSuites: []int{0}}); err == nil {
		t.Error("cipher suite 0 was accepted")
	}
}

func TestDowngrade(t *testing.T) {
	_, _, addr := start(t, bmc.Config{CipherSuites: []int{3}})
	if _, err := dial(t, addr, nil); err != nil {
		t.Errorf("a BMC with suite 3 only: %v", err)
	}
	if _, err := dial(t, addr, func(o *driver.Options) { o.CipherSuite = 17 }); err == nil {
		t.Error("suite 17 was asked for and not had, yet the session opened")
	}
}

func TestStuckAndBack(t *testing.T) {
	s, _, addr := start(t, bmc.Config{})
	d, err := dial(t, addr, func(o *driver.Options) { o.Timeout = 300 * time.Millisecond })
	if err != nil {
		t.Fatal(err)
	}
	s.SetStuck(true)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := d.PowerStatus(ctx); !errors.Is(err, driver.ErrNoAnswer) {
		t.Errorf("stuck BMC: %v, want ErrNoAnswer", err)
	}
	s.SetStuck(false)
	if _, err := d.PowerStatus(t.Context()); err != nil {
		t.Errorf("BMC that answers again: %v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // open, but silent
	begin := time.Now()
	_, err = dial(t, conn.LocalAddr().String(), func(o *driver.Options) { o.Timeout = 200 * time.Millisecond })
	if !errors.Is(err, driver.ErrNoAnswer) || time.Since(begin) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(begin), err)
	}
}

func TestDeviceIDAndInside(t *testing.T) {
	s, power, addr := start(t, bmc.Config{})
	d, err := dial(t, addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := d.DeviceID(t.Context())
	want := driver.DeviceInfo{ManufacturerID: 7154, Manufacturer: "IPMI forum", ProductID: 1, Firmware: "1.00", IPMIVersion: "2.0"}
	if diff := cmp.Diff(want, id); err != nil || diff != "" {
		t.Errorf("device id: %v (-want +got):\n%s", err, diff)
	}
	l, err := net.Listen("unix", t.TempDir()+"/bmc.sock")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.ServeMachine(ctx, l) })
	defer wg.Wait()
	defer cancel()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	inside := vmproto.NewClient(conn, 5*time.Second)
	for _, tc := range []struct {
		name       string
		netFn, cmd byte
		data, want []byte
	}{
		{"LAN address", 0x0c, 0x02, []byte{1, 3, 0, 0}, []byte{0x11, 10, 65, 0, 11}},
		{"LAN MAC", 0x0c, 0x02, []byte{1, 5, 0, 0}, []byte{0x11, 0x02, 0xb1, 10, 65, 0, 11}},
		{"global enables", 0x06, 0x2f, nil, []byte{0}},
		{"cold reset of the BMC", 0x06, 0x02, nil, nil},
	} {
		cc, got, err := inside.Command(tc.netFn, tc.cmd, tc.data...)
		if err != nil || cc != 0 || !cmp.Equal(tc.want, got, cmp.Comparer(func(a, b []byte) bool { return string(a) == string(b) })) {
			t.Errorf("%s: completion %#x, % x, %v; want % x", tc.name, cc, got, err, tc.want)
		}
	}
	if len(power.actions()) != 0 {
		t.Errorf("resetting the BMC did %v to the machine", power.actions())
	}
}
